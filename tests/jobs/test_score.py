"""Zeroth order on scores of the model's own answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from lowmem.config.load import load_run
from lowmem.config.loss import ScoreLoss
from lowmem.data.batch import Batch
from lowmem.data.samples import EvalItem
from lowmem.errors import ConfigError, DataError
from lowmem.events import StepDone
from lowmem.jobs.score import Accuracy, ScoredAnswers, judge
from lowmem.jobs.train import train
from lowmem.methods.build import build_method
from lowmem.models.loss import ModelLoss
from tests.models.tiny import save_tiny, tiny_tokenizer
from tests.models.tiny import tiny_model as byte_model
from tests.tiny import lm_batch, option_batch, run_config, tiny_model

ITEM = EvalItem((5, 6), "What is 2 + 2?", ("4",), "gsm8k")


def asked(*prompts: tuple[int, ...]) -> Batch:
    ids = torch.tensor(prompts)
    return Batch(ids, torch.ones_like(ids), ids, items=tuple(EvalItem(p, "", ("e",), None) for p in prompts))


def write_function(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A module `my_score` in the current folder."""
    (folder / "my_score.py").write_text(body)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_score", raising=False)


def test_training_raises_a_score_written_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Low characters are better: a function of the text that no gradient knows. Seeds 42 and 7 went from -0.62 to
    -0.42 and -0.46 in twenty steps."""
    body = "def low(text):\n    return -sum(min(ord(c), 400) for c in text) / 400 / max(1, len(text))\n"
    write_function(tmp_path, monkeypatch, body)
    model = byte_model(seed=1)
    config = ScoreLoss(function="my_score:low", max_new_tokens=2)
    loss, batch = ScoredAnswers(model, tiny_tokenizer(), config), asked(*((5 + i, 9 + i, 7) for i in range(16)))
    method = build_method(run_config(method={"kind": "zo", "algorithm": "mezo", "zo_eps": 0.05}), model)

    def score() -> float:
        return -float(loss(batch).per_example.mean())

    before = score()
    for step in range(20):
        method.step(loss, [batch], lr=5e-3, step=step)
    assert score() > before + 0.08


def test_accuracy_counts_the_examples_whose_right_option_is_the_most_likely() -> None:
    model = tiny_model()
    loss, batch = ModelLoss(model), option_batch(5, one_token=True)
    right = loss.option_scores(batch).argmax(-1) == batch.options.gold  # type: ignore[union-attr]
    sums = Accuracy(loss)(batch)
    assert sums.per_example.tolist() == [-float(r) for r in right]
    with pytest.raises(DataError, match="accuracy belongs to classification tasks"):
        Accuracy(loss)(lm_batch())


def test_built_in_scores_judge_as_the_evaluation_does() -> None:
    assert judge("exact_match")("so it is #### 4", ITEM) == 1.0
    assert judge("exact_match")("so it is #### 5", ITEM) == 0.0
    assert 0 < judge("f1")("4 apples", ITEM) < 1
    with pytest.raises(DataError, match="exact_match needs a dataset with a verifier"):
        judge("exact_match")("4", EvalItem((5,), "", ("4",), None))


def test_a_function_gets_the_prompt_and_the_references_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_function(
        tmp_path, monkeypatch, "def score(text, prompt, references):\n    return len(prompt + references[0])\n"
    )
    assert judge("my_score:score")("", ITEM) == len("What is 2 + 2?4")


def test_unusable_functions_are_refused_with_what_would_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_function(tmp_path, monkeypatch, "def nan(text):\n    return float('nan')\n")
    with pytest.raises(ConfigError, match=r"my_score:absent cannot be used.*name a function score\(text\)"):
        judge("my_score:absent")
    with pytest.raises(ConfigError, match="returned nan for the answer 'x'; return a number"):
        judge("my_score:nan")("x", ITEM)
    with pytest.raises(ValidationError, match="is no score; write module:function, or one of accuracy"):
        ScoreLoss(function="accuracies")


def test_rows_without_a_prompt_are_refused() -> None:
    loss = ScoredAnswers(tiny_model(), tiny_tokenizer(), ScoreLoss(function="f1"))
    with pytest.raises(DataError, match="needs a prompt to answer in every row"):
        loss(lm_batch())


@pytest.mark.parametrize("kind", ["lora", "full", "auto"])
def test_methods_that_need_a_gradient_refuse_a_score(kind: str) -> None:
    with pytest.raises(
        ValidationError, match=f"score has no gradient, and method.kind: {kind} needs one; use method: zo"
    ):
        run_config(method={"kind": kind}, loss={"kind": "score", "function": "f1"})


def test_a_run_trains_on_a_score_from_its_config(tmp_path: Path) -> None:
    rows = [{"prompt": f"the cat {n} sat on", "completion": " the mat"} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {"model": str(save_tiny(tmp_path / "model")), "dtype": "fp32", "device": "cpu"}
    config |= {"dataset": [{"format": "completion", "path": str(tmp_path / "rows.jsonl")}], "max_steps": 2}
    config |= {"method": {"kind": "zo", "algorithm": "mezo"}, "output_dir": str(tmp_path / "run")}
    config |= {"loss": {"kind": "score", "function": "f1", "max_new_tokens": 3}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    seen: list[float] = []
    train(
        load_run(tmp_path / "run.yaml").config,
        sink=lambda event: seen.append(event.loss) if isinstance(event, StepDone) else None,
    )
    assert len(seen) == 2
    assert all(-1 <= loss <= 0 for loss in seen)
