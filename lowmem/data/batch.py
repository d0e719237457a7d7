"""What travels from data to a method: one padded micro-batch.

Letters: `B` examples, `S` rows (sequences; several per example when a task scores its options apart),
`T` tokens, `K` options.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lowmem.data.samples import EvalItem

IGNORE = -100
"""Label of a token that carries no loss."""


@dataclass(frozen=True)
class Options:
    """A classification task: each example is scored over its options.

    Two layouts. `token_ids` given: every option is one token, a row is the prompt alone and the option scores are
    log-probabilities at its last token (S = B). `token_ids` absent: each row is prompt + one option, labelled on the
    option's tokens, and its score is their mean log-probability (S = sum of options).
    """

    example: Tensor
    """(S,) int64: which example of the batch the row belongs to."""
    option: Tensor
    """(S,) int64: which option the row holds; zeros in the one-token layout."""
    gold: Tensor
    """(B,) int64: the right option."""
    count: int
    """K, the largest number of options of any example of the dataset."""
    token_ids: Tensor | None = None
    """(B, K) int64 in the one-token layout, else None."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch, right-padded. `attention_mask` is None for packed rows, whose `position_ids` restart at 0
    at every document, which is what keeps documents from seeing each other."""

    input_ids: Tensor
    """(S, T) int64."""
    attention_mask: Tensor | None
    """(S, T) int64, 1 for real tokens."""
    labels: Tensor
    """(S, T) int64: the token itself where it carries loss (predicted from the position before), else IGNORE."""
    position_ids: Tensor | None = None
    options: Options | None = None
    positions: tuple[Tensor, ...] = ()
    """Rows and columns, (N,) int64 each, whose hidden state predicts a labelled token; found once, on the host, so that
    the step itself never waits for the device and can be planned without values."""
    items: tuple[EvalItem, ...] = ()
    """(B,) what was asked and which answers are right, where every example has that: for losses that generate."""

    def __post_init__(self) -> None:
        if not self.positions:
            found = torch.nonzero(self.labels[:, 1:] != IGNORE, as_tuple=True)
            object.__setattr__(self, "positions", found)

    @property
    def examples(self) -> int:
        """B."""
        return self.input_ids.shape[0] if self.options is None else self.options.gold.shape[0]

    @property
    def weight(self) -> int:
        """What the loss of this batch counts for: trained tokens, or examples of a classification task."""
        if self.options is not None:
            return self.examples
        return self.positions[0].numel()

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        mask = self.attention_mask
        return self.input_ids.numel() if mask is None else int(mask.sum())

    @property
    def tensors(self) -> list[Tensor]:
        """Everything the batch holds."""
        held = [self.input_ids, self.attention_mask, self.labels, self.position_ids, *self.positions]
        if self.options is not None:
            held += [self.options.example, self.options.option, self.options.gold, self.options.token_ids]
        return [tensor for tensor in held if tensor is not None]

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        options = self.options
        if options is not None:
            ids = options.token_ids
            options = Options(
                example=options.example.to(device),
                option=options.option.to(device),
                gold=options.gold.to(device),
                count=options.count,
                token_ids=None if ids is None else ids.to(device),
            )
        mask, positions = self.attention_mask, self.position_ids
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=None if mask is None else mask.to(device),
            labels=self.labels.to(device),
            position_ids=None if positions is None else positions.to(device),
            options=options,
            positions=tuple(index.to(device) for index in self.positions),
        )
