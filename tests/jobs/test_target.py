"""A name becomes a model that is ready to be used, as its run left it."""

from __future__ import annotations

from pathlib import Path

import torch

from lowmem.config.generation import GenerationConfig
from lowmem.events import Event
from lowmem.jobs.target import open_target
from tests.jobs.run_folder import make_run
from tests.models.tiny import save_tiny, tiny_model


def test_a_run_folder_alone_gives_model_dtype_and_generation_defaults(tmp_path: Path) -> None:
    config = make_run(tmp_path, generation={"max_new_tokens": 7, "temperature": 0.5})
    target = open_target(str(tmp_path / "run"), sink=lambda event: None)
    assert target.run == config
    assert target.generation == GenerationConfig(max_new_tokens=7, temperature=0.5)
    assert target.loaded.model.dtype == torch.float32
    expected = tiny_model(seed=1).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in target.loaded.model.state_dict().items())


def test_a_model_folder_has_no_run_and_greedy_defaults(tmp_path: Path) -> None:
    target = open_target(str(save_tiny(tmp_path)), sink=lambda event: None)
    assert target.run is None
    assert target.generation == GenerationConfig()
    assert target.loaded.model.dtype == torch.bfloat16


def test_a_dtype_that_is_asked_for_wins(tmp_path: Path) -> None:
    make_run(tmp_path)
    target = open_target(str(tmp_path / "run"), sink=lambda event: None, dtype="bf16")
    assert target.loaded.model.dtype == torch.bfloat16


def test_remote_code_of_a_run_is_announced(tmp_path: Path) -> None:
    make_run(tmp_path, trust_remote_code=True)
    events: list[Event] = []
    open_target(str(tmp_path / "run"), sink=events.append)
    assert ["trust_remote_code" in str(event) for event in events] == [True]
