from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowmem.errors import CheckpointError, ConfigError
from lowmem.jobs.folder import check_disk, open_run_folder
from tests.tiny import run_config

STEP = '{"event": "StepDone", "step": 1}\n'


def config(folder: Path, **changes: Any) -> Any:
    return run_config(output_dir=str(folder), **changes)


def test_a_new_folder_holds_the_resolved_config(tmp_path: Path) -> None:
    folder = open_run_folder(config(tmp_path / "a" / "b"), resume=False, overwrite=False)
    assert "lora_r: 8" in (folder / "config.yaml").read_text()
    assert [p.name for p in folder.iterdir()] == ["config.yaml"]


def test_a_used_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    folder = open_run_folder(config(tmp_path / "run"), resume=False, overwrite=False)
    (folder / "metrics.jsonl").write_text(STEP)
    before = (folder / "config.yaml").read_text()
    with pytest.raises(
        ConfigError, match=r"is not empty; continue that run with --resume, replace it with --overwrite"
    ):
        open_run_folder(config(folder, seed=7), resume=False, overwrite=False)
    assert (folder / "config.yaml").read_text() == before


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    folder = open_run_folder(config(tmp_path / "run"), resume=False, overwrite=False)
    (folder / "metrics.jsonl").write_text(STEP)
    open_run_folder(config(folder), resume=False, overwrite=True)
    assert not (folder / "metrics.jsonl").exists()
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"is not a run folder .* nothing in it is deleted"):
        open_run_folder(config(precious), resume=False, overwrite=True)
    assert (precious / "chapter.tex").exists()


def test_a_run_that_failed_before_its_first_step_does_not_block_the_next_try(tmp_path: Path) -> None:
    folder = open_run_folder(config(tmp_path / "run"), resume=False, overwrite=False)
    (folder / "metrics.jsonl").write_text('{"event": "Notice", "message": "loading"}\n')
    open_run_folder(config(folder, seed=7), resume=False, overwrite=False)
    assert "seed: 7" in (folder / "config.yaml").read_text()
    (folder / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="is not empty"):
        open_run_folder(config(folder, seed=8), resume=False, overwrite=False)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        open_run_folder(config(tmp_path / "run"), resume=False, overwrite=False)


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        open_run_folder(config(tmp_path / "run"), resume=True, overwrite=False)


def test_resume_refuses_another_config_and_names_the_difference(tmp_path: Path) -> None:
    folder = open_run_folder(config(tmp_path / "run"), resume=False, overwrite=False)
    open_run_folder(config(folder, save_steps=5, logging_steps=3), resume=True, overwrite=False)
    with pytest.raises(CheckpointError, match=r"seed: 42 -> 7"):
        open_run_folder(config(folder, seed=7), resume=True, overwrite=False)


def test_a_disk_that_is_too_small_is_refused_before_step_0(tmp_path: Path) -> None:
    check_disk(tmp_path, checkpoint_bytes=1000, keep=2, export_bytes=1000)
    with pytest.raises(ConfigError, match="lower save_total_limit"):
        check_disk(tmp_path, checkpoint_bytes=2**60, keep=2, export_bytes=0)
