"""What the observer sees is what a dense computation by autograd gives, however the backward pass runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lowmem.config.method import LoraMethod
from lowmem.methods.accumulate import accumulate
from lowmem.methods.lowrank.lora import attach_lora
from lowmem.methods.lowrank.observe import Observed, Observer
from lowmem.methods.lowrank.pair import Pair, find_pairs
from lowmem.models.checkpointing import set_gradient_checkpointing
from lowmem.models.loss import ModelLoss
from tests.tiny import lm_batch, rows_of, tiny_model


class Watched:
    """A tiny model with adapters whose B is not zero, so that every gradient is there."""

    def __init__(self, what: Any = "rows", *, checkpointing: bool = False) -> None:
        self.model = tiny_model().train()
        attach_lora(self.model, LoraMethod(lora_r=4), seed=0)
        self.pairs = find_pairs(self.model)
        for index, pair in enumerate(self.pairs):
            torch.nn.init.normal_(pair.b, std=0.1, generator=torch.Generator().manual_seed(index))
        set_gradient_checkpointing(self.model, checkpointing)
        self.loss = ModelLoss(self.model, chunk_tokens=16)
        self.observer = Observer(self.pairs, what)

    def observe(self, *batches: Any) -> dict[str, Observed]:
        with self.observer.watching() as observed:
            accumulate(self.loss, batches, seed=0, step=0)
        return observed


def dense(pair: Pair, observed: Observed) -> Tensor:
    """G from the rows."""
    x, s = observed.all_rows()
    return s.T @ x


def gradient(pair: Pair, side: str) -> Tensor:
    grad = (pair.a if side == "a" else pair.b).grad
    assert grad is not None
    return grad


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_reproduce_the_gradients_of_both_factors(checkpointing: bool) -> None:
    """dLoss/dA = scale B'G and dLoss/dB = scale GA': checkpointing runs forwards twice, rows count once."""
    watched = Watched(checkpointing=checkpointing)
    observed = watched.observe(lm_batch(rows=4), lm_batch(rows=3, seed=1))
    for pair in watched.pairs:
        g = dense(pair, observed[pair.name])
        torch.testing.assert_close(gradient(pair, "a"), pair.scale * pair.b.T @ g, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(gradient(pair, "b"), pair.scale * g @ pair.a.T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_squares_are_those_of_rows_with_a_gradient(checkpointing: bool) -> None:
    rows = Watched("rows").observe(lm_batch(rows=4))
    squares = Watched("squares", checkpointing=checkpointing).observe(lm_batch(rows=4))
    for name, observed in squares.items():
        assert not observed.rows
        x, s = rows[name].all_rows()
        lengths = s.double().norm(dim=1)
        alive = lengths > 1e-6 * lengths.max()  # below is rounding, as in the query of a token that sees itself alone
        assert 0 < int(alive.sum()) < len(alive), "the batch has padding, and the end of each row is not trained on"
        assert observed.squares is not None
        assert float(observed.squares.count) == int(alive.sum())
        torch.testing.assert_close(observed.squares.inn, x[alive].square().sum(0), rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(observed.squares.out, s.square().sum(0), rtol=1e-5, atol=1e-12)


def test_a_row_of_rounding_noise_counts_as_one_of_zeros() -> None:
    x, s = torch.ones(3, 4), torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.5, 0.5]])
    clean, noisy = Observed(), Observed()
    clean.add_squares(x, s)
    noisy.add_squares(x, s + torch.tensor([[0.0, 0.0], [1e-9, -1e-9], [0.0, 0.0]]))
    assert clean.squares is not None
    assert noisy.squares is not None
    assert float(noisy.squares.count) == float(clean.squares.count) == 2
    assert torch.equal(noisy.squares.inn, clean.squares.inn)


def test_micro_batches_add_up_to_one_batch() -> None:
    batch = lm_batch(rows=7)
    one = Watched("squares").observe(batch)
    many = Watched("squares").observe(rows_of(batch, 0, 3), rows_of(batch, 3, 7))
    for name, observed in one.items():
        left, right = observed.squares, many[name].squares
        assert left is not None
        assert right is not None
        assert torch.equal(left.count, right.count)
        torch.testing.assert_close(left.inn, right.inn, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(left.out, right.out, rtol=1e-4, atol=1e-12)


def test_nothing_is_attached_outside_of_a_step_and_gradients_are_untouched() -> None:
    watched, plain = Watched(), Watched("nothing")
    watched.observe(lm_batch())
    plain.observe(lm_batch())
    for left, right in zip(watched.pairs, plain.pairs, strict=True):
        assert torch.equal(gradient(left, "a"), gradient(right, "a"))
        assert not left.first._forward_pre_hooks
        assert not left.second._forward_hooks


def test_rows_kept_without_checkpointing_are_the_activations_themselves() -> None:
    """x costs no memory of its own: it is the tensor that autograd keeps for the gradient of A."""
    watched = Watched("rows")
    seen: list[int] = []
    pair = watched.pairs[0]
    handle = pair.first.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].data_ptr()))
    observed = watched.observe(lm_batch())
    handle.remove()
    assert observed[pair.name].rows[0][0].data_ptr() in seen
