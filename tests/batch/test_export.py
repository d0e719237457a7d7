from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from lowmem.batch.export import skypilot, slurm
from lowmem.batch.spec import Search
from lowmem.batch.task import SearchOrder, Task
from lowmem.errors import ConfigError
from tests.batch.batches import GIB, job

SPACE = Search(space={"learning_rate": {"log_uniform": (1e-5, 1e-2)}})


def task(
    name: str, *, config: str | None = None, need: int | None = None, search: bool = False, **keys: object
) -> Task:
    order = SearchOrder("", "", SPACE.model_dump(mode="json"), 1, None, 1) if search else None
    return Task(job(name, **keys), config, "d", need, None, order)


def batch() -> dict[str, Task]:
    tasks = [
        task("t-a=1", kind="train", target="x", config="model: m\n", need=3 * GIB + 1, timeout=5400.0),
        task("alone", target=("echo", "two words"), env={"A": "it's"}),
        task("e", kind="eval", target="runs/t-a=1", args=("--limit", "5"), after=("t-a=1",)),
    ]
    return {one.job.name: one for one in tasks}


def test_slurm_gets_an_array_for_each_level_of_the_dependencies(tmp_path: Path) -> None:
    files = slurm(batch(), name="mine", gpus=0)
    assert set(files) == {"configs/t-a=1.yaml", "level-0.sbatch", "level-1.sbatch", "submit.sh"}
    assert "#SBATCH --array=0-1\n" in files["level-0.sbatch"]
    assert "#SBATCH --mem=3072M\n" in files["level-0.sbatch"]
    assert "#SBATCH --time=1440\n" in files["level-0.sbatch"]
    assert (
        "lowmem train configs/t-a=1.yaml $(test -f runs/t-a=1/config.yaml && echo --resume" in files["level-0.sbatch"]
    )
    assert "#SBATCH --gpus=2\n" in slurm(batch(), name="mine", gpus=2)["level-1.sbatch"]
    for name, text in files.items():
        if not name.startswith("configs"):
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_the_scripts_do_what_the_batch_does_under_a_pretended_slurm(tmp_path: Path) -> None:
    """`sbatch` is played by a shell that runs every index of the array, and `lowmem` by one that says its arguments."""
    for name, text in slurm(batch(), name="mine", gpus=0).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    tools = tmp_path / "bin"
    tools.mkdir()
    sbatch = """
for script; do true; done
for index in $(seq $(grep -o 'array=[0-9-]*' $script | tr -dc '0-9-' | tr - ' ')); do
  SLURM_ARRAY_TASK_ID=$index bash $script >> said
done
echo $# >> calls
echo 77"""
    for name, text in (("sbatch", sbatch), ("lowmem", 'echo "lowmem $*"')):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    path = f"{tools}:/usr/bin:/bin"
    done = subprocess.run(["bash", "submit.sh"], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True)
    assert done.stdout == "submitted; the last array is 77\n", done.stderr
    assert (tmp_path / "said").read_text().splitlines() == [
        "lowmem train configs/t-a=1.yaml",
        "two words",
        "lowmem eval runs/t-a=1 --limit 5",
    ]
    assert (tmp_path / "calls").read_text().split() == ["2", "3"], "the second array waits for the first"


def test_skypilot_gets_a_pipeline_for_jobs_that_depend_on_each_other() -> None:
    files = skypilot(batch(), name="mine", gpu=None)
    assert set(files) == {"configs/t-a=1.yaml", "mine-0.yaml", "mine-1.yaml"}
    head, train, evaluate = yaml.safe_load_all(files["mine-0.yaml"])
    assert head == {"name": "mine-0"}
    assert (train["name"], train["resources"]) == ("t-a-1", {"cpus": "1+", "memory": "4+"})
    assert evaluate["run"].splitlines()[-1] == "lowmem eval runs/t-a=1 --limit 5"
    (alone,) = yaml.safe_load_all(files["mine-1.yaml"])
    assert alone["envs"] == {"A": "it's"}
    (alone,) = yaml.safe_load_all(skypilot(batch(), name="mine", gpu="A100:1")["mine-1.yaml"])
    assert alone["resources"] == {"accelerators": "A100:1"}


@pytest.mark.parametrize("write", [lambda t: slurm(t, name="x", gpus=0), lambda t: skypilot(t, name="x", gpu=None)])
def test_a_search_is_refused(write: object) -> None:
    assert callable(write)
    with pytest.raises(ConfigError, match="batch export: s is a search, which Ray runs"):
        write({"s": task("s", search=True)})
