"""The quality gate: what a quantized model, read back from its files, still does of what the original did.

Two models are never in memory together. The original is read first: its log-probabilities at every counted position
of held-out text go to a file in fp32 (4 bytes x vocabulary for each), so the divergence that is measured later is exact
and not a top-k estimate, and it answers the prompts. Then the quantized model reads and answers the same.

KL is sum_v p(v) (log p(v) - log q(v)) with p the original's distribution: fp32 log-probabilities, the sum in fp64,
the mean over tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lowmem.config.generation import GenerationConfig
from lowmem.config.quantize import Gate
from lowmem.data.calibration import Text
from lowmem.errors import CheckpointError
from lowmem.evaluate.perplexity import perplexity
from lowmem.generate.generate import Answer, generate_answers
from lowmem.generate.tokens import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Trouble = Literal["none", "empty", "loop", "one token"]
MONOTONE = 16
"""Tokens from which on an answer that is mostly one token counts as broken."""


@dataclass(frozen=True)
class Closeness:
    """Two models on the same `tokens` counted tokens. Losses in nats per token."""

    tokens: int
    divergence: float
    loss_before: float
    loss_after: float
    agreement: float
    """Share of positions where both have the same first choice."""

    @property
    def perplexity_before(self) -> float:
        return perplexity(self.loss_before)

    @property
    def perplexity_after(self) -> float:
        return perplexity(self.loss_after)


@dataclass(frozen=True)
class Sample:
    """An answer of one of the models, and what is wrong with it."""

    prompt: str
    answer: str
    trouble: Trouble


@dataclass(frozen=True)
class GateReport:
    """What was found; `failures` are the limits that were not kept, in words, and none when the model passed."""

    closeness: Closeness
    before: tuple[Sample, ...]
    after: tuple[Sample, ...]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def broken(self) -> int:
        """Prompts that only the quantized model answers badly."""
        return newly_broken(self.before, self.after)


@torch.no_grad()
def keep_original(model: PreTrainedModel, texts: Sequence[Text], file: Path) -> None:
    """`file` holds the model's log-probabilities at the counted positions of `texts`: fp32 (N, V), in order, raw."""
    partial = file.with_name(f".partial-{file.name}")
    with partial.open("wb") as out:
        for text in texts:
            out.write(_log_probabilities(model, text).numpy().tobytes())
    partial.replace(file)


@torch.no_grad()
def compare(model: PreTrainedModel, texts: Sequence[Text], file: Path) -> Closeness:
    """How close `model` is to the one whose `keep_original` wrote `file` for the same texts.

    Raises `CheckpointError` for a file of other texts or of another vocabulary.
    """
    divergence = before = after = agreed = torch.zeros((), dtype=torch.float64)
    tokens = 0
    with file.open("rb") as original:
        for text in texts:
            have = _log_probabilities(model, text)
            raw = bytearray(original.read(4 * have.numel()))
            if len(raw) != 4 * have.numel():
                raise CheckpointError(f"{file} ends early: it was written for other text or another model; delete it")
            wanted = torch.frombuffer(raw, dtype=torch.float32).reshape(have.shape)
            labels = text.labels.cpu()[:, None]
            divergence = divergence + divergences(wanted, have).sum()
            before = before - wanted.gather(1, labels).sum(dtype=torch.float64)
            after = after - have.gather(1, labels).sum(dtype=torch.float64)
            agreed = agreed + (wanted.argmax(1) == have.argmax(1)).sum()
            tokens += len(labels)
    return Closeness(tokens, *(float(sums) / tokens for sums in (divergence, before, after, agreed)))


def divergences(wanted: Tensor, have: Tensor) -> Tensor:
    """KL of each row (N,) in fp64 from log-probabilities (N, V); a row at a time, so fp64 of all is never held."""
    rows = zip(wanted, have, strict=True)
    return torch.stack([(p.double().exp() * (p.double() - q.double())).sum() for p, q in rows])


def answer_all(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], *, max_new_tokens: int
) -> tuple[Sample, ...]:
    """Greedy answers; one that repeats itself is cut there."""
    config = GenerationConfig(max_new_tokens=max_new_tokens, on_loop="stop")
    answers = generate_answers(model, tokenizer, prompts, config)
    shown = [prompt if isinstance(prompt, str) else str(tokenizer.decode(list(prompt))) for prompt in prompts]
    return tuple(Sample(p, a.text, trouble_of(a)) for p, a in zip(shown, answers, strict=True))


def trouble_of(answer: Answer) -> Trouble:
    """What is wrong with an answer, whatever was asked."""
    if answer.loop is not None:
        return "loop"
    if not answer.text.strip():
        return "empty"
    most = max(Counter(answer.tokens).values())
    return "one token" if len(answer.tokens) >= MONOTONE and 2 * most > len(answer.tokens) else "none"


def newly_broken(before: Sequence[Sample], after: Sequence[Sample]) -> int:
    """Prompts with trouble after that had none before."""
    return sum(b.trouble == "none" and a.trouble != "none" for b, a in zip(before, after, strict=True))


def judge(closeness: Closeness, before: Sequence[Sample], after: Sequence[Sample], limits: Gate) -> GateReport:
    """The findings against the limits."""
    failures = []
    c = closeness
    if not c.divergence <= limits.max_divergence:  # NaN is no pass
        failures.append(
            f"KL divergence {c.divergence:.4f} nats per token, at most {limits.max_divergence:g} is allowed"
        )
    ratio = math.exp(min(c.loss_after - c.loss_before, 700.0))
    if not ratio <= limits.max_perplexity_ratio:
        failures.append(
            f"perplexity {c.perplexity_before:.4g} -> {c.perplexity_after:.4g}, {ratio:.3g} times as high, at most "
            f"{limits.max_perplexity_ratio:g} times is allowed"
        )
    if not c.agreement >= limits.min_agreement:
        failures.append(
            f"the same first choice at {c.agreement:.1%} of tokens, at least {limits.min_agreement:.1%} wanted"
        )
    broken = newly_broken(before, after)
    if broken > limits.max_broken * len(after):
        kinds = Counter(a.trouble for b, a in zip(before, after, strict=True) if b.trouble == "none" != a.trouble)
        said = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        failures.append(
            f"{broken} of {len(after)} prompts are answered badly ({said}) that the original answers, at most "
            f"{limits.max_broken:.0%} is allowed"
        )
    return GateReport(closeness, tuple(before), tuple(after), tuple(failures))


def _log_probabilities(model: PreTrainedModel, text: Text) -> Tensor:
    """(N, V) fp32 on the CPU, at the counted positions."""
    moved = text.to(model.device)
    logits = model(**moved.inputs, use_cache=False).logits[moved.rows, moved.columns]
    return torch.log_softmax(logits.float(), dim=-1).cpu()
