"""The training loss of any causal LM, without ever holding the logits of all tokens.

The decoder runs once; its hidden states at positions that carry loss are sent through the head in chunks of
`chunk_tokens`, which leave their gradients behind instead of logits (`head_loss.py`). Only labelled positions reach the
head at all, and a one-token classification task needs one position per example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowmem.data.batch import Batch, Options
from lowmem.errors import FormatError
from lowmem.models.head_loss import head_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LossSums:
    """Losses of one micro-batch before normalisation.

    `per_example` (B,) fp32: sum over the example's trained tokens (or its option cross-entropy). `counts` (B,) fp32:
    how many terms are in each sum. The mean loss of a step is the sum of all totals over the sum of all weights.
    """

    per_example: Tensor
    counts: Tensor

    @property
    def total(self) -> Tensor:
        """Scalar, in fp64: differences of ZO probes are far below fp32's resolution of a sum."""
        return self.per_example.double().sum()


LossFn = Callable[[Batch], LossSums]
"""Runs the model on one micro-batch. Differentiable when gradients are enabled."""


class ModelLoss:
    """`LossFn` of a causal LM. `model` is the transformers model itself (inside a peft wrapper: its base model).

    `chunk_tokens` bounds the logits that are alive at a time: chunk_tokens x V fp32, three times that in backward.
    """

    def __init__(self, model: PreTrainedModel, *, chunk_tokens: int = 256) -> None:
        self._model: Any = model
        self._decoder: nn.Module = model.base_model
        head = model.get_output_embeddings()
        if head is None:
            raise FormatError(
                f"{type(model).__name__} has no output head, so it has no next-token loss; use a causal LM"
            )
        self._head = cast(nn.Module, head)
        self._chunk_tokens = chunk_tokens

    def __call__(self, batch: Batch) -> LossSums:
        """Loss sums per example: token cross-entropies, or one cross-entropy over the options."""
        if batch.options is not None:
            scores = self.option_scores(batch)
            losses = F.cross_entropy(scores, batch.options.gold, reduction="none")
            return LossSums(losses, torch.ones_like(losses))
        nll, rows = self._token_nll(batch)
        zeros = nll.new_zeros(batch.input_ids.shape[0])
        return LossSums(zeros.index_add(0, rows, nll), zeros.index_add(0, rows, torch.ones_like(nll)))

    def option_scores(self, batch: Batch) -> Tensor:
        """(B, K) fp32 mean log-probability of each option's tokens; -inf where an example has fewer options."""
        options = batch.options
        if options is None:
            raise ValueError("option_scores needs a batch of a classification task")
        if options.token_ids is not None:
            return self._one_token_scores(batch, options.token_ids)
        return self._row_scores(batch, options)

    def check(self, input_ids: Tensor) -> None:
        """Raises `FormatError` unless head(decoder(x)) equals the model's own logits on `input_ids` (1, T).

        Some architectures post-process their logits; those we know are applied here, others must not pass silently.
        """
        with torch.no_grad():
            expected = self._model(input_ids=input_ids, use_cache=False).logits.float()
            actual = self._logits(self._hidden(Batch(input_ids, torch.ones_like(input_ids), input_ids)))
        error = (expected - actual).abs().max() / expected.abs().max().clamp_min(1e-6)
        if not bool(error <= 1e-3):
            raise FormatError(
                f"{type(self._model).__name__} changes its logits after the head in a way that the chunked loss does "
                f"not know (relative error {float(error):.1e}); this architecture cannot be trained yet"
            )

    def _hidden(self, batch: Batch) -> Tensor:
        """(S, T, D) last hidden states."""
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        return cast(Tensor, self._decoder(**inputs).last_hidden_state)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits in fp32 (fp64 for an fp64 model) with the post-processing of Gemma 2, Cohere and Granite."""
        logits: Tensor = self._head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        config = self._model.config
        if (scale := getattr(config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            logits = logits / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _token_nll(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(N,) fp32 negative log-likelihoods of the labelled tokens and the (N,) row of each."""
        rows, columns = batch.positions
        hidden = self._hidden(batch)[rows, columns]
        wanted = batch.labels[rows, columns + 1]
        return self._nll(hidden, wanted), rows

    def _nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        chunks = zip(torch.split(hidden, self._chunk_tokens), torch.split(targets, self._chunk_tokens), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([self._nll_chunk(h, wanted) for h, wanted in chunks])
        trained = [parameter for parameter in self._head.parameters() if parameter.requires_grad]
        if trained and next(self._head.children(), None) is not None:
            # An adapter around the head, whose output gradients some rules observe: they must be the true ones.
            return torch.cat([checkpoint(self._nll_chunk, h, w, use_reentrant=False) for h, w in chunks])
        return head_losses(hidden, targets, self._nll_chunk, chunk_tokens=self._chunk_tokens, parameters=trained)

    def _nll_chunk(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self._logits(hidden), targets, reduction="none")

    def _one_token_scores(self, batch: Batch, token_ids: Tensor) -> Tensor:
        hidden = self._hidden(batch)
        mask = batch.attention_mask
        if mask is None:
            raise ValueError("a one-token task is never packed: its batch needs an attention mask")
        last = mask.sum(dim=1) - 1
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return self._logits(hidden[rows, last]).log_softmax(-1).gather(1, token_ids)

    def _row_scores(self, batch: Batch, options: Options) -> Tensor:
        nll, rows = self._token_nll(batch)
        zeros = nll.new_zeros(batch.input_ids.shape[0])
        mean = -zeros.index_add(0, rows, nll) / zeros.index_add(0, rows, torch.ones_like(nll))
        scores = nll.new_full((options.gold.shape[0], options.count), -torch.inf)
        return scores.index_put((options.example, options.option), mean)
