from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lowmem.errors import CheckpointError
from lowmem.methods.base import MethodState
from lowmem.train.checkpoint import Checkpoint, CheckpointStore, read_checkpoint


def checkpoint(step: int, *, value: float = 1.0) -> Checkpoint:
    tensors = {
        "weight": torch.full((3, 5), value) + torch.arange(5),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "half": torch.tensor([1.5, float("nan"), -0.0], dtype=torch.bfloat16),
        "count": torch.tensor(step),
    }
    return Checkpoint(step, MethodState(tensors, {"seed": 7, "gamma": 0.1 + 0.2, "radius": None}), {"step": step})


def store_with(folder: Path, *steps: int, keep: int = 9, best: int | None = None) -> CheckpointStore:
    store = CheckpointStore(folder / "checkpoints", keep=keep)
    for step in steps:
        store.save(checkpoint(step), best=best)
    return store


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def rewrite_manifest(folder: Path) -> None:
    """What somebody who edits a checkpoint by hand would have to do as well."""
    names = ("tensors.safetensors", "state.json")
    content = {name: (folder / name).read_bytes() for name in names}
    manifest = {n: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for n, data in content.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_was_saved_is_loaded_bit_by_bit(tmp_path: Path) -> None:
    saved = checkpoint(12)
    loaded = store_with(tmp_path, 12).load(tmp_path / "checkpoints" / "step-00000012")
    assert (loaded.step, loaded.loop, loaded.method.numbers) == (12, {"step": 12}, saved.method.numbers)
    assert loaded.method.tensors.keys() == saved.method.tensors.keys()
    for name, tensor in saved.method.tensors.items():
        restored = loaded.method.tensors[name]
        assert restored.dtype == tensor.dtype
        assert torch.equal(restored.nan_to_num(99), tensor.nan_to_num(99))


def test_a_method_without_tensors_can_be_saved(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    path = store.save(Checkpoint(1, MethodState({}, {"gamma": 0.5}), {}), best=None)
    assert store.load(path).method == MethodState({}, {"gamma": 0.5})


def test_the_manifest_holds_size_and_digest_of_every_file(tmp_path: Path) -> None:
    folder = store_with(tmp_path, 3).path(3)
    written = json.loads((folder / "manifest.json").read_text())
    assert set(written) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    rewrite_manifest(folder)
    assert json.loads((folder / "manifest.json").read_text()) == written


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the process may act on it."""


def test_killed_before_the_rename_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_with(tmp_path, 1)

    def kill(self: Path, target: Path) -> Path:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", kill)
        with pytest.raises(Killed):
            store.save(checkpoint(2), best=None)
    left = [path.name for path in store.folder.iterdir()]
    assert sorted(left) == [".partial-step-00000002", "step-00000001"]
    assert (store.steps(), store.latest()) == ([1], store.path(1))
    assert store.load(store.path(1)).step == 1


def test_what_a_killed_save_left_is_cleaned_by_the_next(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1)
    abandoned = store.folder / ".partial-step-00000002"
    abandoned.mkdir()
    (abandoned / "tensors.safetensors").write_bytes(b"half a file")
    store.save(checkpoint(3), best=None)
    assert not abandoned.exists()
    assert store.steps() == [1, 3]


def test_killed_while_saving_a_step_again_leaves_that_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run, or best and periodic at one step, writes bytes that are already there."""
    store = store_with(tmp_path, 1)
    real, removed = shutil.rmtree, []

    def watch(path: Path, ignore_errors: bool = False) -> None:
        removed.append(path.name)
        real(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", watch)
    store.save(checkpoint(1), best=None)
    assert removed == [".partial-step-00000001"]
    assert store.load(store.path(1)).step == 1


@pytest.mark.parametrize("damage", [lambda p: flip(p, -1), lambda p: p.unlink()])
def test_saving_a_damaged_step_again_mends_it(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = store_with(tmp_path, 1)
    damage(store.path(1) / "tensors.safetensors")
    store.save(checkpoint(1), best=None)
    assert store.load(store.path(1)).step == 1


def test_saving_other_content_for_a_step_replaces_it(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1)
    store.save(checkpoint(1, value=5.0), best=None)
    assert store.load(store.path(1)).method.tensors["weight"][0, 0] == 5.0


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "tensors.safetensors",
            truncate,
            r"tensors.safetensors is damaged: \d+ bytes with another digest than the \d+",
        ),
        ("tensors.safetensors", lambda p: flip(p, -1), "tensors.safetensors is damaged"),
        ("state.json", lambda p: flip(p, 30), "state.json is damaged"),
        ("tensors.safetensors", lambda p: p.unlink(), "tensors.safetensors is missing"),
        ("state.json", lambda p: p.unlink(), "state.json is missing"),
        ("manifest.json", lambda p: p.unlink(), "manifest.json cannot be read: .*No such file"),
        ("manifest.json", truncate, "manifest.json cannot be read"),
        ("manifest.json", lambda p: p.write_text("[]"), "manifest.json is damaged: it holds no object"),
        ("manifest.json", lambda p: p.write_text("{}"), "tensors.safetensors is damaged"),
    ],
)
def test_damage_is_refused_by_name_and_the_intact_one_is_offered(
    tmp_path: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    store = store_with(tmp_path, 1, 2, 3)
    damage(store.path(3) / name)
    with pytest.raises(CheckpointError, match=message) as refused:
        store.load(store.path(3))
    offer = f"the checkpoint of step 2 is intact: continue with --resume {store.path(2)}"
    assert str(refused.value).endswith(offer)


def test_a_damaged_one_is_never_offered(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1, 2, 3)
    truncate(store.path(2) / "tensors.safetensors")
    truncate(store.path(3) / "tensors.safetensors")
    with pytest.raises(CheckpointError, match="the checkpoint of step 1 is intact"):
        store.load(store.path(3))


def test_without_an_intact_one_starting_again_is_offered(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1)
    truncate(store.path(1) / "state.json")
    with pytest.raises(CheckpointError, match="no intact checkpoint is left: start again with --overwrite"):
        store.load(store.path(1))


def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*elsewhere.*step 1 is intact"):
        store_with(tmp_path, 1).load(tmp_path / "elsewhere")


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    folder = store_with(tmp_path, 1).path(1)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"format": 2}))
    rewrite_manifest(folder)
    with pytest.raises(CheckpointError, match="has format 2; this version reads format 1"):
        read_checkpoint(folder)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    assert store_with(tmp_path, 1, 2, 3, 4, 5, keep=2, best=1).steps() == [1, 4, 5]
    assert store_with(tmp_path, 6, keep=2, best=5).steps() == [5, 6]


def test_resumed_from_an_older_one_the_later_ones_do_not_crowd_it_out(tmp_path: Path) -> None:
    """With the steps counted from the end, the checkpoint just written would be the first to go."""
    store = store_with(tmp_path, 10, 20, 30, keep=1, best=20)
    assert store.steps() == [20, 30]
    store.save(checkpoint(25), best=20)
    assert store.steps() == [20, 25]


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none", keep=2)
    assert (store.steps(), store.latest()) == ([], None)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1)
    for name in ("step-notes.txt", "step-final", ".partial-model"):
        (store.folder / name).mkdir()
    store.save(checkpoint(2), best=None)
    assert store.steps() == [1, 2]
    assert {path.name for path in store.folder.iterdir()} >= {"step-notes.txt", "step-final", ".partial-model"}
