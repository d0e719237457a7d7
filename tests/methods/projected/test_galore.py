"""Row G1, and what is GaLore's own: state as published, a learning rate that moves the weights."""

from __future__ import annotations

import pytest
import torch

from lowmem.methods.projected.matrix import Branches
from lowmem.methods.rules.adamw import AdamW
from lowmem.methods.rules.sgd import Sgd
from tests.methods.projected.problem import descend, gaussian, projected

TARGET = gaussian(12, 20, seed=9)


def pull(weight: torch.Tensor, update: int) -> torch.Tensor:
    return weight - TARGET + 0.1 * gaussian(12, 20, seed=update)


@pytest.mark.parametrize("tall", [False, True])
def test_full_rank_with_plain_descent_is_plain_descent(tall: bool) -> None:
    weight, plain = gaussian(12, 20), gaussian(12, 20)
    moved = weight.T.contiguous() if tall else weight
    matrix = projected(moved, Branches(Sgd()), rank=12)
    descend(matrix, moved, lambda w, t: pull(w.T, t).T.contiguous() if tall else pull(w, t), 20, lr=0.1)
    for update in range(20):
        plain = plain - 0.1 * pull(plain, update)
    torch.testing.assert_close(moved.T if tall else moved, plain, rtol=1e-5, atol=1e-5)


def test_full_rank_with_adamw_is_adamw_in_a_rotated_basis() -> None:
    weight = gaussian(12, 20)
    matrix = projected(weight, Branches(AdamW()), rank=12)
    first = matrix.basis.clone()
    rotated = first.T @ weight
    descend(matrix, weight, pull, 1, lr=0.01)
    second, rule, state = matrix.basis.clone(), AdamW(), AdamW().init(rotated)
    rule.update_(rotated, first.T @ pull(first @ (first.T @ gaussian(12, 20)), 0), state, lr=0.01, t=1, rounding_key=0)
    torch.testing.assert_close(weight, first @ rotated, rtol=1e-5, atol=1e-5)
    rotated = second.T @ weight  # the state stays as it is in the new basis, as published
    before = weight.clone()
    matrix.gather(pull(weight, 1))
    matrix.apply_(factor=1.0, lr=0.01, update=1, key=0)
    rule.update_(rotated, second.T @ pull(before, 1), state, lr=0.01, t=2, rounding_key=0)
    torch.testing.assert_close(weight, second @ rotated, rtol=1e-4, atol=1e-5)


def test_the_scale_and_the_learning_rate_multiply_what_the_weights_move() -> None:
    moves = []
    for lr, gain in ((0.01, 1.0), (0.02, 1.0), (0.01, 0.25)):
        weight = gaussian(12, 20)
        descend(projected(weight, Branches(AdamW(), gain=gain), rank=4), weight, pull, 1, lr=lr)
        moves.append(weight - gaussian(12, 20))
    torch.testing.assert_close(moves[1], 2 * moves[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moves[2], 0.25 * moves[0], rtol=1e-4, atol=1e-6)


def test_a_basis_found_at_an_update_serves_from_the_next_one_on() -> None:
    weight = gaussian(12, 20)
    low = gaussian(12, 2, seed=4) @ gaussian(2, 20, seed=5)
    matrix = projected(weight, Branches(Sgd()), rank=2)
    before = matrix.basis.clone()
    matrix.gather(low.clone())
    assert torch.equal(matrix.basis, before)
    matrix.apply_(factor=1.0, lr=0.1, update=0, key=0)
    torch.testing.assert_close(weight, gaussian(12, 20) - 0.1 * before @ (before.T @ low), rtol=1e-4, atol=1e-5)
    found = matrix.basis
    torch.testing.assert_close(found @ (found.T @ low), low, rtol=1e-4, atol=1e-4)
