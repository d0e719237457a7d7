from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lowmem.config.load import load_run
from lowmem.config.presets import find_config, preset_names, preset_path
from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError

NAMES = (
    "opt-1.3b-lora",
    "opt-1.3b-zo",
    "qwen-7b-qlora",
    "sst2-smollm2-adanaged",
    "sst2-smollm2-lora",
    "sst2-smollm2-lorsum",
    "sst2-smollm2-mezo",
    "tiny-demo",
    "tiny-forgetting",
)


def test_the_presets_are_the_configs_of_the_repository(repository: Path) -> None:
    assert set(NAMES) <= set(preset_names())
    assert {path.stem for path in (repository / "configs").glob("*.yaml")} == set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_without_notices_into_a_folder_of_its_own(name: str) -> None:
    loaded = load_run(preset_path(name))
    assert isinstance(loaded.config, RunConfig)
    assert loaded.notices == ()
    assert loaded.config.output_dir in (f"runs/{name}", "runs/demo")


@pytest.mark.parametrize("name", preset_names())
def test_the_dataset_of_a_preset_can_be_replaced_from_the_command_line(name: str) -> None:
    config = load_run(preset_path(name), ["dataset=mine.jsonl", "max_steps=1"]).config
    assert [getattr(section, "path", None) for section in config.dataset] == ["mine.jsonl"]


def test_a_file_comes_before_a_preset_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("tiny-demo") == preset_path("tiny-demo")
    shutil.copy(preset_path("tiny-demo"), tmp_path / "tiny-demo")
    assert find_config("tiny-demo") == Path("tiny-demo")


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"neither a file nor a preset of this name; did you mean opt-1\.3b-zo\?"):
        find_config("opt-1.3b-zoo")


def test_an_unknown_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").touch()
    with pytest.raises(ConfigError, match=r"there is no such file; did you mean .*run\.yaml\?"):
        find_config(str(tmp_path / "rum.yaml"))
