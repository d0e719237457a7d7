"""Candidates and the choice between them, without simulating anything."""

from __future__ import annotations

import pytest

from lowmem.config.method import AutoMethod
from lowmem.plan.fit import Bill, Row, choose, explain_choice, nearest_miss, verdict
from lowmem.plan.ladder import allowed, apply, forwards_per_step, micro_batches, relative_speed, rungs
from tests.tiny import run_config

GIB = 2**30


def row(
    name: str, tier: int, size: float, *, budget: float = 10, speed: float = 1.0, may: bool = True, examples: int = 1
) -> Row:
    total = round(size * GIB)
    return Row(
        name=name,
        tier=tier,
        examples=examples,
        accumulation=1,
        checkpointing=False,
        bills=(Bill("forward", total, {"weights": total}),),
        tensors=total,
        total=total,
        verdict=verdict(total, margin=GIB // 2, budget=round(budget * GIB)),
        allowed=may,
        speed=speed,
        changes=(f"method={name}",),
    )


@pytest.mark.parametrize(("total", "expected"), [(90, "fits"), (91, "tight"), (100, "tight"), (101, "no")])
def test_fits_leaves_the_margin_free(total: int, expected: str) -> None:
    assert verdict(total, margin=10, budget=100) == expected


def test_the_best_tier_that_fits_is_chosen() -> None:
    rows = [row("full", 1, 40), row("lora", 2, 8), row("zo", 5, 4)]
    assert choose(rows) is rows[1]
    assert explain_choice(rows, rows[1]) == "full: too large"


def test_a_comfortable_lower_tier_beats_a_tight_better_one() -> None:
    rows = [row("lora", 2, 9.8), row("zo", 5, 4)]
    assert rows[0].verdict == "tight"
    assert choose(rows) is rows[1]


def test_a_tight_row_runs_where_nothing_fits_comfortably() -> None:
    rows = [row("lora", 2, 9.8), row("zo", 5, 12)]
    assert choose(rows) is rows[0]


def test_the_faster_variant_of_a_tier_is_chosen() -> None:
    rows = [row("lora", 2, 6, speed=0.9), row("lora", 2, 8, speed=1.4)]
    assert choose(rows) is rows[1]


def test_lossy_rows_are_never_chosen_unless_allowed() -> None:
    rows = [row("lora", 2, 40), row("lora on nf4", 4, 5, may=False)]
    assert choose(rows) is None
    assert nearest_miss(rows) is rows[1]
    assert explain_choice(rows, None) == "nothing that the config allows fits"


def test_the_nearest_miss_needs_least() -> None:
    rows = [row("full", 1, 40), row("zo", 5, 11)]
    assert nearest_miss(rows) is rows[1]
    assert nearest_miss([]) is None


def test_micro_batches_halve_and_end_at_one() -> None:
    assert micro_batches(8) == (8, 4, 2, 1)
    assert micro_batches(6) == (6, 3, 1)
    assert micro_batches(1) == (1,)


def test_every_rung_of_a_config_is_a_valid_config() -> None:
    config = run_config(learning_rate=1e-4, optimizer={"kind": "adamw", "weight_decay": 0.1})
    for rung in rungs(config):
        changed = apply(config, rung, examples=4, checkpointing=True)
        assert changed.method.kind == rung.kind
        assert changed.quantization.kind == rung.base
        assert changed.gradient_checkpointing


def test_the_effective_batch_stays() -> None:
    config = run_config(per_device_train_batch_size=8, gradient_accumulation_steps=3)
    changed = apply(config, rungs(config)[0], examples=2, checkpointing=False)
    assert (changed.per_device_train_batch_size, changed.gradient_accumulation_steps) == (2, 12)


def test_an_explicit_method_allows_itself_alone() -> None:
    config = run_config(method={"kind": "lora", "lora_r": 32}, quantization={"kind": "nf4"})
    names = [rung.name for rung in rungs(config) if allowed(config, rung)]
    assert names == ["lora on nf4"]
    chosen = next(rung for rung in rungs(config) if rung.name == names[0])
    assert apply(config, chosen, examples=8, checkpointing=False) == config


@pytest.mark.parametrize("kind", ["lorsum", "lora_muon"])
def test_adapter_methods_with_their_own_rule_have_rungs_where_they_are_asked_for(kind: str) -> None:
    config = run_config(method={"kind": kind, "lora_r": 32, "momentum": 0.5}, quantization={"kind": "nf4"})
    (name,) = [rung.name for rung in rungs(config) if allowed(config, rung)]
    assert name == f"{kind} on nf4"
    chosen = next(rung for rung in rungs(config) if rung.name == name)
    assert chosen.adapts
    assert apply(config, chosen, examples=8, checkpointing=False) == config
    auto = run_config(method={"kind": "auto", "allow": [kind], "lora_r": 4})
    (rung,) = [rung for rung in rungs(auto) if allowed(auto, rung)]
    assert apply(auto, rung, examples=8, checkpointing=False).method.model_dump()["lora_r"] == 4
    assert not any(rung.kind == kind for rung in rungs(run_config()))


def test_auto_allows_what_it_lists() -> None:
    def names(**keys: object) -> set[str]:
        config = run_config(method={"kind": "auto", **keys})
        return {rung.name for rung in rungs(config) if allowed(config, rung)}

    assert names() == {"full, adamw", "full, adamw in backward", "lora", "zo", "zo on lora"}
    assert names(allow=["lora"]) == {"lora"}
    assert names(allow=["lora"], allow_quantization=["nf4"]) == {"lora", "lora on nf4"}


def test_auto_keeps_a_quantized_base_quantized() -> None:
    config = run_config(method=AutoMethod(), quantization={"kind": "nf4"})
    names = {rung.name for rung in rungs(config) if allowed(config, rung)}
    assert names == {"lora on nf4", "zo on lora on nf4"}


def test_a_parameter_free_rung_drops_the_learning_rate() -> None:
    config = run_config(learning_rate=1e-4)
    zo = next(rung for rung in rungs(config) if rung.name == "zo")
    assert apply(config, zo, examples=8, checkpointing=False).learning_rate is None


def test_time_is_counted_in_forward_passes() -> None:
    by_name = {rung.name: rung for rung in rungs(run_config())}
    assert forwards_per_step(by_name["full, adamw"], checkpointing=False) == 3
    assert forwards_per_step(by_name["lora"], checkpointing=True) == 3
    assert forwards_per_step(by_name["zo"], checkpointing=False) == pytest.approx(5.5)
    slow, fast = (relative_speed(by_name["lora"], checkpointing=False, tokens=n) for n in (32, 4096))
    assert slow < fast < 1.5
