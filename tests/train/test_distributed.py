"""Two gloo processes against one, over the same global batches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import yaml

from lowmem.errors import ConfigError, DivergenceError
from lowmem.methods.build import build_method
from lowmem.methods.sharding import fingerprint, refuse_unless_shardable
from lowmem.models.loss import ModelLoss
from lowmem.train.distributed import DataParallel, Group
from tests.models.tiny import save_tiny
from tests.tiny import lm_batch, run_config, tiny_model

METHODS: dict[str, dict[str, Any]] = {
    "mezo": {"method": {"kind": "zo", "algorithm": "mezo"}, "learning_rate": 1e-3},
    "adanaged": {"method": {"kind": "zo"}},
    "lora-dropout": {"method": {"kind": "lora", "lora_dropout": 0.2}, "learning_rate": 1e-2},
    "full": {"method": {"kind": "full"}, "optimizer": {"kind": "sgd"}, "learning_rate": 0.1},
    "lora-muon": {"method": {"kind": "lora_muon"}},
    "lorsum": {"method": {"kind": "lorsum"}},
    "galore": {
        "method": {"kind": "galore", "rank": 4, "period": 3},
        "optimizer": {"kind": "sgd"},
        "learning_rate": 0.1,
    },
    "gum": {"method": {"kind": "gum", "rank": 4, "period": 2, "gamma": 1}, "learning_rate": 1e-2},
    "full-in-backward": {
        "method": {"kind": "full", "update": "in_backward"},
        "optimizer": {"kind": "sgd"},
        "learning_rate": 0.1,
    },
    "lorsum-alternating": {"method": {"kind": "lorsum", "mode": "alternating"}},
}
EXACT = ("mezo", "adanaged")
STEPS = 4


def train(name: str, group: Group) -> dict[str, Any]:
    """Weights and losses of a few steps; every third step has three micro-batches, so that the turns are uneven."""
    config, model = run_config(**METHODS[name]), tiny_model()
    built: Any = build_method(config, model)
    method = built if group.world == 1 else DataParallel(built, group, hash_steps=2)
    losses = []
    for step in range(STEPS):
        batches = [lm_batch(rows=2 + i, seed=10 * step + i) for i in range(3 if step % 3 == 0 else 2)]
        report = method.step(ModelLoss(model), batches, lr=config.peak_learning_rate, step=step)
        losses.append(report.loss)
    return {"losses": losses, "weights": {key: t.detach().clone() for key, t in method.trainable.items()}}


def process(rank: int, port: int, folder: str) -> None:
    """One of two processes: all methods, then one that was tampered with."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    group = Group.join(torch.device("cpu"))
    for name in METHODS:
        torch.save(train(name, group), Path(folder) / f"{name}-{rank}.pt")
    model = tiny_model(seed=rank)
    diverged = DataParallel(build_method(run_config(**METHODS["mezo"]), model), group)
    try:
        diverged.step(ModelLoss(model), [lm_batch()], lr=0.0, step=0)
    except DivergenceError as error:
        (Path(folder) / f"diverged-{rank}").write_text(str(error))
    (Path(folder) / f"either-{rank}").write_text(str(group.either(rank == 1, torch.device("cpu"))))
    group.leave()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(process, args=(free_port(), str(folder)), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_walk_as_one_does(name: str, two: Path) -> None:
    alone = train(name, Group())
    for rank in range(2):
        together = torch.load(two / f"{name}-{rank}.pt")
        if name in EXACT:  # only losses travel, and each keeps its place: not a bit may differ
            assert together["losses"] == alone["losses"]
            assert all(torch.equal(together["weights"][key], value) for key, value in alone["weights"].items())
        else:  # gradients are summed in another order
            assert together["losses"] == pytest.approx(alone["losses"], rel=1e-5)
            for key, value in alone["weights"].items():
                torch.testing.assert_close(together["weights"][key], value, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_both_processes_hold_the_same_bits(two: Path) -> None:
    for name in METHODS:
        first, second = (torch.load(two / f"{name}-{rank}.pt")["weights"] for rank in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first), name


@pytest.mark.slow
def test_diverged_weights_stop_both_processes(two: Path) -> None:
    for rank in range(2):
        assert "the weights of process 1 differ from those of process 0" in (two / f"diverged-{rank}").read_text()
        assert (two / f"either-{rank}").read_text() == "True"


@pytest.mark.slow
def test_torchrun_trains_and_only_the_first_process_writes(tmp_path: Path) -> None:
    rows = [{"prompt": f"the cat number {n} sat on", "completion": f" the mat {n % 3}"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"format": "completion", "path": str(tmp_path / "rows.jsonl")}
    config = {"model": str(save_tiny(tmp_path / "model")), "dtype": "fp32", "dataset": [data], "device": "cpu"}
    config |= {"method": {"kind": "zo"}, "per_device_train_batch_size": 2, "max_steps": 3, "num_threads": 1}
    config |= {"output_dir": str(tmp_path / "run")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [sys.executable, *launcher, "-m", "lowmem", "train", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["event"] == "StepDone"] == [1, 2, 3]
    assert next(r for r in records if r["event"] == "RunStarted")["processes"] == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    done = subprocess.run(
        [sys.executable, "-m", "lowmem", "train", str(tmp_path / "run.yaml"), "--resume"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode != 0
    assert "was trained by 2 processes" in " ".join(done.stderr.split())


def test_a_method_whose_step_cannot_be_split_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"its metric is measured on the tokens of one process; use metric: none"):
        refuse_unless_shardable(build_method(run_config(method={"kind": "lorsum", "metric": "kfac"}), tiny_model()))
    plain = build_method(run_config(method={"kind": "lorsum", "metric": "none"}), tiny_model())
    refuse_unless_shardable(plain)

    eager = run_config(method={"kind": "gum", "gamma": 1, "clipping": "per_layer"})
    with pytest.raises(
        ConfigError, match=r"clipping: per_layer moves weights before gradients are summed; use clipping"
    ):
        refuse_unless_shardable(build_method(eager, tiny_model()))
    refuse_unless_shardable(build_method(run_config(method={"kind": "galore"}), tiny_model()))

    class Alien:
        title = "alien"

    with pytest.raises(ConfigError, match="alien cannot be split over processes: its update uses gradients before"):
        refuse_unless_shardable(Alien())  # type: ignore[arg-type]


def test_an_incomplete_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE is set and RANK is not; start several processes with torchrun"):
        Group.join(torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fingerprint_depends_on_every_byte_and_on_the_order(dtype: torch.dtype) -> None:
    left, right = torch.arange(6.0).to(dtype).view(2, 3), torch.ones(4, dtype=dtype)
    assert fingerprint([left, right]) == fingerprint([left.clone(), right.clone()])
    changed = right.clone()
    changed[3] = 2.0
    assert fingerprint([left, changed]) != fingerprint([left, right]) != fingerprint([right, left])
