"""Planning: a high precision writes a short outline, the low precision works along it; and when that is worth it.

    outlines = High(model, tokenizer, fallback).outlines([asking(q) for q in questions], config)
    prompts = [following(q, outline) for q, outline in zip(questions, outlines)]

Reconstructed from arXiv 2606.02011, read through digests: its prompt and the length of its outlines are not known to
us, the wording below is ours. An outline that holds the answer is no plan but the answer in high precision, so `leaks`
measures how often that happens, and a calibration that leaks is reported as such.

Which of the ways of dealing with low precision pays depends on the model and the task. `choose_policy` decides it from
a calibration of some fifty problems that were answered in both precisions. With C the share of traces in which a right
answer stood and was not given, and P the share in which none stood:

| found | policy |
|---|---|
| the low precision is within `CLOSE` of the high one | rescue: it costs nothing where nothing happens |
| C > P | rescue |
| P >= C, and outlines gain more than `GAIN` | planning, with rescue |
| P >= C, outlines do not gain, multiple choice, and P above `LARGE` | high: every token in high precision |
| P >= C otherwise | rescue |

The order of the rows and the constants beside the 5 points of the source are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowmem.config.generation import GenerationConfig
from lowmem.data.procedural import END_THINK, THINK
from lowmem.errors import ConfigError
from lowmem.generate.engine import Engine
from lowmem.generate.fallback import Fallback, nested_precisions
from lowmem.generate.generate import run_requests
from lowmem.generate.generation import Generation, Request
from lowmem.generate.tokens import Prompt, context_of, encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Policy = Literal["rescue", "planning", "high"]
GAIN = 0.05
CLOSE = 0.02
LARGE = 0.2


@dataclass(frozen=True)
class Wording:
    """How an outline is asked for and given: `{question}` and `{outline}` are replaced, everything else stays."""

    ask: str
    follow: str


PLAIN = Wording(
    ask=("{question}\n\nWrite a numbered outline of at most 6 steps to solve this. Do not compute the final result."),
    follow="{question}\n\nOutline:\n{outline}\n\nFollow the outline.",
)


def asking(question: str, wording: Wording = PLAIN) -> str:
    """The prompt for an outline."""
    return wording.ask.replace("{question}", question)


def following(question: str, outline: str, wording: Wording = PLAIN) -> str:
    """The prompt for an answer; the bare question where the outline is empty."""
    if not outline:
        return question
    before, _, after = wording.follow.partition("{question}")  # what is put in is not searched again
    return before + question + after.replace("{outline}", outline)


def outline_config(config: GenerationConfig) -> GenerationConfig:
    """How outlines are decoded: greedily, no longer than `outline_tokens`, ended where they repeat themselves."""
    return config.model_copy(
        update={
            "max_new_tokens": config.outline_tokens,
            "temperature": 0.0,
            "on_loop": "stop",
            "outline": "off",
        }
    )


def outline_of(text: str) -> str:
    """The outline in what a model wrote: without its thought, and empty where that never ends."""
    after = text.rpartition(END_THINK)[2]
    return "" if THINK in after else after.strip()


@dataclass(frozen=True)
class High:
    """The high precision by itself: the fallback's model, or `model` with both planes of its nested weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fallback: Fallback | None

    def answers(
        self, prompts: Sequence[Prompt], config: GenerationConfig, *, seeds: Sequence[int] | None = None
    ) -> list[Generation]:
        """Every prompt answered, in order.

        Raises `ConfigError` without a high precision, and for a prompt that leaves no room for an answer.
        """
        if self.fallback is None:
            raise ConfigError(
                "outlines are written in high precision, and there is none; add --fallback nested or --fallback MODEL, "
                "or set generation.outline: off"
            )
        if not prompts:
            return []
        ids = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        chosen = [config.seed] * len(ids) if seeds is None else list(seeds)
        requests = [Request(tuple(p), config, seed) for p, seed in zip(ids, chosen, strict=True)]
        wanted = max(map(len, ids)) + config.max_new_tokens
        limit = context_of(self.model)
        context = wanted if limit is None else min(wanted, limit)
        return run_requests(self._engine(self.fallback, slots=len(ids), context=context), requests)

    def outlines(self, prompts: Sequence[Prompt], config: GenerationConfig) -> list[str]:
        """An outline for each of `prompts`, which ask for one. Raises as `answers` does."""
        return [outline_of(done.text) for done in self.answers(prompts, outline_config(config))]

    def _engine(self, fallback: Fallback, *, slots: int, context: int) -> Engine:
        if fallback.model is not None:
            return Engine(fallback.model, self.tokenizer, slots=slots, context=context, precision="high")
        _, both = nested_precisions(self.model)
        return Engine(self.model, self.tokenizer, slots=slots, context=context, precision="high", inside=both)


def leaks(outline: str, *, answer: str, question: str) -> bool:
    """Whether `answer` stands in the outline by itself, and not in the question already."""
    alone = re.compile(rf"(?<![\w.,]){re.escape(answer.strip())}(?![\w]|[.,]\d)", re.IGNORECASE)
    return alone.search(outline) is not None and alone.search(question) is None


@dataclass(frozen=True)
class Calibration:
    """What some fifty problems showed. Shares of the problems, between 0 and 1.

    `commitment` (C) and `path` (P) are of the low precision's traces; `planned` is its accuracy with outlines, `leaked`
    the share of outlines that held the answer.
    """

    problems: int
    high: float
    low: float
    planned: float
    loops: float
    commitment: float
    path: float
    leaked: float
    options: bool
    """Whether the task is multiple choice."""


@dataclass(frozen=True)
class Choice:
    """A policy, and the row of the table that it comes from."""

    policy: Policy
    reason: str


def choose_policy(found: Calibration) -> Choice:
    """The policy for the model and the task of `found`. Pure."""
    if found.high - found.low <= CLOSE:
        return Choice("rescue", f"low precision answers {found.low:.0%} rightly, high precision {found.high:.0%}")
    lost = f"{found.commitment:.0%} of the traces held the right answer and did not give it, {found.path:.0%} never did"
    if found.commitment > found.path:
        return Choice("rescue", lost)
    gain = found.planned - found.low
    outlined = f"outlines change the accuracy by {100 * gain:+.0f} points and hold the answer in {found.leaked:.0%}"
    if gain > GAIN:
        return Choice("planning", f"{lost}; {outlined}")
    if found.options and found.path > LARGE:
        return Choice("high", f"{lost}, on multiple choice; {outlined}")
    return Choice("rescue", f"{lost}; {outlined}")
