"""What became of a reasoning trace: whether it ended with the right answer, and if not, where it was lost.

Every trace is one of `ok` (the final answer is right), `commitment_failure` (a right answer was announced somewhere,
the final one is missing or another) and `path_finding_failure` (no right answer anywhere). Besides it may be

| attribute | test |
|---|---|
| loop | the detector fires somewhere in it |
| hit_limit | it was cut off before its end |
| unclosed_think | it ends inside a thought |
| delayed_commitment | its first right answer stands in a thought that goes on for long: `DELAY` |

Source: the taxonomy of arXiv 2606.02011, read through digests; the tests and constants are our reading. An answer
counts where it is announced (`lowmem.generate.answers`); a number that merely occurs does not.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowmem.data.procedural import END_THINK, THINK
from lowmem.evaluate.answers import extract, final_text, verify, verify_value
from lowmem.evaluate.exact import Question
from lowmem.generate.answers import Announced, announced
from lowmem.generate.loops.base import Loop
from lowmem.generate.loops.detector import LoopDetector

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowmem.generate.generation import Generation

Outcome = Literal["ok", "commitment_failure", "path_finding_failure"]
DELAY = 512
"""A thought is late when it goes on for more tokens than this, and than half of what came before its right answer."""


@dataclass(frozen=True)
class Trace:
    """A generated text. `ends[i]`: characters that the first i + 1 tokens make up. `thinking`: the prompt had begun a
    thought. `cut`: it was ended from outside, by a limit."""

    text: str
    ends: tuple[int, ...]
    thinking: bool
    cut: bool
    loop: Loop | None

    @property
    def whole(self) -> str:
        """The text with the tag of the thought that the prompt had begun."""
        return THINK + self.text if self.thinking else self.text

    def token_at(self, character: int) -> int:
        """Tokens before the one that `character` belongs to."""
        return bisect.bisect_right(self.ends, character)


@dataclass(frozen=True)
class Labels:
    """What `label` found. `tokens_to_answer`: before the first answer, right or not; None without one."""

    outcome: Outcome
    loop: bool
    hit_limit: bool
    unclosed_think: bool
    delayed_commitment: bool
    tokens_to_answer: int | None


def trace_of(generation: Generation, text_of: Callable[[int], str]) -> Trace:
    """The trace of a finished generation. The detector reads it again, so that it need not have watched."""
    loop = generation.loop or first_loop(generation.tokens, text_of)
    return Trace(
        generation.text,
        tuple(generation.character_at(n) for n in range(1, len(generation.tokens) + 1)),
        generation.begun_thinking,
        generation.reason == "length",
        loop,
    )


def first_loop(tokens: Sequence[int], text_of: Callable[[int], str]) -> Loop | None:
    """The first loop that the detector reports, if any."""
    detector = LoopDetector(text_of)
    found = (detector.push(token, text_of(token)) for token in tokens)
    return next((loop for loop in found if loop is not None), None)


def label(trace: Trace, question: Question) -> Labels:
    """The place of `trace` in the taxonomy."""
    found = announced(trace.text)
    right = [one for one in found if verify_value(question.kind, one.value, question.references)]
    outcome: Outcome = "path_finding_failure"
    if answers_rightly(trace, question):
        outcome = "ok"
    elif right:
        outcome = "commitment_failure"
    return Labels(
        outcome,
        loop=trace.loop is not None,
        hit_limit=trace.cut,
        unclosed_think=final_text(trace.whole) is None,
        delayed_commitment=bool(right) and _late(trace, right[0]),
        tokens_to_answer=_tokens_to_answer(trace, found),
    )


def answers_rightly(trace: Trace, question: Question) -> bool:
    """Whether the final answer, outside any thought, is right: as `verify` reads it, or as announced last."""
    final = final_text(trace.whole)
    return final is not None and _gives(final, question)


def last_parseable(trace: Trace, question: Question) -> bool:
    """Whether the last answer that stands anywhere in the trace is right: what a reader makes of a text that never
    ends. The baseline that a rescue must beat."""
    if final_text(trace.whole):
        return answers_rightly(trace, question)
    bare = trace.text.replace(THINK, "\n").replace(END_THINK, "\n")
    return _gives(bare, question)


def _gives(text: str, question: Question) -> bool:
    """The newest announcement decides where there is one, else what `verify` takes for the answer."""
    if extract(text, question.kind) is not None and verify(question.kind, text, question.references):
        return True
    found = announced(text)
    return bool(found) and verify_value(question.kind, found[-1].value, question.references)


def _tokens_to_answer(trace: Trace, found: Sequence[Announced]) -> int | None:
    """Tokens before the first announcement, else before what stands after a thought."""
    if found:
        return trace.token_at(found[0].start)
    final = final_text(trace.whole)
    return trace.token_at(trace.text.rfind(final)) if final and END_THINK in trace.text else None


def _late(trace: Trace, first: Announced) -> bool:
    """Whether `first` stands inside a thought that goes on for long."""
    at = first.start + len(trace.whole) - len(trace.text)
    opened, closed = trace.whole.rfind(THINK, 0, at), trace.whole.rfind(END_THINK, 0, at)
    if opened <= closed:
        return False
    end = trace.text.find(END_THINK, first.start)
    stop = len(trace.ends) if end < 0 else trace.token_at(end)
    place = trace.token_at(first.start)
    return stop - place > max(DELAY, place / 2)
