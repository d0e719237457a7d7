from __future__ import annotations

import re
from pathlib import Path

import pytest

from lowmem.batch.spec import load_batch, parse_seconds
from lowmem.errors import ConfigError
from tests.batch.batches import write


def problems(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_batch(write(folder, text))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), (90, 90), ("1.5s", 1.5), ("30m", 1800), ("2 h", 7200), ("1d", 86400)]
)
def test_durations_are_read(text: str | int, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["soon", "0", "-3s", "3 weeks"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration; write for example 90s"):
        parse_seconds(text)


def test_a_job_says_what_it_does_and_where_it_stands(tmp_path: Path) -> None:
    file = load_batch(write(tmp_path, "jobs:\n  a:\n    train: tiny-demo\n  b:\n    command: [echo, hi]\n"))
    assert (file.spec.jobs["a"].kind, file.spec.jobs["a"].target) == ("train", "tiny-demo")
    assert file.spec.jobs["b"].target == ("echo", "hi")
    assert file.lines["b"].endswith("jobs.yaml:4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs:\n  a: {trian: x}", "jobs.yaml:2: jobs.a: does not say what to do; write one of .*; did you mean train"),
        ("jobs:\n  a: {train: x, eval: y}", "jobs.a: says train and eval; write one of"),
        ("jobs:\n  a: {train: }", "jobs.a.train: is empty; say what it works on"),
        ("jobs:\n  a: {train: [x, y]}", "jobs.a.train: is a list; name one config, model or run"),
        ("jobs:\n  'a b': {train: x}", "jobs.a b: a name is made of letters, digits, _ and -"),
        ("jobs:\n  a: {train: x, retry: 3}", "jobs.a.retry: is not a key; did you mean retries"),
        ("jobs:\n  a: {train: x, retries: -1}", "jobs.a.retries: input should be greater than or equal to 0"),
        ("jobs:\n  a:\n    train: x\n    timeout: soon", "jobs.yaml:4: jobs.a.timeout: 'soon' is not a duration"),
        ("jobs:\n  a: {train: x, memory: much}", "jobs.a.memory: 'much' is not a size"),
        ("jobs:\n  a: {train: x, matrix: {lr: []}}", "jobs.a.matrix.lr: tuple should have at least 1 item"),
        ("jobs:\n  a: {train: x, zip: {a: [1, 2], b: [3]}}", "pairs its lists entry by entry.*; a has 2, b has 1"),
        ("jobs:\n  a: {train: x, search: {space: {}}}", "space: is empty; name at least one key"),
        ("jobs:\n  a: {train: x, search: {space: {lr: {normal: [0, 1]}}}}", "lr: is drawn by one of choice, uniform"),
        ("memory_budget: lots\njobs:\n  a: {train: x}", "memory_budget: 'lots' is not a size"),
        ("job:\n  a: {train: x}", "job: is not a key; did you mean jobs"),
        ("jobs: {}", "jobs: dictionary should have at least 1 item"),
        ("jobs:\n", "jobs: input should be a valid dictionary"),
        ("defaults: {sets: {a: 1}}\njobs:\n  a: {train: x}", "defaults.sets: is not a key; did you mean set"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert re.search(message, problems(tmp_path, text)), problems(tmp_path, text)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = "jobs:\n  a: {trian: x}\n  b: {train: y, retries: many}\n"
    assert len(problems(tmp_path, text).splitlines()) == 3
