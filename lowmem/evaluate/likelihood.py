"""How likely a model finds one text after another, and whether greedy decoding would have said it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_BYTES = 2**28
"""The logits that are alive at a time."""

Pair = tuple[Sequence[int], Sequence[int]]
"""A context of at least one token, and what follows it."""


def likelihoods(model: PreTrainedModel, pairs: Sequence[Pair], *, limit: int | None) -> list[tuple[float, bool]]:
    """Log-probability (natural) of each continuation after its context, and whether all its tokens are the likeliest.

    A context is cut from its left where both have more than `limit` tokens, and so is a continuation that alone has.
    The caller puts the model into eval mode.
    """
    rows = [_fitted(context, continuation, limit) for context, continuation in pairs]
    found: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
    vocabulary = model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        for group in _groups([len(ids) for ids, _ in rows], vocabulary):
            for index, scored in zip(group, _score(model, [rows[index] for index in group]), strict=True):
                found[index] = scored
    return found


def _fitted(context: Sequence[int], continuation: Sequence[int], limit: int | None) -> tuple[list[int], int]:
    """The tokens that are read (and the last one, which is only predicted), and how many of them are scored."""
    ids = [*context, *continuation]
    if limit is not None:
        ids = ids[-(limit + 1) :]
    return ids, min(len(continuation), len(ids) - 1)


def _groups(lengths: Sequence[int], vocabulary: int) -> Iterator[list[int]]:
    """Indices of rows of about one length, as many as `LOGIT_BYTES` allows, at least one."""
    waiting: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if waiting and (len(waiting) + 1) * lengths[waiting[0]] * vocabulary * 4 > LOGIT_BYTES:
            yield waiting
            waiting = []
        waiting.append(index)
    if waiting:
        yield waiting


def _score(model: PreTrainedModel, rows: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
    inputs = [torch.tensor(ids[:-1]) for ids, _ in rows]
    mask = pad_sequence([torch.ones_like(one) for one in inputs], batch_first=True).to(model.device)
    logits: Tensor = model(
        input_ids=pad_sequence(inputs, batch_first=True).to(model.device), attention_mask=mask, use_cache=False
    ).logits
    found = []
    for row, (ids, count) in zip(logits, rows, strict=True):
        if count == 0:
            found.append((0.0, True))
            continue
        said = row[len(ids) - 1 - count : len(ids) - 1].float()
        targets = torch.tensor(ids[-count:], device=said.device)
        chosen = said.log_softmax(dim=-1).gather(1, targets[:, None])
        found.append((float(chosen.double().sum()), bool((said.argmax(dim=-1) == targets).all())))
    return found
