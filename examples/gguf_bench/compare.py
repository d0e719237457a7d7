"""Tokens, logits and greedy answers of two implementations of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """Of one text: its tokens, logits (T, V) after each, and the tokens of a greedy answer."""

    ids: list[int]
    logits: Tensor
    answer: list[int]


@dataclass(frozen=True)
class Agreement:
    """`largest`: difference of log-probabilities where ours is above 1e-4. `kl`: mean, in nats, from ours to theirs.

    `answer`: tokens of the greedy answer before the first difference; `tie`: how far our first choice was ahead there.
    """

    same_tokens: bool
    top: float
    largest: float
    kl: float
    answer: int
    tie: float | None


def agreement(ours: Reading, theirs: Reading, ahead: Sequence[float]) -> Agreement:
    """`ahead`: at each token of our answer, our log-probability of it less that of the second choice."""
    if ours.ids != theirs.ids:
        return Agreement(False, 0.0, float("nan"), float("nan"), 0, None)
    p, q = ours.logits.float().log_softmax(-1), theirs.logits.float().log_softmax(-1)
    likely = p > torch.log(torch.tensor(1e-4))
    pairs = zip(ours.answer, theirs.answer, strict=True)
    same = next((index for index, (a, b) in enumerate(pairs) if a != b), len(ours.answer))
    return Agreement(
        same_tokens=True,
        top=float((p.argmax(-1) == q.argmax(-1)).float().mean()),
        largest=float((p - q).abs()[likely].max()),
        kl=float((p.exp() * (p - q)).sum(-1).mean()),
        answer=same,
        tie=None if same == len(ours.answer) else ahead[same],
    )
