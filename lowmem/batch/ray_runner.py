"""The same jobs on a Ray cluster: the runner, its ledger and its files stay; only the place where a job runs changes.

Jobs are Ray tasks with the memory (or share of a GPU) that was planned, so Ray finds the node. The folder of the batch
and the run folders must be on a disk that all nodes share, under the same path. Workers write files there; the ledger
is written by this driver alone. A task that is lost with its node is no failure of the job: it is started again, and
training goes on from its last checkpoint. On a node, a job dies with the Ray worker that started it, and it is not
started again before its heartbeat has stopped, so two of one job never write into one folder.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lowmem.batch import child
from lowmem.batch.attempt import give_up, is_running, launch, send
from lowmem.batch.task import Task, environment_of, stdout_of
from lowmem.errors import ConfigError


class RayEngine:
    """Jobs as tasks of a cluster: the one at `address`, or one of its own on this machine."""

    def __init__(self, address: str | None, *, gpu_bytes: int) -> None:
        """`gpu_bytes`: memory of one GPU, of which a job takes its share where the cluster has GPUs."""
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--engine ray: ray is not installed; run `pip install 'lowmem[ray]'`") from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # lowmem sends nothing anywhere, nor does it let Ray
        self._ray: Any = ray
        self._gpu_bytes = gpu_bytes
        try:
            if address is not None and address != "auto":
                _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"--address {address}: there is no Ray cluster to join ({error})") from error

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._ray.shutdown()

    @property
    def slots(self) -> int:
        """CPUs of the whole cluster."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    @property
    def memory(self) -> int:
        """Bytes that tasks of the whole cluster may ask for: of its GPUs where it has any."""
        found: Mapping[str, float] = self._ray.cluster_resources()
        gpus = found.get("GPU", 0)
        return int(gpus * self._gpu_bytes) if gpus else int(found.get("memory", 0))

    @property
    def largest(self) -> int:
        """Bytes that a single task may ask for."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any("GPU" in resources for resources in nodes):
            return self._gpu_bytes
        return max((int(resources.get("memory", 0)) for resources in nodes), default=0)

    def start(self, task: Task, folder: Path, argv: Sequence[str]) -> RayTask:
        job = task.job
        order = {
            "folder": str(folder),
            "argv": ["python" if word == sys.executable else word for word in argv],
            "env": {**environment_of(job), "RAY_ADDRESS": self._ray.get_runtime_context().gcs_address},
            "timeout": job.timeout,
            "stdout": stdout_of(job),
            "cwd": os.getcwd(),
        }
        remote = self._ray.remote(run_attempt).options(**self.resources(task), max_retries=0, name=job.name)
        return RayTask(folder, self._ray, remote.remote(order))

    def resources(self, task: Task) -> dict[str, float]:
        """What Ray keeps free for a job: one CPU, and its memory or its share of a GPU. A search only waits for its
        trials, which ask for themselves."""
        if task.search is not None:
            return {"num_cpus": 0}
        need = task.need
        if need is None:
            return {"num_cpus": 1}
        if self._ray.cluster_resources().get("GPU"):
            return {"num_cpus": 1, "num_gpus": min(1.0, round(need / self._gpu_bytes, 3) or 0.001)}
        return {"num_cpus": 1, "memory": need}


def _knock(address: str) -> None:
    """Somebody listens at `host:port`: Ray itself would ask for minutes. Raises `OSError` or `ValueError` if not."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=5).close()


@dataclass
class RayTask:
    """A job on the cluster. Lost with its node, it has no code, and is over once nothing of it moves any more."""

    folder: Path
    ray: Any
    ref: Any
    ended: int | None = None
    lost: bool = False

    def goes_on(self) -> bool:
        if not self.lost and self.ended is None:
            ready, _ = self.ray.wait([self.ref], timeout=0)
            if not ready:
                return True
            try:
                self.ended = int(self.ray.get(self.ref))
            except self.ray.exceptions.RayError:
                self.lost = True
                give_up(self.folder)  # a task that never began will not begin any more
        return self.lost and is_running(self.folder)

    def code(self) -> int | None:
        return None if self.ended == child.NOT_STARTED else self.ended

    def send(self, number: signal.Signals) -> bool:
        self.ray.cancel(self.ref, force=number == signal.SIGKILL)
        return True


def run_attempt(order: dict[str, Any]) -> int:
    """On a worker: exit code of the attempt. Ray cancels by KeyboardInterrupt, which the job hears as SIGINT."""
    folder = Path(order["folder"])
    argv = [sys.executable if word == "python" else word for word in order["argv"]]
    process: subprocess.Popen[bytes] = launch(
        folder,
        argv,
        env=order["env"],
        timeout=order["timeout"],
        stdout=order["stdout"],
        cwd=Path(order["cwd"]),
        outlives=False,
    )
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            send(folder, signal.SIGINT)
            continue
        return code if code >= 0 else 128 - code
