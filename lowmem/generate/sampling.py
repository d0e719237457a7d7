"""The next token from logits: greedy, or drawn with a uniform number made from (seed, position) alone.

There is no generator to advance, so a request gives the same text alone, in any batch, and after a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lowmem.config.run import GenerationConfig
from lowmem.errors import NonFiniteError


def choose_tokens(
    logits: Tensor, config: GenerationConfig, *, seeds: Sequence[int], positions: Sequence[int]
) -> list[int]:
    """One token per row of `logits` (B, V). `positions[b]` counts the tokens row b has generated so far.

    Filters apply in the order temperature, top-k, top-p, each renormalising. Raises `NonFiniteError` on NaN.
    """
    logits = logits.float()
    broken = torch.isnan(logits).any(dim=-1)
    if bool(broken.any()):
        raise NonFiniteError(
            f"the model produced NaN at generated token {positions[int(broken.int().argmax())]}; "
            "its weights are damaged, or its dtype overflows (try dtype: fp32 or bf16)"
        )
    if config.temperature == 0:
        return [int(token) for token in logits.argmax(dim=-1).tolist()]
    drawn = torch.tensor(
        [uniform(seed, at) for seed, at in zip(seeds, positions, strict=True)],
        dtype=torch.float64,
        device=logits.device,
    )
    tokens, probabilities = filtered(logits, config)
    edges = probabilities.cumsum(dim=-1)
    total = edges[:, -1:]  # which rounding may leave below 1
    # Strictly below the total, so that the first edge above is always that of a token with some probability.
    point = torch.minimum(drawn[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(edges, point, right=True)
    return [int(token) for token in tokens.gather(1, index)[:, 0].tolist()]


def filtered(logits: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Tokens (B, K) and their probabilities (B, K) fp64 after the filters.

    K is V, or top_k where that is smaller; what top-p removes has probability 0.
    """
    if not config.top_k and config.top_p == 1:  # no sort: it would take longer than a small model's forward
        tokens = torch.arange(logits.shape[-1], device=logits.device).expand_as(logits)
        return tokens, (logits.double() / config.temperature).softmax(dim=-1)
    ordered, tokens = logits.sort(dim=-1, descending=True, stable=True)
    if config.top_k:
        ordered, tokens = ordered[:, : config.top_k], tokens[:, : config.top_k]
    probabilities = (ordered.double() / config.temperature).softmax(dim=-1)
    if config.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= config.top_p, 0.0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return tokens, probabilities


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53
