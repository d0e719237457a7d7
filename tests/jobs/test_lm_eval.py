"""lm-eval's tasks on our engine: local task files, local data, and our own numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from lowmem.data.batch import IGNORE
from lowmem.data.collate import collate
from lowmem.data.samples import Example, TokenRow
from lowmem.errors import ConfigError
from lowmem.evaluate.perplexity import LossTally
from lowmem.events import Event
from lowmem.generate.generate import generate_batch
from lowmem.jobs.lm_eval import evaluate_tasks
from lowmem.jobs.target import open_target
from lowmem.models.loss import ModelLoss
from tests.models.tiny import save_tiny

TEXTS = ["the cat sat on the mat", "one two three four five, what a day", "the dog ran after it and " * 8 + "slept"]


def ignore(event: Event) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and three task files over local rows."""
    folder = tmp_path_factory.mktemp("lm_eval")
    save_tiny(folder / "model")
    rows = [{"text": text, "choices": [" mat", " dog"], "answer": n % 2} for n, text in enumerate(TEXTS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(folder / "rows.jsonl")},
        "test_split": "train",
        "doc_to_text": "{{text}}",
    }
    tasks = {
        "local_choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
        "local_perplexity": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [
                {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
            ],
        },
        "local_words": {
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
    }
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **shared, **task}))
    return folder


def run(folder: Path, *tasks: str) -> dict[str, dict[str, float]]:
    return evaluate_tasks(str(folder / "model"), tasks, device="cpu", dtype="fp32", sink=ignore)


def test_task_files_run_on_local_data(folder: Path) -> None:
    found = run(folder, str(folder / "local_choice.yaml"), str(folder / "local_words.yaml"))
    assert set(found) == {"local_choice", "local_words"}
    assert 0 <= found["local_choice"]["acc"] <= 1
    assert found["local_words"]["exact_match"] == 0


def test_perplexity_is_that_of_our_own_loss(folder: Path) -> None:
    """Every token once, after the end-of-text token: lm-eval's rolling windows, and ours by hand (no text is longer
    than the model's context of 128)."""
    opened = open_target(str(folder / "model"), sink=ignore, device="cpu", dtype="fp32")
    tally, loss = LossTally(), ModelLoss(opened.loaded.model)
    with torch.no_grad():
        for text in TEXTS:
            ids = opened.loaded.tokenizer(text)["input_ids"]
            row = TokenRow((1, *ids), (IGNORE, *ids))
            tally.add(loss(collate([Example((row,), "here")], pad_id=0)))
    tokens = sum(len(opened.loaded.tokenizer(text)["input_ids"]) for text in TEXTS)
    words = sum(len(text.split()) for text in TEXTS)
    found = run(folder, str(folder / "local_perplexity.yaml"))["local_perplexity"]["word_perplexity"]
    assert math.log(found) == pytest.approx(tally.mean * tokens / words, rel=1e-5)


def test_generation_is_the_engines(folder: Path) -> None:
    from lm_eval.api.instance import Instance

    from lowmem.config.generation import GenerationConfig
    from lowmem.evaluate.harness import HarnessModel

    opened = open_target(str(folder / "model"), sink=ignore, device="cpu", dtype="fp32")
    model, tokenizer = opened.loaded.model, opened.loaded.tokenizer
    ours = generate_batch(model, tokenizer, TEXTS[:2], GenerationConfig(max_new_tokens=6))
    given = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    asked = [
        Instance(request_type="generate_until", doc={}, arguments=(text, given), idx=index)
        for index, text in enumerate(TEXTS[:2])
    ]
    assert HarnessModel(model, tokenizer, slots=2).generate_until(asked) == ours
    asked[0].arguments = ("x", {"num_beams": 4})
    with pytest.raises(ConfigError, match="generation_kwargs: num_beams is not supported"):
        HarnessModel(model, tokenizer, slots=2).generate_until(asked)


@pytest.mark.slow  # lm-eval reads every task file that it brings
def test_a_name_that_lm_eval_does_not_know_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--lm-eval no_such_task: lm-eval knows no such task"):
        run(folder, "no_such_task")


def test_what_is_no_task_file_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--lm-eval gone.yaml: there is no such file"):
        run(folder, "gone.yaml")
    (tmp_path / "broken.yaml").write_text("task: [")
    with pytest.raises(ConfigError, match="is no YAML"):
        run(folder, str(tmp_path / "broken.yaml"))
    (tmp_path / "other.yaml").write_text("a: !function b.c\n")
    with pytest.raises(ConfigError, match="is no task file, it has no `task:`"):
        run(folder, str(tmp_path / "other.yaml"))


def test_a_missing_harness_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lowmem.evaluate.harness", None)
    with pytest.raises(ConfigError, match=r"which is not installed: pip install 'lowmem\[lm-eval\]'"):
        run(folder, "arc_easy")
