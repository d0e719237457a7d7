"""Bits under a budget: against every possible allocation, and weights untouched by measuring."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lowmem.errors import BudgetError
from lowmem.quant.codec import Kind
from lowmem.quant.sensitivity import Choice, allocate, choices, measure_sensitivity
from tests.tiny import tiny_model, tokens

KINDS: tuple[Kind, ...] = ("s2", "s3", "s4")


def test_allocation_is_near_the_best_of_all_and_never_over_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(6, generator=generator).tolist()
    options = {f"l{k}": choices((64, 128 * (1 + k % 2)), weight, KINDS) for k, weight in enumerate(weights)}
    low = sum(found[0].nbytes for found in options.values())
    high = sum(found[-1].nbytes for found in options.values())
    for budget in range(low, high + 1, (high - low) // 7):
        picked = allocate(options, budget)
        assert sum(choice.nbytes for choice in picked.values()) <= budget
        best = min(
            sum(c.cost for c in combination)
            for combination in itertools.product(*options.values())
            if sum(c.nbytes for c in combination) <= budget
        )
        assert sum(choice.cost for choice in picked.values()) <= 1.25 * best + 1e-9
    assert {choice.kind for choice in allocate(options, high).values()} == {"s4"}


def test_the_more_sensitive_of_two_equals_gets_the_bits() -> None:
    options = {"calm": choices((8, 64), 0.1, KINDS), "tender": choices((8, 64), 0.9, KINDS)}
    budget = options["calm"][0].nbytes + options["tender"][2].nbytes
    assert {name: choice.kind for name, choice in allocate(options, budget).items()} == {"calm": "s2", "tender": "s4"}


def test_a_choice_that_costs_more_and_saves_nothing_is_never_taken() -> None:
    options = {"a": (Choice("s2", 10, 1.0), Choice("e8", 10, 0.5), Choice("s3", 20, 0.6), Choice("s4", 30, 0.1))}
    assert [allocate(options, size)["a"].kind for size in (10, 20, 30)] == ["e8", "e8", "s4"]


def test_a_budget_below_the_smallest_kinds_is_refused() -> None:
    with pytest.raises(BudgetError, match="are allowed: raise the size"):
        allocate({"a": choices((8, 64), 1.0, KINDS)}, 10)


def test_measuring_leaves_weights_as_they_were() -> None:
    model = tiny_model("llama", initializer_range=0.2)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layers.0" in name]
    found = measure_sensitivity(model, [{"input_ids": tokens(2, 12)}], names)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert set(found) == set(names)
    assert all(value > 0 for value in found.values())
