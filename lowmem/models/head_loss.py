"""Losses through an output head, with their gradients left behind in the forward pass in place of the logits.

The loss of a token depends on its own hidden state h alone, so with a logit gradient g per token

    dL/dh_i = u_i W' g_i        dL/dW = sum of u_i g_i h_i'        u: what the rest of the step multiplies each loss by

everything but u is known at once. A frozen head keeps the first, (N, D), and backward scales its rows. A trained head
also keeps the second with u = 1, of the head's size, which it would need at the start of backward anyway. That is right
where u is the same for all tokens, as in the mean over tokens; where it is not (options, weighted examples), backward
runs the head a second time. Either way only the logits of one chunk exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Losses = Callable[[Tensor, Tensor], Tensor]
"""Cross-entropies (n,) of hidden states (n, D) against targets (n,)."""


def head_losses(
    hidden: Tensor, targets: Tensor, losses: Losses, *, chunk_tokens: int, parameters: Sequence[Tensor]
) -> Tensor:
    """(N,) losses of `hidden` (N, D), differentiable in it and in `parameters`, the trained ones of the head."""
    nll = _HeadLosses.apply(hidden, targets, losses, chunk_tokens, *parameters)  # type: ignore[no-untyped-call]
    return cast(Tensor, nll)


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, losses: Losses, chunk_tokens: int, *parameters: Tensor
    ) -> Tensor:
        # A power of two changes no bit; sums over thousands of tokens would leave fp16's range without it.
        ctx.scale = 2.0 ** -math.floor(math.log2(max(1, targets.numel()))) if parameters else 1.0
        factors = torch.full(targets.shape, ctx.scale, dtype=torch.float32, device=hidden.device)
        nll, ctx.gradients = _chunked(hidden, targets, losses, chunk_tokens, parameters, factors)
        ctx.losses, ctx.chunk_tokens, ctx.parameters = losses, chunk_tokens, parameters
        if parameters:
            ctx.save_for_backward(hidden, targets)
        return nll

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if ctx.parameters and (gradients is None or not _uniform(upstream)):
            del gradients  # of the head's size
            hidden, targets = ctx.saved_tensors
            _, gradients = _chunked(hidden, targets, ctx.losses, ctx.chunk_tokens, ctx.parameters, upstream)
        else:
            row_gradients, *others = gradients
            if not ctx.parameters:
                ctx.gradients = gradients  # small and unchanged: backward may come again
            factor = upstream / ctx.scale
            gradients = [row_gradients * factor[:, None].to(row_gradients.dtype)]
            gradients += [other.mul_(factor[:1].sum().to(other.dtype)) for other in others]
        return gradients[0], None, None, None, *gradients[1:]


def _uniform(upstream: Tensor) -> bool:
    """Whether all losses are multiplied by the same number; a plan, which has no numbers, takes the common case."""
    return isinstance(upstream, FakeTensor) or bool((upstream == upstream[:1]).all())


def _chunked(
    hidden: Tensor,
    targets: Tensor,
    losses: Losses,
    chunk_tokens: int,
    parameters: Sequence[Tensor],
    factors: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """All losses, and the gradients of their sum weighted by `factors`: of `hidden`, then of each of `parameters`."""
    pieces: list[Tensor] = []
    rows: list[Tensor] = []
    totals: list[Tensor] = []
    for h, wanted, factor in zip(*(torch.split(x, chunk_tokens) for x in (hidden, targets, factors)), strict=True):
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            nll = losses(leaf, wanted)
            found = list(torch.autograd.grad(nll, [leaf, *parameters], factor.to(nll.dtype)))
        pieces.append(nll.detach())
        del nll
        rows.append(found.pop(0))
        if totals:
            for total in totals:
                total.add_(found.pop(0))
        else:
            totals = found
    return torch.cat(pieces), [torch.cat(rows), *totals]
