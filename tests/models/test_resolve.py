"""Which name leads where, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowmem.errors import CheckpointError, ConfigError
from lowmem.models import embedded
from lowmem.models.resolve import HubModel, ModelFolder, RunFolder, resolve
from tests.models.tiny import save_tiny

CONFIG = "model: tiny-reasoner\ndataset:\n- {format: alpaca, path: a.jsonl}\n"


def test_a_transformers_folder_is_found(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    assert resolve(str(tmp_path)) == ModelFolder(tmp_path)


def test_a_run_folder_is_found_with_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    save_tiny(tmp_path / "model")
    run = resolve(str(tmp_path))
    assert isinstance(run, RunFolder)
    assert run.config.model == "tiny-reasoner"
    assert not run.is_adapter


def test_other_names_are_hub_ids() -> None:
    assert resolve("facebook/opt-1.3b") == HubModel("facebook/opt-1.3b")
    assert resolve("gpt2") == HubModel("gpt2")


def test_an_embedded_name_is_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "__file__", str(tmp_path / "models" / "embedded.py"))
    save_tiny(tmp_path / "assets" / "tiny-reasoner")
    assert resolve("tiny-reasoner") == ModelFolder(tmp_path / "assets" / "tiny-reasoner")


@pytest.mark.parametrize("name", ["./no-such-folder", "/no/such/folder", "a/b/c", "~/nothing-here", " "])
def test_a_folder_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .* A model is an embedded name"):
        resolve(name)


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(ConfigError, match=r"did you mean tiny-reasoner\?"):
        resolve("./tiny-resoner")


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"model.gguf is a file; give the folder"):
        resolve(str(file))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds neither config.json nor config.yaml"):
        resolve(str(tmp_path))


def test_a_bare_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds only an adapter; give the run folder"):
        resolve(str(tmp_path))


def test_a_run_that_trained_nothing_yet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    with pytest.raises(CheckpointError, match="has no trained model in model/ yet; let the run finish"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("text", ["model: [", "model: x\n", "- 1\n"])
def test_a_damaged_run_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.yaml is not the config of a run"):
        resolve(str(tmp_path))
