"""The next token from logits: greedy, or drawn with a uniform number made from (seed, position) alone.

There is no generator to advance, so a request gives the same text alone, in any batch, and after a restart. Penalties
change logits first (in the order repetition, presence and frequency, DRY), then the filters temperature, top-k, top-p
and min-p apply, each renormalising what is left.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from lowmem.config.generation import GenerationConfig
from lowmem.errors import NonFiniteError


def choose_token(
    logits: Tensor, config: GenerationConfig, *, seed: int, prompt: Sequence[int] = (), tokens: Sequence[int] = ()
) -> int:
    """The token that follows `prompt` and the `tokens` generated so far, from `logits` (V,).

    Raises `NonFiniteError` on NaN.
    """
    scores = logits.float()
    if bool(torch.isnan(scores).any()):
        raise NonFiniteError(
            f"the model produced NaN at generated token {len(tokens)}; its weights are damaged, or its dtype overflows "
            "(try dtype: fp32 or bf16)"
        )
    scores = penalized(scores, config, prompt=prompt, tokens=tokens)
    if config.temperature == 0:
        return int(scores.argmax())
    choices, probabilities = filtered(scores, config)
    edges = probabilities.cumsum(dim=-1)
    total = edges[-1:]  # which rounding may leave below 1
    drawn = torch.tensor([uniform(seed, len(tokens))], dtype=torch.float64, device=logits.device)
    # Strictly below the total, so that the first edge above is always that of a token with some probability.
    point = torch.minimum(drawn * total, torch.nextafter(total, torch.zeros_like(total)))
    return int(choices[torch.searchsorted(edges, point, right=True)])


def penalized(logits: Tensor, config: GenerationConfig, *, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """`logits` (V,) fp32 after the penalties; the same tensor where there are none."""
    if config.repetition_penalty != 1 and (seen := sorted({*prompt, *tokens})):
        index = torch.tensor(seen, device=logits.device)
        old = logits[index]
        factor = config.repetition_penalty
        logits = logits.index_copy(0, index, torch.where(old > 0, old / factor, old * factor))
    if (config.presence_penalty or config.frequency_penalty) and tokens:
        counts = Counter(tokens)
        off = torch.tensor([config.presence_penalty + config.frequency_penalty * n for n in counts.values()])
        logits = _less(logits, list(counts), off)
    if config.dry_multiplier and (lengths := prolonged([*prompt, *tokens], config.dry_allowed_length)):
        powers = [config.dry_base ** min(n - config.dry_allowed_length, 60) for n in lengths.values()]
        logits = _less(logits, list(lengths), config.dry_multiplier * torch.tensor(powers))
    return logits


def prolonged(history: Sequence[int], allowed: int, *, longest: int = 50) -> dict[int, int]:
    """For each token that would prolong a repeated end of `history`: how long that end is, if `allowed` or longer."""
    found: dict[int, int] = {}
    if not history:
        return found
    for at in range(len(history) - 1):
        if history[at] != history[-1]:
            continue
        length = 1
        while length < longest and length <= at and history[at - length] == history[-1 - length]:
            length += 1
        token = history[at + 1]
        if length >= allowed and length > found.get(token, 0):
            found[token] = length
    return found


def filtered(logits: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Tokens (K,) and their probabilities (K,) fp64 after the filters.

    K is V, or top_k where that is smaller; what top-p and min-p remove has probability 0.
    """
    scaled = logits.double() / config.temperature
    if not config.top_k and config.top_p == 1:  # no sort: it would take longer than a small model's forward
        tokens = torch.arange(len(logits), device=logits.device)
        return tokens, _likely(scaled.softmax(dim=-1), config.min_p)
    ordered, tokens = scaled.sort(descending=True, stable=True)
    if config.top_k:
        ordered, tokens = ordered[: config.top_k], tokens[: config.top_k]
    probabilities = ordered.softmax(dim=-1)
    if config.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= config.top_p, 0.0)
        probabilities = probabilities / probabilities.sum()
    return tokens, _likely(probabilities, config.min_p)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def _likely(probabilities: Tensor, share: float) -> Tensor:
    if share == 0:
        return probabilities
    kept = probabilities.masked_fill(probabilities < share * probabilities.max(), 0.0)
    return kept / kept.sum()


def _less(logits: Tensor, tokens: Sequence[int], off: Tensor) -> Tensor:
    return logits.index_add(0, torch.tensor(tokens, device=logits.device), off.to(logits), alpha=-1)
