"""What to do with a text that repeats itself, runs out of tokens inside a thought, or ends inside one.

Reconstructed from arXiv 2606.02011 (read through digests; the order below and every constant are ours):

1. An answer was announced before the loop began: commit to it (two of the last three, else the newest). Where they
   contradict each other, no two the same, and there is a higher precision, that answers instead (3).
2. Else go back to the end of a sentence before the loop, close the thought and ask for the answer, in at most
   `commit_tokens` tokens, without taking the way into the loop again.
3. Else start again from the prompt in higher precision, where there is one.
4. Else the last number or option that was mentioned, said to be a guess; else that there is no answer.

Each step is tried once, so a rescue always ends. Pure functions: `lowmem.generate.engine` carries the decision out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lowmem.generate.answers import agreed, announced, mentioned, settled
from lowmem.generate.loops.base import Loop

Reason = Literal["loop", "budget", "unclosed"]
"""A loop was noticed; the tokens ran out inside a thought; the text ended inside one."""
Status = Literal["rescued_early_answer", "forced_commit", "fp_fallback", "uncommitted_guess", "no_answer", "cut"]
SENTENCE_REACH = 300
"""Characters (about 64 tokens) that are given up to end on a whole sentence."""
STUB = "\nFinal answer:"
_COMPLETE = re.compile(r"[.!?][\"')\]]*\s*$|\n\s*$")
_PUNCTUATION = re.compile(r"(?:[.!?][\"')\]]*)?")
_SENTENCE_END = re.compile(r"[.!?:](?=\s)|\n")


@dataclass(frozen=True)
class Trace:
    """What was generated so far. `thinking`: the text ends inside a thought. `loop_at`: the character where the loop
    begins, or the length of the text. `tried`: the steps that were taken before."""

    text: str
    thinking: bool
    reason: Reason
    loop_at: int
    tried: frozenset[str] = frozenset()
    can_fall_back: bool = False


@dataclass(frozen=True)
class Commit:
    """The first `keep` characters stay; `text` follows and ends the answer. `answer` is None where there is none."""

    keep: int
    text: str
    answer: str | None
    status: Status


@dataclass(frozen=True)
class Ask:
    """The first `keep` characters stay, `text` follows, and decoding goes on from there."""

    keep: int
    text: str
    status: Status = "forced_commit"


@dataclass(frozen=True)
class FallBack:
    """The prompt is answered again in higher precision."""

    status: Status = "fp_fallback"


Action = Commit | Ask | FallBack


@dataclass(frozen=True)
class Rescue:
    """What a rescue did, for reports and the server's `lowmem` field. `answer`: what it committed to, if anything."""

    status: Status
    reason: Reason
    loop: Loop | None
    answer: str | None
    tokens_cut: int
    tokens_added: int


def decide(trace: Trace, *, close: str) -> Action:
    """The next step for `trace`. `close` ends a thought ("</think>")."""
    before = trace.text[: _closed(trace.text, trace.loop_at)]
    found = announced(before)
    answer = settled(found)
    ending = f"\n{close}\n\n" if trace.thinking else "\n"
    falls_back = trace.can_fall_back and "fall back" not in trace.tried
    if falls_back and trace.thinking and len(found) > 1 and agreed(found) is None:
        return FallBack()
    if answer is not None and "ask" not in trace.tried:
        keep = len(before) if trace.thinking else _after(before, answer.start + len(answer.text))
        text = ending + answer.text if trace.thinking else ""
        return Commit(keep, text, answer.value, "rescued_early_answer")
    if not trace.thinking and not trace.tried and trace.reason == "loop":
        return Commit(sentence_end(before), "", None, "cut")
    if "ask" not in trace.tried:
        return Ask(sentence_end(before), ending.rstrip("\n") + STUB if trace.thinking else STUB)
    if falls_back:
        return FallBack()
    guess = mentioned(trace.text)
    if guess is not None:
        return Commit(len(before), f"{ending}(uncommitted guess) {guess}", guess, "uncommitted_guess")
    return Commit(len(before), f"{ending}No answer was found.", None, "no_answer")


def sentence_end(text: str) -> int:
    """Where the last whole sentence of `text` ends, if within reach; else where the text ends."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text, max(0, len(text) - SENTENCE_REACH))]
    return ends[-1] if ends else len(text)


def ends_sentence(text: str) -> bool:
    """Whether a sentence or a line is complete."""
    return _COMPLETE.search(text) is not None


def _closed(text: str, position: int) -> int:
    """`position`, or the end of the punctuation that it stands at: it belongs to the sentence before."""
    return _PUNCTUATION.match(text, position).end()  # type: ignore[union-attr]


def _after(text: str, position: int) -> int:
    """The end of the sentence that `position` is in."""
    found = _SENTENCE_END.search(text, position)
    return found.end() if found else len(text)
