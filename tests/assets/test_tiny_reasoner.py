"""The embedded model answers what it was trained on, and the script that made it is repeatable and resumable."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lowmem
from lowmem.data.procedural import CHARACTERS, HELD_OUT, PRETRAINED, families, generate
from lowmem.evaluate.answers import verify

FOLDER = Path(lowmem.__file__).parent / "assets" / "tiny-reasoner"
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_tiny_reasoner.py"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_tiny_reasoner", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def greedy(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    output = model.generate(**inputs, do_sample=False)
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_folder_is_small_and_complete() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} < names
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} < names
    assert not any(name.endswith((".state", ".part")) for name in names)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10_000_000


def test_every_character_is_one_token_and_comes_back(tokenizer: Any) -> None:
    text = CHARACTERS + "\n"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(set(ids)) == len(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 64


@pytest.mark.parametrize("family", families())
def test_problems_survive_the_tokenizer(tokenizer: Any, family: str) -> None:
    for index in range(20):
        problem = generate(family, index, 0)
        text = problem.prompt + problem.completion
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert ids == tokenizer(problem.prompt)["input_ids"] + tokenizer(problem.completion)["input_ids"]


def test_unknown_characters_become_unk_and_capitals_small(tokenizer: Any) -> None:
    ids = tokenizer("A€😀é")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "<unk>", "<unk>", "<unk>"]


def test_chat_template_writes_the_prompt_of_the_problems(tokenizer: Any) -> None:
    problem = generate("add", 0, 1)
    messages = [{"role": "user", "content": f"  {problem.prompt}"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == problem.prompt
    messages += [{"role": "assistant", "content": problem.completion}, {"role": "user", "content": "1+1=?"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == f"{problem.prompt}{problem.completion}<eos>1+1=?\n"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pretrained_families_are_answered(tokenizer: Any, dtype: torch.dtype) -> None:
    """30 problems per family. At a true rate of 95 %, fewer than 24 right happen once in 580 draws of all three."""
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype)
    for family in PRETRAINED:
        problems = [generate(family, index, 3) for index in range(30)]
        texts = greedy(model, tokenizer, [problem.prompt for problem in problems])
        right = sum(verify(family, text, [p.answer]) for text, p in zip(texts, problems, strict=True))
        assert right >= 24, (family, texts)


def test_the_card_reports_good_pretrained_and_poor_held_out_families() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (yes|no) \| ([\d.]+)% \|$", card, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(families())
    for name, trained, percent in rows:
        assert trained == ("yes" if name in PRETRAINED else "no")
        assert float(percent) >= 95 if name in PRETRAINED else float(percent) <= 20, name
    assert set(HELD_OUT) == {name for name, trained, _ in rows if trained == "no"}


def test_interrupted_training_continues_exactly(script: ModuleType, tmp_path: Path) -> None:
    plan = script.Plan(steps=4, batch=8, warmup=1, eval_problems=1, hidden=64, layers=1)
    whole = script.Training(plan, 0)
    script.train(whole, tmp_path / "a.state", 10, 10)

    first = script.Training(plan, 0)
    for _ in range(2):
        first.run_step()
    first.save_state(tmp_path / "b.state")
    second = script.Training(plan, 0)
    second.load_state(tmp_path / "b.state")
    script.train(second, tmp_path / "b.state", 10, 10)

    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert second.tokens == whole.tokens


def test_a_state_of_another_run_is_refused(script: ModuleType, tmp_path: Path) -> None:
    plan = script.Plan(steps=4, batch=8, warmup=1, eval_problems=1, hidden=64, layers=1)
    script.Training(plan, 0).save_state(tmp_path / "a.state")
    with pytest.raises(SystemExit, match="belongs to seed 0 and 4 steps"):
        script.Training(plan, 2).load_state(tmp_path / "a.state")


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8)])
def test_orthogonal_is_near_the_polar_factor(script: ModuleType, shape: tuple[int, int]) -> None:
    """Five iterations leave every singular value in [0.7, 1.2] (Jordan et al.) and keep the singular vectors."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    result = script.orthogonal(matrix)
    assert torch.all((torch.linalg.svdvals(result) > 0.5) & (torch.linalg.svdvals(result) < 1.3))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ result @ right.T
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), atol=1e-4, rtol=0)


def test_rate_warms_up_and_ends_near_zero(script: ModuleType) -> None:
    rates = [script.rate_factor(step, script.FULL) for step in range(script.FULL.steps)]
    assert rates[0] == 1 / script.FULL.warmup
    assert math.isclose(max(rates), 1.0)
    assert 0.02 <= rates[-1] < 0.021


@pytest.mark.slow
def test_quick_run_learns_writes_a_model_and_reports_json(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["final_loss"] < 3.5  # log 64 = 4.16 at the start
    assert set(report["accuracy"]) == set(families())
    assert not (tmp_path / "training.state").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() == report["parameters"]


def test_an_odd_seed_is_refused(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["train_tiny_reasoner.py", "--seed", "3"])
    with pytest.raises(SystemExit):
        script.parse_arguments()
    assert "odd seeds are kept for evaluation" in capsys.readouterr().err
