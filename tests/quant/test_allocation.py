"""What a file is made of, byte for byte, and what a size leaves for codes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lowmem.errors import BudgetError
from lowmem.quant.allocation import (
    Limits,
    Shapes,
    choose,
    codes_bytes,
    require_possible,
    rotation_bytes,
    shapes_of,
    table_bytes,
)
from lowmem.quant.codec import padded
from lowmem.quant.quantize import Candidate, QuantizeOptions, quantize_table, quantize_weight
from lowmem.quant.rotation import random_hadamard
from tests.tiny import tiny_model

SIZE = Limits(candidates=("rht",), group_size=0, embeddings=8, size=10**9, average_bits=None)


def tiny_shapes() -> Shapes:
    model = tiny_model("llama")
    names = [f"model.layers.{block}.mlp.{part}_proj" for block in range(2) for part in ("gate", "up", "down")]
    return shapes_of(model, names, ["model.embed_tokens"], itemsize=2)


def test_what_is_not_coded_is_stored_as_it_is() -> None:
    shapes = tiny_shapes()
    model = tiny_model("llama")
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert shapes.weights + sum(m * n for m, n in shapes.tables.values()) + shapes.other_bytes // 2 == whole
    assert "model.layers.0.self_attn.q_proj.weight" in shapes.other_names
    assert "model.layers.0.mlp.up_proj.weight" not in shapes.other_names


@pytest.mark.parametrize("shape", [(96, 64), (64, 160)])
def test_rotations_and_tables_take_their_true_bytes(shape: tuple[int, int]) -> None:
    m, n = shape
    rht = random_hadamard(m, 0).nbytes + random_hadamard(n, 1).nbytes
    assert rotation_bytes(shape, ("rht",)) == rht
    assert rotation_bytes(shape, ("none",)) == 0
    options = QuantizeOptions(kind="s2", candidates=("harp",), error_feedback=False, sweeps=0)
    options = replace(options, fit=replace(options.fit, steps=1, check=1))
    coded = quantize_weight(torch.randn(shape), torch.eye(n), options)
    assert rotation_bytes(shape, ("rht", "harp")) == coded.left.nbytes + coded.right.nbytes
    for kind, bits in (("int8", 8), ("int4", 4)):
        assert table_bytes(shape, bits) == quantize_table(torch.randn(shape), kind).nbytes  # type: ignore[arg-type]


def test_a_layer_that_matters_gets_the_bits_and_the_sum_is_kept() -> None:
    shapes = tiny_shapes()
    sensitive = "model.layers.0.mlp.down_proj"
    known = {name: 1.0 if name == sensitive else 1e-6 for name in shapes.linears}
    least = codes_bytes(shapes, ("s2",), SIZE) - table_bytes(next(iter(shapes.tables.values())), 8)
    m, n = shapes.linears[sensitive]
    more = m * padded(n) * 2 // 8
    limits = replace(SIZE, size=None, average_bits=8 * (least + more) / shapes.weights + 1e-6)
    kinds = choose(shapes, known, ("s2", "s4"), limits)
    assert [name for name, kind in kinds.items() if kind == "s4"] == [sensitive]


@pytest.mark.parametrize("candidates", [("none",), ("rht",), ("rht", "harp")])
def test_the_smallest_that_is_named_is_possible_and_one_less_is_not(candidates: tuple[Candidate, ...]) -> None:
    shapes, limits = tiny_shapes(), replace(SIZE, candidates=candidates, size=1)
    with pytest.raises(BudgetError, match=r"size: 1 B cannot be met.*or less with embeddings=4") as refused:
        require_possible(shapes, ("s2", "s4"), limits)
    least = int(str(refused.value).split("(")[1].split(" ")[0])
    require_possible(shapes, ("s2", "s4"), replace(limits, size=least))
    with pytest.raises(BudgetError, match="cannot be met"):
        require_possible(shapes, ("s2", "s4"), replace(limits, size=least - 1))
