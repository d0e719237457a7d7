from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lowmem.events import CheckpointSaved, Event, RunFinished, RunStarted
from lowmem.report.run_folder import PhaseMemory, RunFolder, read_run_folder
from lowmem.report.summary import (
    Change,
    changes,
    count,
    ending,
    facts,
    miss,
    number,
    peak_bytes,
    sentence,
    signed,
    status,
)
from tests.report.runs import STARTED, config, finished_run, judged, records, step, write_run


def run_of(folder: Path, events: Sequence[Event], **settings: Any) -> RunFolder:
    return read_run_folder(write_run(folder / "run", events, run_config=config(**settings)))


def test_every_metric_goes_from_before_to_the_last_evaluation() -> None:
    found = changes(records(finished_run()))
    assert found == [Change("held-out", "loss", 2.0, 1.5), Change("held-out", "exact_match", 0.25, 0.75)]
    assert [change.verdict for change in found] == ["better", "better"]


def test_an_interrupted_run_is_judged_by_its_last_evaluation() -> None:
    assert changes(records(finished_run()[:7]))[0] == Change("held-out", "loss", 2.0, 1.75)


def test_the_weights_that_came_back_at_the_end_have_the_last_word() -> None:
    events = [judged(4, "after:x", loss=3.0), judged(4, "after:x", loss=1.0)]
    assert changes(records(events)) == [Change("x", "loss", None, 1.0)]


def test_a_dataset_name_may_hold_colons() -> None:
    assert changes(records([judged(0, "before:a:b", loss=1.0)])) == [Change("a:b", "loss", 1.0, None)]


@pytest.mark.parametrize(
    ("metric", "before", "after", "verdict", "text"),
    [
        ("loss", 2.0, 1.5, "better", "-0.5 (-25.0%)"),
        ("perplexity", 4.0, 5.0, "worse", "+1 (+25.0%)"),
        ("eval_loss", 2.0, 2.0, "unchanged", "+0 (+0.0%)"),
        ("accuracy", 0.5, 0.75, "better", "+0.25"),
        ("exact_match", 0.5, 0.25, "worse", "-0.25"),
        ("loss", 0.0, 0.5, "worse", "+0.5"),
        ("loss", 2.0, math.nan, "unknown", "–"),
        ("loss", 2.0, None, "unknown", "–"),
        ("loss", None, 2.0, "unknown", "–"),
    ],
)
def test_a_difference_is_judged_in_the_direction_of_its_metric(
    metric: str, before: float | None, after: float | None, verdict: str, text: str
) -> None:
    change = Change("x", metric, before, after)
    assert (change.verdict, signed(change)) == (verdict, text)


def test_one_sentence_says_what_was_trained_on_what_and_what_it_changed(tmp_path: Path) -> None:
    assert sentence(run_of(tmp_path, finished_run())) == (
        "LoRA r=8 + AdamW on tiny-reasoner, trained on gsm8k/train.jsonl: loss on held-out 2 → 1.5 (better)."
    )


def test_the_sentence_tells_the_metric_that_decided(tmp_path: Path) -> None:
    run = run_of(tmp_path, finished_run(), metric_for_best_model="exact_match")
    assert sentence(run).endswith("exact_match on held-out 0.25 → 0.75 (better).")


def test_the_sentence_of_a_run_that_got_nowhere(tmp_path: Path) -> None:
    assert sentence(run_of(tmp_path / "a", finished_run()[:3])).endswith("loss on held-out was 2 before training.")
    assert "No evaluation was recorded" in sentence(run_of(tmp_path / "b", []))
    assert sentence(run_of(tmp_path / "b", [])).startswith("Lora on tiny-reasoner")


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ({"format": "task", "path": "glue", "task": "sst2"}, "glue (sst2)"),
        ({"format": "auto", "path": "openai/gsm8k", "subset": "main"}, "openai/gsm8k (main)"),
        ({"format": "procedural", "family": "arithmetic"}, "arithmetic"),
    ],
)
def test_datasets_are_named_as_people_name_them(tmp_path: Path, dataset: dict[str, str], name: str) -> None:
    assert f"trained on {name}" in sentence(run_of(tmp_path, finished_run(), dataset=[dataset]))


def test_the_end_is_told_as_it_was(tmp_path: Path) -> None:
    events = finished_run()
    early, stopped = RunFinished(2, "early_stopping", 1.0, 1), RunFinished(2, "interrupted", 1.0, 1)
    told = {
        "done": (events, "Completed: step 4 of 4."),
        "early": ([*events[:6], early], "Stopped early after step 2 of 4: the evaluations no longer improved."),
        "stopped": ([*events[:7], stopped], "Interrupted after step 2 of 4. The newest checkpoint is step-00000002"),
        "killed": (events[:8], "Not finished: the last record is of step 3 of 4. The newest checkpoint is step-0000"),
        "young": (events[:4], "Not finished: the last record is of step 1 of 4. No checkpoint was written."),
        "none": ([], "No start was recorded."),
    }
    for name, (given, text) in told.items():
        assert status(run_of(tmp_path / name, given)).startswith(text)


def test_a_resumed_run_has_ended_only_when_its_last_start_has() -> None:
    again = RunStarted("LoRA", 4, 2, 1, 2, resumed_from="step-00000002")
    assert ending(records([*finished_run(), again, step(3)])) is None
    assert ending(records([STARTED, RunFinished(2, "interrupted", 1.0, 1), again, finished_run()[-1]])) == "completed"


def test_the_facts_are_those_of_the_records(tmp_path: Path) -> None:
    found = dict(facts(run_of(tmp_path, finished_run(), memory_budget="1GiB")))
    assert found == {
        "Trained parameters": "1.2 M (0.89% of 134.5 M)",
        "Steps": "4 in 2s",
        "Tokens": "400",
        "Speed": "200 tokens/s",
        "Peak memory": "900.00 MiB of 1.00 GiB",
    }


def test_a_peak_over_the_budget_is_said(tmp_path: Path) -> None:
    found = dict(facts(run_of(tmp_path, finished_run(), memory_budget="512MiB")))
    assert found["Peak memory"] == "900.00 MiB of 512.00 MiB, over budget"


def test_a_budget_that_cannot_be_read_is_shown_as_it_stands(tmp_path: Path) -> None:
    folder = write_run(tmp_path, finished_run())
    (folder / "config.yaml").write_text("memory_budget: plenty\n")
    assert dict(facts(read_run_folder(folder)))["Peak memory"] == "900.00 MiB of plenty"


def test_an_interrupted_run_has_the_peak_of_its_steps(tmp_path: Path) -> None:
    assert peak_bytes(records(finished_run()[:5])) == 802 * 2**20
    assert dict(facts(run_of(tmp_path, [CheckpointSaved(1, "a", "final")]))) == {}


def test_a_miss_is_measured_against_the_prediction() -> None:
    assert miss(PhaseMemory("step", 100, 103)) == pytest.approx(0.03)
    assert miss(PhaseMemory("step", 100, 90)) == pytest.approx(-0.1)
    assert miss(PhaseMemory("step", None, 90)) is None


def test_numbers_written_as_text_are_read_back() -> None:
    assert (number("inf"), number("-inf"), number(3)) == (math.inf, -math.inf, 3.0)
    assert all(math.isnan(number(value)) for value in ("nan", None, "7", [], {}))


@pytest.mark.parametrize(("value", "text"), [(999, "999"), (1000, "1 k"), (134_515_008, "134.5 M"), (7 * 10**9, "7 B")])
def test_counts_are_short(value: int, text: str) -> None:
    assert count(value) == text
