"""What `--fallback` accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowmem.errors import ConfigError
from lowmem.events import Event
from lowmem.jobs.fallback import open_fallback
from lowmem.jobs.target import Target, open_target
from tests.models.tiny import save_tiny


def ignore(event: Event) -> None:
    pass


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    return open_target(str(folder), sink=ignore, device="cpu", dtype="fp32")


def test_none_is_none(target: Target) -> None:
    assert open_fallback(target, None, sink=ignore) is None


def test_nested_needs_weights_with_two_planes(target: Target) -> None:
    with pytest.raises(ConfigError, match="fallback nested: no layer of the model has two planes"):
        open_fallback(target, "nested", sink=ignore)


def test_a_model_with_the_same_tokens_is_opened(target: Target, tmp_path: Path) -> None:
    found = open_fallback(target, str(save_tiny(tmp_path)), sink=ignore, device="cpu", dtype="fp32")
    assert found is not None
    assert found.model is not None
    assert found.model is not target.loaded.model


def test_a_model_with_other_tokens_is_refused(target: Target) -> None:
    with pytest.raises(ConfigError, match="--fallback tiny-reasoner: its tokenizer is not that of"):
        open_fallback(target, "tiny-reasoner", sink=ignore, device="cpu")
