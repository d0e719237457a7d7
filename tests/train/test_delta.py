"""Runs whose checkpoints hold the replay log alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lowmem.config.load import load_run
from lowmem.errors import CheckpointError
from lowmem.jobs.rebuild import export_checkpoint, rebuild
from lowmem.jobs.train import train
from lowmem.methods.base import MethodState
from lowmem.methods.build import build_method
from lowmem.methods.zo.replay import ReplayLog
from lowmem.models.loss import ModelLoss
from lowmem.train.checkpoint import Checkpoint, read_checkpoint
from lowmem.train.delta import DeltaStore
from tests.models.tiny import save_tiny
from tests.tiny import lm_batch, run_config, tiny_model

MEZO: dict[str, Any] = {"method": {"kind": "zo", "algorithm": "mezo", "snapshot_steps": 4}, "learning_rate": 1e-3}


def walk(method: Any, model: Any, start: int, stop: int) -> None:
    for step in range(start, stop):
        method.step(ModelLoss(model), [lm_batch(seed=step)], lr=1e-3, step=step)


def checkpoint(step: int, method: Any) -> Checkpoint:
    return Checkpoint(step, method.state(), {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_checkpoint_rebuilds_the_weights_of_its_step_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    method: Any = build_method(run_config(**MEZO), model)
    store = DeltaStore(tmp_path, keep=20, snapshot_steps=4)
    weights = {}
    for step in range(1, 11):
        walk(method, model, step - 1, step)
        store.save(checkpoint(step, method), best=None)
        weights[step] = {name: w.detach().clone() for name, w in method.trainable.items()}
    full = [step for step in store.steps() if "weights/" in str(read_checkpoint(store.path(step)).method.tensors)]
    assert full == [4, 8]
    for step in range(1, 11):
        found = store.load(store.path(step))
        again: Any = build_method(run_config(**MEZO), tiny_model(dtype=dtype))
        if found.base is not None:
            again.load_state(found.base.method)
        again.load_state(found.method)
        assert all(torch.equal(weights[step][name], w) for name, w in again.trainable.items()), step
        assert len(again.log) == step


def test_a_term_costs_16_bytes() -> None:
    method: Any = build_method(run_config(**MEZO), model := tiny_model())
    walk(method, model, 0, 10)
    assert sum(tensor.nbytes for tensor in method.log.state().values()) == 16 * 10


def test_snapshots_that_kept_checkpoints_build_on_are_kept_and_the_best_is_one(tmp_path: Path) -> None:
    method: Any = build_method(run_config(**MEZO), model := tiny_model())
    store = DeltaStore(tmp_path, keep=1, snapshot_steps=4)
    for step in range(1, 8):
        walk(method, model, step - 1, step)
        store.save(checkpoint(step, method), best=2 if step >= 2 else None)
    assert store.steps() == [2, 6, 7]
    assert any(name.startswith("weights/") for name in read_checkpoint(store.path(2)).method.tensors)
    assert not any(name.startswith("weights/") for name in read_checkpoint(store.path(7)).method.tensors)


def test_a_damaged_neighbour_does_not_keep_a_run_from_saving(tmp_path: Path) -> None:
    method: Any = build_method(run_config(**MEZO), model := tiny_model())
    store = DeltaStore(tmp_path, keep=5, snapshot_steps=2)
    walk(method, model, 0, 1)
    store.save(checkpoint(2, method), best=None)
    (store.path(2) / "state.json").write_text("nothing")
    assert store.save(checkpoint(3, method), best=None).is_dir()
    assert any(name.startswith("weights/") for name in store.load(store.path(3)).method.tensors)


def test_a_log_of_other_updates_is_refused() -> None:
    method: Any = build_method(run_config(**MEZO), model := tiny_model())
    walk(method, model, 0, 2)
    other = ReplayLog()
    saved = MethodState({f"replay/{name}": t for name, t in other.state().items()}, {"skips": 0})
    with pytest.raises(CheckpointError, match="does not begin with the updates that were made so far"):
        method.load_state(saved)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of ten steps, a checkpoint at every third and at the end."""
    (tmp_path / "a.txt").write_text("the cat sat on the mat and the dog ran after it. " * 40)
    config = {"model": str(save_tiny(tmp_path / "model")), "dtype": "fp32", "max_steps": 10, "save_steps": 3}
    config |= {"dataset": [{"format": "text", "path": str(tmp_path / "a.txt")}], "max_length": 32, "device": "cpu"}
    config |= {
        "method": {"kind": "zo", "snapshot_steps": 5},
        "save_total_limit": 9,
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    train(load_run(tmp_path / "run.yaml").config, sink=lambda event: None)
    return tmp_path / "run"


def test_a_run_resumes_from_the_log_and_an_export_of_it_equals_the_trained_model(run: Path, tmp_path: Path) -> None:
    trained = load_file(run / "model" / "model.safetensors")
    assert export_checkpoint(run, tmp_path / "exported", sink=lambda event: None) == 10
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in trained.items())
    third = rebuild(run, sink=lambda event: None, checkpoint=run / "checkpoints" / "step-00000003")
    assert third.step == 3
    assert not any(
        name.startswith("weights/") for name in read_checkpoint(run / "checkpoints" / "step-00000003").method.tensors
    )
    for step in (9, 10):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    train(load_run(run / "config.yaml").config, sink=lambda event: None, resume=True)
    resumed = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in trained.items())


def test_exports_refuse_a_used_folder_and_runs_without_checkpoints(run: Path) -> None:
    with pytest.raises(CheckpointError, match="is not empty; export into a new folder"):
        export_checkpoint(run, run, sink=lambda event: None)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="holds no checkpoint; it was stopped before the first one"):
        rebuild(run, sink=lambda event: None)
