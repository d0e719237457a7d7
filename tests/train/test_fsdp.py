"""Layers cut over two gloo processes against one process with everything, over the same global batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError
from lowmem.methods.base import MethodState
from lowmem.methods.build import build_method
from lowmem.methods.sharding import is_sharded
from lowmem.models.checkpointing import set_gradient_checkpointing
from lowmem.models.loss import ModelLoss
from lowmem.train.distributed import DataParallel, Group
from tests.models.tiny import save_tiny
from tests.tiny import lm_batch, run_config, tiny_model
from tests.train.test_distributed import free_port

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": {"kind": "full"}, "optimizer": {"kind": "adamw", "weight_decay": 0.1}, "learning_rate": 1e-2},
    "full-sgd, checkpointing": {
        "method": {"kind": "full"},
        "optimizer": {"kind": "sgd", "momentum": 0.9},
        "learning_rate": 0.1,
        "gradient_checkpointing": True,
    },
    "lora-dropout": {"method": {"kind": "lora", "lora_dropout": 0.2}, "learning_rate": 1e-2},
    "dora": {"method": {"kind": "lora", "use_dora": True}, "learning_rate": 1e-2},
    "lorsum": {"method": {"kind": "lorsum"}},
}
STEPS = 3


def build(name: str, group: Group) -> tuple[Any, Any, RunConfig]:
    """(model, method, config). Untied and with odd widths, so that shares are uneven."""
    config = run_config(**METHODS[name], fsdp=group.world > 1)
    model = tiny_model(tie_word_embeddings=False, intermediate_size=63)
    method: Any = build_method(config, model, shards=group)
    set_gradient_checkpointing(model, config.gradient_checkpointing)
    return model, method if group.world == 1 else DataParallel(method, group, even=True, hash_steps=2), config


def walk(model: Any, method: Any, config: RunConfig, steps: range) -> list[float]:
    """Every third step has three micro-batches: one process has a turn for company's sake."""
    losses = []
    for step in steps:
        batches = [lm_batch(rows=2 + i, seed=10 * step + i) for i in range(3 if step % 3 == 0 else 2)]
        report = method.step(ModelLoss(model, chunk_tokens=7), batches, lr=config.peak_learning_rate, step=step)
        losses += [report.loss, report.details["grad_norm"]]
    return losses


def process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    group = Group.join(torch.device("cpu"))
    for name in METHODS:
        model, method, config = build(name, group)
        losses = walk(model, method, config, range(STEPS))
        state = method.state()
        held = sum(p.to_local().nbytes if is_sharded(p) else p.nbytes for p in model.parameters())
        seen = {"losses": losses, "tensors": {k: t.clone() for k, t in state.tensors.items()}, "held": held}
        method.export(Path(folder) / f"{name}-model")
        # Again from what process 0 would write, and one step further.
        whole = [state.tensors]
        torch.distributed.broadcast_object_list(whole)
        model, method, config = build(name, group)
        method.load_state(MethodState(whole[0], state.numbers))
        seen["resumed"] = walk(model, method, config, range(STEPS, STEPS + 1))
        torch.save(seen, Path(folder) / f"{name}-{rank}.pt")
    group.leave()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(process, args=(free_port(), str(folder)), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_walk_as_one_does_and_hold_half_the_layers(name: str, two: Path) -> None:
    model, method, config = build(name, Group())
    expected = walk(model, method, config, range(STEPS))
    state = {key: tensor.clone() for key, tensor in method.state().tensors.items()}
    after = walk(model, method, config, range(STEPS, STEPS + 1))
    for rank in range(2):
        found = torch.load(two / f"{name}-{rank}.pt")
        assert found["losses"] == pytest.approx(expected, rel=1e-4)
        assert found["resumed"] == pytest.approx(after, rel=1e-4)
        layers = sum(p.nbytes for n, p in model.named_parameters() if ".layers." in n and "lora" not in n)
        assert found["held"] < sum(p.nbytes for p in model.parameters()) - 0.45 * layers
        assert found["tensors"].keys() == state.keys()
    first, second = (torch.load(two / f"{name}-{rank}.pt")["tensors"] for rank in range(2))
    for key, tensor in state.items():
        torch.testing.assert_close(first[key], tensor, rtol=1e-3, atol=2e-5, msg=key)
        assert second[key].is_meta or torch.equal(second[key], first[key]), "what only process 0 writes, it alone holds"


@pytest.mark.slow
def test_the_result_is_a_whole_model_or_adapter(two: Path) -> None:
    tensors = torch.load(two / "full-0.pt")["tensors"]
    exported = AutoModelForCausalLM.from_pretrained(two / "full-model")
    for name, parameter in exported.named_parameters():
        assert torch.equal(parameter.detach(), tensors[f"weights/{name}"]), name
    adapter = load_file(two / "lorsum-model" / "adapter_model.safetensors")
    wanted = torch.load(two / "lorsum-0.pt")["tensors"]
    assert sum(t.numel() for t in adapter.values()) == sum(
        t.numel() for key, t in wanted.items() if key.startswith("weights/")
    )


@pytest.mark.slow
def test_torchrun_trains_saves_and_resumes(tmp_path: Path) -> None:
    rows = [{"prompt": f"the cat number {n} sat on", "completion": f" the mat {n % 3}"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"format": "completion", "path": str(tmp_path / "rows.jsonl")}
    config = {"model": str(save_tiny(tmp_path / "model")), "dtype": "fp32", "dataset": [data], "device": "cpu"}
    config |= {"method": {"kind": "full"}, "per_device_train_batch_size": 2, "max_steps": 3, "num_threads": 1}
    config |= {"output_dir": str(tmp_path / "run"), "fsdp": True, "learning_rate": 1e-3, "save_steps": 2}
    config |= {"eval_dataset": [data | {"limit": 4}], "eval_generate": False}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [sys.executable, *launcher, "-m", "lowmem", "train", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    first = load_file(tmp_path / "run" / "model" / "model.safetensors")
    again = subprocess.run(
        [*command, "--resume", str(tmp_path / "run" / "checkpoints" / "step-00000002")],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert again.returncode == 0, again.stderr[-2000:]
    resumed = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert first.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in first.items())


def test_a_single_process_has_nothing_to_cut_over() -> None:
    with pytest.raises(
        ConfigError, match="fsdp: cuts the model over several processes, and this run has one; start it"
    ):
        build_method(run_config(method={"kind": "full"}, fsdp=True), tiny_model())
