from __future__ import annotations

from pathlib import Path

import pytest

from lowmem.batch.matrix import Job, expand
from lowmem.batch.spec import load_batch
from lowmem.errors import ConfigError
from tests.batch.batches import write


def jobs(folder: Path, text: str) -> dict[str, Job]:
    return {job.name: job for job in expand(load_batch(write(folder, text)))}


def test_a_matrix_is_every_combination_and_a_zip_pairs(tmp_path: Path) -> None:
    text = (
        "jobs:\n  t:\n    train: x\n    matrix: {seed: [1, 2], method.lora_r: [4, 8]}\n    zip: {a: [x, y], b: [1, 2]}"
    )
    made = jobs(tmp_path, text)
    assert len(made) == 8
    assert made["t-seed=1-lora_r=8-a=y-b=2"].sets == ("seed=1", "method.lora_r=8", 'a="y"', "b=2")


def test_one_that_mentions_another_follows_each_of_it_and_after_waits_for_all(tmp_path: Path) -> None:
    text = """
jobs:
  t: {train: x, matrix: {seed: [1, 2]}}
  e: {eval: "${jobs.t.output_dir}", matrix: {limit: [5, 6]}, args: {limit: "${matrix.limit}"}}
  all: {command: "true", after: e}
"""
    made = jobs(tmp_path, text)
    assert made["e-seed=2-limit=5"].target == "runs/jobs/t-seed=2"
    assert made["e-seed=2-limit=5"].after == ("t-seed=2",)
    assert made["e-seed=2-limit=5"].args == ("--limit", "5")
    assert made["e-seed=2-limit=5"].sets == (), "a key that is mentioned does its work there"
    assert len(made["all"].after) == 4


def test_two_that_share_an_ancestor_meet_where_they_agree(tmp_path: Path) -> None:
    text = """
jobs:
  t: {train: x, matrix: {seed: [1, 2]}}
  a: {eval: "${jobs.t.output_dir}"}
  b: {eval: "${jobs.t.output_dir}", after: a}
  both: {command: "diff ${jobs.a.output_dir} ${jobs.b.output_dir}"}
"""
    made = jobs(tmp_path, text)
    assert made["both-seed=1"].target == "diff runs/jobs/a-seed=1 runs/jobs/b-seed=1"
    assert made["b-seed=1"].after == ("t-seed=1", "a-seed=1")
    assert len(made) == 8


def test_defaults_stand_behind_what_a_job_says(tmp_path: Path) -> None:
    text = """
defaults: {set: {max_steps: 5, method: {lora_r: 4}}, retries: 2, timeout: 1h, tags: [x], env: {A: "1"}, memory: 1GiB}
jobs:
  t: {train: x, set: {method.lora_r: 16}, retries: 0, tags: [y]}
  e: {eval: m}
"""
    made = jobs(tmp_path, text)
    assert made["t"].sets == ("max_steps=5", "method.lora_r=16")
    assert (made["t"].retries, made["e"].retries) == (0, 2)
    assert (made["t"].timeout, made["t"].tags, made["t"].memory) == (3600, ("x", "y"), 2**30)
    assert made["e"].sets == (), "what is trained is no business of an eval"
    assert made["e"].env == {"A": "1"}


def test_options_are_typed_as_people_type_them(tmp_path: Path) -> None:
    text = "jobs:\n  g: {generate: m, args: {raw: true, max_new_tokens: 5, stop: [a, b], seed: null, x: false}}"
    assert jobs(tmp_path, text)["g"].args == ("--raw", "--max-new-tokens", "5", "--stop", "a", "--stop", "b")
    text = "jobs:\n  g: {generate: m, args: ['12-5=?', --raw]}"
    assert jobs(tmp_path, text)["g"].args == ("12-5=?", "--raw")


def test_the_order_of_the_file_is_kept_though_others_wait(tmp_path: Path) -> None:
    text = "jobs:\n  last: {command: x, after: first}\n  first: {command: y}"
    assert list(jobs(tmp_path, text)) == ["last", "first"]


def test_a_name_is_fit_for_a_folder(tmp_path: Path) -> None:
    text = "jobs:\n  t: {train: x, matrix: {model: [org/name, '../../etc'], optimizer: [{kind: sgd}]}}"
    assert list(jobs(tmp_path, text)) == ["t-model=org_name-optimizer=sgd", "t-model=.._.._etc-optimizer=sgd"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {train: x, after: bb}\n  b: {train: y}", "jobs.a: waits for bb, which is no job; did you mean b"),
        ("a: {train: x, after: b}\n  b: {train: y, after: a}", "jobs.a, b: wait for each other"),
        ("a: {train: x, after: a}", "jobs.a: wait for each other"),
        ("a: {train: '${job.b}'}", r"jobs.a: \$\{job.b\} means nothing; write"),
        ("a: {train: x, set: {s: '${matrix.seed}'}}", r"jobs.a: \$\{matrix.seed\} names no key of this job's matrix"),
        ("a: {train: x, matrix: {s: [1, 1]}}", "jobs.a: makes two jobs named a-s=1; vary them more"),
        ("a: {train: x, matrix: {s: [1, 2]}, output_dir: o}", "jobs.a.output_dir: o is the folder of a-s=1 too"),
        ("a: {generate: x, matrix: {s: [1]}}", "jobs.a: generate takes no key=value, so s would change nothing"),
        ("a: {command: x, set: {s: 1}}", "jobs.a: command takes no key=value, so s would change nothing"),
        (
            "a: {train: x, matrix: {s: [1]}}\n  b: {eval: '${jobs.a.output_dir}', matrix: {s: [2]}}",
            "jobs.b: s is varied by a already",
        ),
    ],
)
def test_references_that_lead_nowhere_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        jobs(tmp_path, f"jobs:\n  {text}\n")
