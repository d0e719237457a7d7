"""The Ray engine on a real cluster of several nodes, each with its own scheduler and workers, on this machine."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lowmem.batch.ray_runner import RayEngine
from lowmem.config.load import load_run
from lowmem.errors import ConfigError
from lowmem.jobs.train import train
from tests.batch.batches import GIB, run, write
from tests.jobs.test_train import write_config
from tests.models.tiny import save_tiny

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = [
    pytest.mark.slow,
    # Ray's own start leaves files and sockets to the collector; nothing of ours is among them.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that runs nothing and two nodes of one CPU and 1 GiB."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "memory": GIB // 8})
    made.nodes = [made.add_node(num_cpus=1, memory=GIB, object_store_memory=80 * 2**20) for _ in range(2)]
    yield made
    ray.shutdown()
    made.shutdown()


def test_the_same_file_gives_the_same_table_as_the_local_runner(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
jobs:
  a: {command: 'echo "{\\"value\\": $SEED}"', env: {SEED: "${matrix.s}"}, matrix: {s: [1, 2, 3]}, memory: 600MiB}
  b: {command: exit 3, retries: 1}
  c: {command: "true", after: b}
  d: {command: "test -n $LOWMEM_OUTPUT_DIR; pwd > ${output_dir}/where", after: a}
"""
    tables = []
    for engine in ("local", "ray"):
        (tmp_path / engine).mkdir()
        monkeypatch.chdir(tmp_path / engine)
        path = write(tmp_path / engine, text)
        if engine == "ray":
            with RayEngine(cluster.address, gpu_bytes=GIB) as nodes:
                assert (nodes.slots, nodes.largest) == (2, GIB)
                assert nodes.memory >= 2 * GIB
                done = run(path, engine=nodes, budget=nodes.memory, max_parallel=nodes.slots)
        else:
            done = run(path)
        tables.append({name: (e.state, e.result, e.exit_code, e.error, e.attempts) for name, e in done.items()})
        assert (tmp_path / engine / "runs/jobs/d/where").read_text().strip() == str(tmp_path / engine)
    assert tables[0] == tables[1]
    assert Counter(row[0] for row in tables[0].values()) == {"done": 4, "failed": 1, "blocked": 1}


def test_a_node_killed_in_the_middle_of_a_job_is_survived(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job counts to 30 and keeps its count on disk, as training keeps checkpoints."""
    monkeypatch.chdir(tmp_path)
    count = (
        "for i in $(seq $(( $(cat count 2>/dev/null || echo 0) + 1 )) 30); do echo $$ $i >> steps; echo $i > count; "
        'sleep 0.1; done; echo "{\\"count\\": $(cat count)}"'
    )
    path = write(tmp_path, f"jobs: {{a: {{command: '{count}', memory: 600MiB}}}}")
    killed: list[float] = []

    def look(entries: Any) -> None:
        progress = Path("count").read_text().strip() if Path("count").exists() else ""
        if not killed and progress.isdigit() and int(progress) >= 5:
            busy = [n for n in cluster.nodes if _pids_below(n) & {int(Path("steps").read_text().split()[0])}]
            cluster.remove_node(busy[0], allow_graceful=False)
            killed.append(time.monotonic())

    with RayEngine(cluster.address, gpu_bytes=GIB) as nodes:
        done = run(path, engine=nodes, budget=nodes.memory, max_parallel=2, watch=look)["a"]
    assert killed
    assert (done.state, done.result, done.attempts, done.failures) == ("done", {"count": 30}, 2, 0)
    steps = [line.split() for line in Path("steps").read_text().splitlines()]
    assert len({pid for pid, _ in steps}) == 2, "two processes worked on it"
    numbers = [int(number) for _, number in steps]
    assert sorted(set(numbers)) == list(range(1, 31))
    assert len(numbers) <= 31, "the second went on where the first was, and never beside it"


def test_a_training_on_a_node_that_is_killed_ends_with_the_weights_of_an_undisturbed_one(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other node goes on from the newest checkpoint in the shared run folder, bit for bit."""
    monkeypatch.chdir(tmp_path)
    settings = {"max_steps": 900, "save_steps": 30, "eval_steps": None, "logging_steps": 100}
    config = write_config(tmp_path, save_tiny(tmp_path / "base"), **settings)
    train(load_run(config, ["output_dir=alone"]).config, sink=lambda event: None)
    path = write(tmp_path, f"jobs: {{a: {{train: {config}, memory: 600MiB, output_dir: shared}}}}")
    killed: list[int] = []

    def look(entries: Any) -> None:
        saved = list(Path("shared/checkpoints").glob("step-*")) if Path("shared/checkpoints").is_dir() else []
        if not killed and saved and not Path("shared/model").exists():
            busy = [node for node in cluster.nodes if _trains(_pids_below(node))]
            if busy:
                cluster.remove_node(busy[0], allow_graceful=False)
                killed.append(len(saved))

    with RayEngine(cluster.address, gpu_bytes=GIB) as nodes:
        done = run(path, engine=nodes, budget=nodes.memory, max_parallel=1, watch=look)["a"]
    assert killed
    assert (done.state, done.attempts) == ("done", 2)
    expected, found = (load_file(Path(name) / "model" / "adapter_model.safetensors") for name in ("alone", "shared"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def _trains(pids: set[int]) -> bool:
    """Whether one of these processes is a `lowmem train`."""
    commands = [path.read_bytes() for pid in pids if (path := Path(f"/proc/{pid}/cmdline")).exists()]
    return any(b"lowmem\0train" in command for command in commands)


def _pids_below(node: Any) -> set[int]:
    """Numbers of all processes that descend from the node's."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "stat").exists():
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
    roots = {info.process.pid for infos in node.all_processes.values() for info in infos}
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def test_a_cluster_that_is_not_there_is_named() -> None:
    for address, why in (("127.0.0.1:1", "Connection refused"), ("nowhere", "invalid literal")):
        with pytest.raises(ConfigError, match=rf"--address {address}: there is no Ray cluster to join .*{why}"):
            RayEngine(address, gpu_bytes=GIB)
