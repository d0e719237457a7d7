"""The plan of a config: its rows, its choice, its refusals, its cache."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lowmem.config.run import RunConfig
from lowmem.errors import BudgetError, ConfigError
from lowmem.events import Event, Notice
from lowmem.methods.build import build_method
from lowmem.plan.cache import cached_predict
from lowmem.plan.devices import CUDA, Device
from lowmem.plan.fakes import BatchShape
from lowmem.plan.fit import Plan
from lowmem.plan.plan import is_auto, plan_run, require_choice, resolve_auto, shape_of, work_of
from lowmem.plan.simulate import Work
from lowmem.plan.table import bill_lines, find_row, table_rows
from tests.tiny import run_config, tiny_config, tiny_model

MIB = 2**20
HERE = Device(CUDA, None)
BASE = HERE.bill(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's config without weights: a plan needs no more."""
    path = tmp_path_factory.mktemp("model")
    tiny_config("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=6, vocab_size=2000).save_pretrained(
        path
    )
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


def config_for(folder: Path, **changes: Any) -> RunConfig:
    return run_config(**({"model": str(folder), "max_length": 64, "method": {"kind": "auto"}} | changes))


def planned(config: RunConfig, budget: int, cache: Path, **keys: Any) -> Plan:
    return plan_run(config, HERE, budget=budget, cache=cache, sink=lambda event: None, **keys)


def test_every_method_has_a_row_and_the_best_that_fits_runs(folder: Path, cache: Path) -> None:
    config = config_for(folder, per_device_train_batch_size=1)
    generous = planned(config, BASE + 2000 * MIB, cache)
    assert {row.name for row in generous.rows} >= {"full, adamw", "lora", "lora on nf4", "lora on int8", "zo"}
    assert generous.chosen is not None
    assert generous.chosen.name == "full, adamw"
    full = min(row.tensors for row in generous.rows if row.name == "full, adamw")
    lora = min(row.tensors for row in generous.rows if row.name == "lora")
    assert lora < full
    inside = min(row.tensors for row in generous.rows if row.name == "full, adamw in backward")
    assert lora < inside < full
    close = planned(config, BASE + full - MIB, cache)
    assert close.chosen is not None
    assert close.chosen.name == "full, adamw in backward", "lossless, though two passes of backward are slower"
    assert "method.update=in_backward" in close.chosen.changes
    narrow = planned(config, BASE + inside - MIB, cache)
    assert narrow.chosen is not None
    assert narrow.chosen.name == "lora"
    assert "full, adamw, full, adamw in backward: too large" in narrow.reason


def test_smaller_micro_batches_keep_the_effective_batch(folder: Path, cache: Path) -> None:
    config = config_for(folder, method={"kind": "lora"}, per_device_train_batch_size=8)
    wide = planned(config, BASE + 2000 * MIB, cache, only_allowed=True)
    large = next(row for row in wide.rows if not row.checkpointing)
    plan = planned(config, BASE + round(large.tensors * 0.7), cache, only_allowed=True)
    small = next(row for row in plan.rows if not row.checkpointing)
    assert small.examples < 8
    assert small.examples * small.accumulation == 8
    assert small.total < large.total


def test_nothing_that_fits_is_refused_with_the_bill(folder: Path, cache: Path) -> None:
    plan = planned(config_for(folder), BASE + MIB, cache)
    with pytest.raises(BudgetError, match=r"nothing that the config allows fits .* too large; (?s:.)*weights"):
        require_choice(plan)


def test_what_would_fit_if_it_were_allowed_is_named(folder: Path, cache: Path) -> None:
    config = config_for(folder, method={"kind": "auto", "allow": ["full"]}, per_device_train_batch_size=1)
    every = planned(config, BASE + 2000 * MIB, cache)
    lora = min(row.total for row in every.rows if row.name == "lora")
    plan = planned(config, lora + 20 * MIB, cache)
    with pytest.raises(BudgetError, match="lora would fit; set method=lora"):
        require_choice(plan)


def test_no_candidate_at_all_is_refused(folder: Path, cache: Path) -> None:
    config = config_for(folder, method={"kind": "auto", "allow": []})
    plan = planned(config, BASE + MIB, cache, only_allowed=True)
    with pytest.raises(BudgetError, match="there is no candidate to plan"):
        require_choice(plan)


def test_auto_is_resolved_to_a_config_that_can_be_built(folder: Path, cache: Path) -> None:
    events: list[Event] = []
    config = config_for(folder, auto=["per_device_train_batch_size", "gradient_checkpointing"])
    assert is_auto(config)
    resolved, plan = resolve_auto(config, HERE, budget=BASE + 2000 * MIB, cache=cache, sink=events.append)
    assert plan is not None
    assert not is_auto(resolved)
    assert resolved.method.kind == "full"
    assert any(isinstance(event, Notice) and "full, adamw" in event.message for event in events)


def test_without_auto_and_budget_the_config_stays(folder: Path) -> None:
    config = config_for(folder, method={"kind": "lora"})
    assert resolve_auto(config, HERE, budget=None, cache=None, sink=lambda event: None) == (config, None)


def test_a_budget_makes_lossless_concessions_only(folder: Path, cache: Path) -> None:
    config = config_for(folder, method={"kind": "lora"})
    wide = planned(config, BASE + 2000 * MIB, cache, only_allowed=True)
    most = max(row.tensors for row in wide.rows)
    resolved, _ = resolve_auto(config, HERE, budget=BASE + most - MIB, cache=cache, sink=lambda event: None)
    assert resolved.method == config.method
    assert resolved.quantization == config.quantization
    assert (resolved.per_device_train_batch_size, resolved.gradient_checkpointing) != (8, False)
    assert resolved.per_device_train_batch_size * resolved.gradient_accumulation_steps == 8


def test_auto_is_no_method_by_itself() -> None:
    with pytest.raises(ConfigError, match="auto is not a method yet"):
        build_method(run_config(method={"kind": "auto"}), tiny_model())


def test_the_cache_answers_what_was_asked_before(tmp_path: Path) -> None:
    shape, work = tiny_config("llama"), Work(BatchShape(2, 16))
    first = cached_predict(run_config(), shape, work, granularity=1, folder=tmp_path)
    (entry,) = tmp_path.glob("*.json")
    told = json.loads(entry.read_text())
    told["resident"] = 12345
    entry.write_text(json.dumps(told))
    assert cached_predict(run_config(), shape, work, granularity=1, folder=tmp_path).resident == 12345
    entry.write_text("{")
    assert cached_predict(run_config(), shape, work, granularity=1, folder=tmp_path) == first
    assert asdict(cached_predict(run_config(), shape, work, granularity=1, folder=None)) == asdict(first)


def test_what_the_batch_looks_like_follows_the_data() -> None:
    task = {"format": "task", "task": "sst2", "path": "x"}
    config = run_config(dataset=[task], eval_dataset=[task], max_length=100, per_device_eval_batch_size=3)
    assert work_of(config, 8) == Work(BatchShape(8, 100, options=2), BatchShape(3, 100, options=2))
    assert work_of(config, 4).micro_batches == 2, "gradients wait for the next of them"
    text = run_config(dataset=[{"format": "text", "path": "x"}])
    assert work_of(text, 2, tokens=7).batch == BatchShape(2, 7, packed=True)
    assert work_of(text, 2).eval_batch is None


def test_published_shapes_need_no_files() -> None:
    assert shape_of(run_config(model="facebook/opt-1.3b")).num_hidden_layers == 24


def test_the_table_and_the_bill_tell_the_same(folder: Path, cache: Path) -> None:
    plan = planned(config_for(folder), BASE + 2000 * MIB, cache)
    rows = table_rows(plan)
    assert [row[0] for row in rows].count(">") == 1
    lora = find_row(plan.rows, "lora")
    assert lora is not None
    assert find_row(plan.rows, "1") is plan.rows[0]
    assert find_row(plan.rows, "999") is None
    bill = "\n".join(bill_lines(plan, lora))
    for part in ("weights", "adapter", "optimizer state", "backward", "cuda itself"):
        assert part in bill
