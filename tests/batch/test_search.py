"""A search by Ray Tune over real trainings of the embedded model."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowmem.errors import ConfigError
from lowmem.events import Event
from lowmem.jobs import batch
from lowmem.jobs.report import subjects
from tests.batch.batches import write

pytest.importorskip("ray", reason="the extra `ray` is not installed")

RUN = "max_steps: 4, eval_steps: 1, eval_limit: 4, eval_generate: false, num_threads: 1"
SPACE = "{learning_rate: {choice: [1e-7, 1e-2]}, method.lora_r: {integer: [4, 8]}}"


def ignore(_: Event) -> None:
    pass


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_search_finds_the_rate_that_learns_and_every_trial_is_a_run(tmp_path: Path) -> None:
    search = f"search: {{space: {SPACE}, trials: 3, grace: 1, reduction: 2, seed: 3}}"
    path = write(
        tmp_path, f"jobs:\n  tune:\n    train: tiny-demo\n    memory: 900MiB\n    set: {{{RUN}}}\n    {search}\n"
    )
    (done,) = batch.run(batch.prepare(path, sink=ignore), watch=lambda _: None)
    assert done.state == "done", done.error
    assert done.result is not None
    trials = done.result["trials"]
    assert [trial["name"] for trial in trials] == ["000", "001", "002"]
    assert {trial["settings"]["learning_rate"] for trial in trials} == {1e-7, 1e-2}, "the seed draws both"
    assert done.result["best"]["learning_rate"] == 1e-2
    assert all(trial["error"] is None for trial in trials)
    assert sum(trial["stopped"] for trial in trials) <= 2
    rows = {subject.name: subject for subject in subjects([path])}
    assert rows["tune/000"].settings["method.lora_r"] == trials[0]["settings"]["method.lora_r"]
    assert Path(done.result["best_trial"], "model").is_dir(), "the best is a whole run"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"train: tiny-demo, search: {{space: {SPACE}}}",
            "a: search: trials are judged by their evaluations; set eval",
        ),
        (
            f"eval: m, search: {{space: {SPACE}}}",
            "a: search: eval has no settings to search; it belongs to a train job",
        ),
        (
            f"train: tiny-demo, set: {{{RUN}}}, search: {{space: {{lora_rr: {{choice: [1]}}}}}}",
            "a: command line: lora_rr: is not a key",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        batch.prepare(write(tmp_path, f"jobs:\n  a: {{{text}}}"), sink=ignore)
