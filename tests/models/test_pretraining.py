"""The default optimizer is the one that the base was pretrained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowmem.config.load import load_run
from lowmem.events import Event, Notice
from lowmem.jobs.plan import with_default_optimizer
from lowmem.models.pretraining import pretraining_of
from tests.models.tiny import save_tiny


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        ("moonshotai/Moonlight-16B-A3B", "muon"),
        ("facebook/opt-1.3b", "adamw"),
        ("opt-125m", "adamw"),
        ("meta-llama/Llama-2-7b-hf", "adamw"),
        ("smollm2-135m-instruct", "adamw"),
        ("mosaicml/mpt-7b", "lion"),
        ("someone/adopt-1", None),
        ("unknown/model", None),
    ],
)
def test_reports_are_found_by_name(model: str, optimizer: str | None) -> None:
    found = pretraining_of(model)
    assert (found and found.optimizer) == optimizer
    assert found is None or found.source


def resolved(model: str, **keys: Any) -> tuple[str, list[str]]:
    base = {"model": model, "dataset": [{"format": "procedural", "family": "add"}]}
    events: list[Event] = []
    config = with_default_optimizer(load_run(None, [], base=base | keys).config, events.append)
    return config.optimizer.kind, [event.message for event in events if isinstance(event, Notice)]


def test_full_finetuning_takes_it_and_says_so() -> None:
    kind, notices = resolved("moonshotai/Moonlight-16B-A3B", method={"kind": "full"})
    assert kind == "muon"
    assert "as in pretraining (Moonlight's report" in notices[0]


@pytest.mark.parametrize(
    "keys",
    [{"method": {"kind": "lora"}}, {"method": {"kind": "full"}, "optimizer": {"kind": "adamw"}}, {"method": "zo"}],
)
def test_adapters_and_a_named_optimizer_are_left_alone(keys: dict[str, Any]) -> None:
    if keys["method"] == "zo":
        keys = {"method": {"kind": "zo"}}
    assert resolved("moonshotai/Moonlight-16B-A3B", **keys) == ("adamw", [])


def test_a_run_of_full_finetuning_hands_its_optimizer_on(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    text = "model: smollm2-135m-instruct\ndataset: {format: procedural, family: add}\nmethod: full\noptimizer: lion\n"
    (tmp_path / "config.yaml").write_text(text)
    kind, notices = resolved(str(tmp_path), method={"kind": "full"})
    assert kind == "lion"
    assert str(tmp_path) in notices[0]
