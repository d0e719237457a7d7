"""The texts on which quantized models are calibrated and judged, and what a model loses against the original there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Tensor]
Logits = Callable[[Tensor], Tensor]
"""Token ids (1, T) to logits (T, vocabulary), fp32."""


def chunks_of(tokenizer: Any, path: Path, *, count: int, context: int) -> list[Tensor]:
    """The first `count` chunks of `context` tokens of a text file, (1, context) each."""
    characters = 8 * count * context + 4096  # more than enough: real text has 4 to 5 a token
    ids = tokenizer(path.read_text(encoding="utf-8")[:characters], add_special_tokens=False)["input_ids"]
    if len(ids) < count * context:
        raise SystemExit(f"{path.name} holds {len(ids)} tokens in its first {characters} characters: too few")
    return list(torch.tensor(ids[: count * context]).reshape(count, 1, context))


def as_batches(chunks: Sequence[Tensor]) -> list[Batch]:
    """Keyword arguments of a model."""
    return [{"input_ids": chunk, "attention_mask": torch.ones_like(chunk)} for chunk in chunks]


def logits_of(model: Any) -> Logits:
    """All logits of a transformers model for one chunk."""

    @torch.no_grad()
    def run(chunk: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=chunk, use_cache=False).logits[0]
        return logits.float()

    return run


class Judge:
    """What the original says about every judged chunk, kept in memory as fp16 log-probabilities."""

    def __init__(self, original: Logits, chunks: Sequence[Tensor]) -> None:
        self.chunks = list(chunks)
        wanted = [torch.log_softmax(original(chunk)[:-1], -1) for chunk in self.chunks]
        self.original_perplexity = math.exp(self._loss(wanted))
        self._wanted = [logs.half() for logs in wanted]

    def __call__(self, logits: Logits) -> dict[str, float]:
        """Perplexity, mean KL from the original in nats per token, and the share of equal likeliest tokens."""
        have = divergence = agreement = 0.0
        for chunk, kept in zip(self.chunks, self._wanted, strict=True):
            logs, wanted = torch.log_softmax(logits(chunk)[:-1], -1), torch.log_softmax(kept.float(), -1)
            have += self._loss_of(logs, chunk)
            divergence += float((wanted.exp() * (wanted - logs)).sum(-1).mean())
            agreement += float((wanted.argmax(-1) == logs.argmax(-1)).float().mean())
        count = len(self.chunks)
        return {"perplexity": math.exp(have / count), "kl": divergence / count, "top1": agreement / count}

    def _loss(self, logs: Sequence[Tensor]) -> float:
        return sum(self._loss_of(log, chunk) for log, chunk in zip(logs, self.chunks, strict=True)) / len(self.chunks)

    @staticmethod
    def _loss_of(logs: Tensor, chunk: Tensor) -> float:
        return float(-logs.gather(1, chunk[0, 1:, None]).mean())
