"""What `--fallback` accepts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from lowmem.config.generation import GenerationConfig
from lowmem.errors import BudgetError, ConfigError
from lowmem.events import Event
from lowmem.generate.fallback import Fallback
from lowmem.jobs.fallback import open_fallback
from lowmem.jobs.generate import open_generator
from lowmem.jobs.serve import ServeOptions, serve
from lowmem.jobs.target import Target, open_target
from tests.models.packed import save_tiny_packed
from tests.models.tiny import save_tiny
from tests.serve.conftest import Running, serving_target


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


def test_a_packed_folder_falls_back_to_its_own_second_planes(tmp_path: Path) -> None:
    save_tiny_packed(tmp_path / "packed", "llama", kind="nested", embeddings=False)
    settings = GenerationConfig(max_new_tokens=12, on_loop="rescue", commit_tokens=4)
    ways: list[str | None] = ["nested", None]
    again, full = (
        open_generator(str(tmp_path / "packed"), sink=ignore, device="cpu", dtype="fp32", fallback=way) for way in ways
    )
    (fallen,) = again.answers(["<think>the cat"], settings)
    (plain,) = full.answers(["<think>the cat"], settings)
    assert fallen.rescue is not None
    assert fallen.tokens == plain.tokens


def test_a_packed_folder_is_planned_and_served_with_its_second_planes(tmp_path: Path) -> None:
    save_tiny_packed(tmp_path / "packed", "llama", kind="nested", embeddings=False)
    options = ServeOptions(slots=4, memory_budget="10MiB", device="cpu", fallback="nested")
    with pytest.raises(BudgetError, match="serving 5 requests"):  # four, and one that is answered again
        serve(str(tmp_path / "packed"), options, sink=ignore)
    with (
        serving_folder(tmp_path / "packed") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        asked = {"commit_tokens": 4, "on_loop": "rescue"}
        said = client.completions.create(
            model=str(tmp_path / "packed"),
            prompt="<think>the cat",
            max_tokens=12,
            temperature=0,
            extra_body=asked,
        )
        spent = said.choices[0].to_dict()["lowmem"]["tokens_by_precision"]
        assert set(spent) == {"low", "high"}
        assert server.metric("lowmem_generated_tokens_total") == sum(spent.values())


@contextmanager
def serving_folder(folder: Path) -> Iterator[Running]:
    opened = open_target(str(folder), sink=ignore, device="cpu", dtype="fp32")
    with serving_target(opened, Fallback(), slots=2, context=128) as running:
        yield running
