from __future__ import annotations

from pathlib import Path

import pytest

from lowmem.batch.task import command_line, prepare_folder
from lowmem.errors import BudgetError, ConfigError
from lowmem.events import Event
from lowmem.jobs import batch
from lowmem.jobs.init import BATCH
from tests.batch.batches import entry, write

TINY = "set: {max_steps: 2, eval_limit: 2, eval_generate: false, num_threads: 1}"


def ignore(_: Event) -> None:
    pass


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def prepared(folder: Path, text: str, **keys: str) -> batch.Prepared:
    return batch.prepare(write(folder, text), sink=ignore, **keys)


def test_the_batch_that_init_prints_is_three_rates_in_under_ten_lines(tmp_path: Path) -> None:
    assert len(BATCH.splitlines()) < 10
    tasks = prepared(tmp_path, BATCH).tasks
    rates = [task.config for name, task in tasks.items() if name.startswith("tune")]
    assert ["learning_rate: 0.001" in str(text) for text in rates] == [True, False, False]
    assert len(tasks) == 6


def test_every_job_is_planned_and_what_uses_a_run_needs_as_much(tmp_path: Path) -> None:
    text = """
jobs:
  t: {train: tiny-demo}
  more: {train: tiny-demo, set: {model: "${jobs.t.output_dir}"}}
  e: {eval: "${jobs.more.output_dir}"}
  direct: {eval: tiny-reasoner, args: {dataset: add}}
  said: {command: x, memory: 1GiB}
  free: {command: x}
  p: {plan: tiny-demo}
"""
    need = {name: task.need for name, task in prepared(tmp_path, text).tasks.items()}
    assert need["t"] == need["more"] == need["e"]
    assert 2**28 < (need["direct"] or 0) < (need["t"] or 0) < 2**30
    assert (need["said"], need["free"], need["p"]) == (2**30, None, None)


def test_a_job_that_cannot_fit_is_refused_with_its_bill_and_the_others_run_if_asked(tmp_path: Path) -> None:
    text = """
memory_budget: 800MiB
jobs:
  big: {train: tiny-demo}
  small: {command: "true"}
  behind: {eval: "${jobs.big.output_dir}"}
"""
    ready = prepared(tmp_path, text)
    with pytest.raises(
        BudgetError, match=r"big: needs 8.* of 800.00 MiB \(the process itself .*, forward .*\)[\s\S]*behind: "
    ):
        batch.run(ready, watch=lambda _: None)
    assert not (tmp_path / "jobs.batch").exists(), "nothing was started"
    states = {e.name: e.state for e in batch.run(ready, watch=lambda _: None, partly=True)}
    assert states == {"big": "too_large", "small": "done", "behind": "too_large"}
    assert {t.job.name for t in prepared(tmp_path, text, budget="2GiB").too_large} == set()


@pytest.mark.slow
def test_a_budget_of_the_run_itself_is_planned_as_train_would(tmp_path: Path) -> None:
    text = "jobs:\n  a: {train: tiny-demo, set: {memory_budget: 700MiB}}\n  b: {train: tiny-demo, set: {method: auto}}"
    ready = prepared(tmp_path, text, budget="1GiB")
    assert ready.tasks["a"].too_large is not None
    assert "fits 700.00 MiB" in ready.tasks["a"].too_large
    assert "memory_budget: '1073741824'" in str(ready.tasks["b"].config), "what is left open is planned for the batch"


def test_the_problems_of_all_jobs_are_told_before_any_starts(tmp_path: Path) -> None:
    text = "jobs:\n  a: {train: tiny-dmo}\n  b: {train: tiny-demo, set: {lora_rr: 3}}"
    with pytest.raises(ConfigError) as caught:
        prepared(tmp_path, text)
    assert "a: tiny-dmo: there is neither a file nor a preset of this name; did you mean tiny-demo?" in str(
        caught.value
    )
    assert "b: command line: lora_rr: is not a key" in str(caught.value)


def test_a_config_beside_the_batch_is_found(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", "model: tiny-reasoner\ndataset: {format: procedural, family: add}\n", "run.yaml")
    path = write(tmp_path / "inner", "jobs:\n  a: {train: run.yaml}")
    assert "family: add" in str(batch.prepare(path, sink=ignore).tasks["a"].config)


def test_a_digest_changes_with_what_is_done_and_with_what_was_done_before(tmp_path: Path) -> None:
    text = """
jobs:
  a: {train: tiny-demo, set: {seed: 1}, retries: 1}
  b: {eval: "${jobs.a.output_dir}"}
  c: {command: x}
"""
    first = {name: task.digest for name, task in prepared(tmp_path, text).tasks.items()}
    same = prepared(tmp_path, text.replace("retries: 1", "retries: 2, tags: [x], timeout: 3h, memory: 1GiB")).tasks
    assert {name: task.digest for name, task in same.items()} == first
    other = {name: task.digest for name, task in prepared(tmp_path, text.replace("seed: 1", "seed: 2")).tasks.items()}
    assert [name for name in first if first[name] != other[name]] == ["a", "b"]


def test_training_goes_on_where_it_was_and_a_changed_run_starts_afresh(tmp_path: Path) -> None:
    task = prepared(tmp_path, "jobs:\n  a: {train: tiny-demo}").tasks["a"]
    folder = tmp_path / "runs/jobs/a"
    fresh = entry("a", folder=str(folder))
    assert "--resume" not in command_line(task, fresh, tmp_path / "attempt")
    folder.mkdir(parents=True)
    (folder / ".partial-config.yaml").touch()
    prepare_folder(task, fresh, [])
    assert not any(folder.iterdir()), "killed while it wrote its first file"
    (folder / "config.yaml").touch()
    again = entry("a", folder=str(folder), attempts=1)
    prepare_folder(task, again, [{"digest": task.digest}])
    line = command_line(task, again, tmp_path / "attempt")
    assert line[-2:] == ["--resume", "--json"]
    assert line[3:5] == ["train", str(tmp_path / "attempt/config.yaml")]
    prepare_folder(task, again, [{"digest": "what it was before"}])
    assert not folder.exists()
    folder.mkdir()
    (folder / "config.yaml").touch()
    prepare_folder(task, fresh, [])
    assert "--resume" not in command_line(task, fresh, tmp_path / "attempt"), "a folder that is not ours is refused"


def test_a_verb_that_writes_a_folder_is_told_which_and_replaces_only_its_own(tmp_path: Path) -> None:
    text = "jobs:\n  t: {train: tiny-demo, memory: 1MiB}\n  m: {merge: '${jobs.t.output_dir}', args: {dtype: fp32}}"
    task = prepared(tmp_path, text).tasks["m"]
    folder = tmp_path / "runs/jobs/m"
    waiting = entry("m", folder=str(folder))
    words = ["merge", "runs/jobs/t", "--output", "runs/jobs/m", "--dtype", "fp32", "--json"]
    assert command_line(task, waiting, tmp_path / "attempt")[3:] == words
    folder.mkdir(parents=True)
    prepare_folder(task, waiting, [{"digest": task.digest, "outcome": "failed"}])
    assert folder.is_dir(), "it may be somebody else's"
    prepare_folder(
        task, waiting, [{"digest": "before", "outcome": "done"}, {"digest": task.digest, "outcome": "failed"}]
    )
    assert not folder.exists()


def test_names_patterns_and_tags_choose_jobs() -> None:
    entries = [entry("tune-a", tags=("quick",)), entry("tune-b"), entry("check")]
    assert [e.name for e in batch.select(entries, ["tune-*"])] == ["tune-a", "tune-b"]
    assert [e.name for e in batch.select(entries, ["tag:quick", "check", "check"])] == ["tune-a", "check"]
    with pytest.raises(ConfigError, match="chek: is no job; did you mean check"):
        batch.select(entries, ["chek"])


def test_failed_jobs_and_those_behind_them_run_again_when_asked(tmp_path: Path) -> None:
    text = """
jobs:
  a: {command: test -e there}
  b: {command: "true", after: a}
  c: {command: "true", after: b}
  d: {command: "true"}
"""
    ready = prepared(tmp_path, text)
    path = ready.file.path
    with pytest.raises(ConfigError, match=r"jobs.yaml: was never run, so nothing is known of it; start it with"):
        batch.status(path)
    batch.run(ready, watch=lambda _: None)
    (tmp_path / "there").touch()
    assert {e.state for e in batch.run(ready, watch=lambda _: None)} == {"failed", "blocked", "done"}, "not by itself"
    assert batch.retry(path, [], failed=True) == ["a", "b", "c"]
    assert {e.state for e in batch.run(ready, watch=lambda _: None)} == {"done"}
    with pytest.raises(ConfigError, match="batch retry: nothing to retry"):
        batch.retry(path, ["d"], failed=True)
    with pytest.raises(ConfigError, match="d: is neither waiting nor running"):
        batch.cancel(path, ["d"])
    with pytest.raises(ConfigError, match="d: has no log of attempt 7; it was started 1 times"):
        batch.log_path(path, "d", attempt=7)


@pytest.mark.slow
def test_a_trained_run_is_evaluated_and_generated_from(tmp_path: Path) -> None:
    text = f"""
jobs:
  t: {{train: tiny-demo, {TINY}}}
  e: {{eval: "${{jobs.t.output_dir}}", args: {{limit: 2}}, set: {{eval_generate: false}}}}
  g: {{generate: "${{jobs.t.output_dir}}", args: ["1+2=?", --max-new-tokens, "4"]}}
"""
    done = {e.name: e for e in batch.run(prepared(tmp_path, text), watch=lambda _: None)}
    assert {e.state for e in done.values()} == {"done"}, [e.error for e in done.values()]
    assert done["t"].result is not None
    assert done["t"].result["steps"] == 2
    assert done["e"].result is not None
    assert done["e"].result.keys() == done["t"].result["after"].keys()
    for e in (done["t"], done["e"]):
        assert 2**28 < (e.peak_bytes or 0) <= (e.predicted_bytes or 0) * 1.02
