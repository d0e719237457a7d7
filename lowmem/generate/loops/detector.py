"""Several rules over one sequence: the first that fires says that the text repeats itself.

    detector = LoopDetector(text_of)
    loop = detector.push(token, piece)      # None, or a Loop with rule, onset and period
    detector.rewind(20)                     # the last 20 tokens never came

| rule | notices |
|---|---|
| ngram | 20 tokens that stand four times in 1024 (arXiv 2606.02011), guarded |
| long | 40 tokens that stand three times in 8192: periods up to 4076 |
| tail | four exact copies of a block at the end (as vLLM) |
| counter | the same sentences with a number that counts |
| novelty | sentences in changing order, nothing new among them |
| restated | the same answer announced five times, and no new number |

Only reads: with a detector that does not fire, decoding gives the tokens that it gives without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from lowmem.generate.loops.base import Loop, Rule
from lowmem.generate.loops.context import TextContext
from lowmem.generate.loops.counter import CounterRule
from lowmem.generate.loops.ngram import NGramRule
from lowmem.generate.loops.novelty import NoveltyRule
from lowmem.generate.loops.restated import RestatedRule
from lowmem.generate.loops.tail import TailRule

RuleName = Literal["ngram", "long", "tail", "counter", "novelty", "restated"]
RULES: tuple[RuleName, ...] = ("ngram", "long", "tail", "counter", "novelty", "restated")


class LoopDetector:
    """One sequence's rules and history. Not shared between sequences. `own`: rules beside the named ones."""

    def __init__(
        self, text_of: Callable[[int], str], *, rules: Sequence[RuleName] = RULES, own: Sequence[Rule] = ()
    ) -> None:
        makers: dict[RuleName, Callable[[], Rule]] = {
            "ngram": NGramRule,
            "long": lambda: NGramRule(n=40, count=3, window=8192, name="long"),
            "tail": TailRule,
            "counter": lambda: CounterRule(text_of),
            "novelty": NoveltyRule,
        }
        self._rules = [*(makers[name]() for name in rules if name != "restated"), *own]
        self._restated = RestatedRule() if "restated" in rules else None
        self._tokens: list[int] = []
        self._contexts = [TextContext()]

    def __len__(self) -> int:
        return len(self._tokens)

    def push(self, token: int, piece: str = "") -> Loop | None:
        """The next token and the text that it completed; a loop as soon as one of the rules is sure of it.

        Every rule sees every token, whichever fires.
        """
        self._tokens.append(token)
        strict = self._contexts[-1].strict
        self._contexts.append(self._contexts[-1].after(piece))
        found = [rule.push(self._tokens, strict=strict) for rule in self._rules]
        if self._restated is not None:
            found.append(self._restated.push(piece))
        return next((loop for loop in found if loop is not None), None)

    @property
    def suspects(self) -> bool:
        """Whether the text has begun to repeat itself; what is said now may be taken back."""
        return any(rule.repeating for rule in self._rules if isinstance(rule, TailRule))

    def rewind(self, count: int) -> None:
        """Everything is as before the last `count` tokens. Raises `ValueError` when there were fewer."""
        if not 0 <= count <= len(self._tokens):
            raise ValueError(f"cannot rewind {count} tokens of {len(self._tokens)}")
        if count == 0:
            return
        del self._tokens[-count:], self._contexts[-count:]
        for rule in self._rules:
            rule.forget(self._tokens)
        if self._restated is not None:
            self._restated.forget(count)
