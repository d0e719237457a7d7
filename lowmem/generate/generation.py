"""One answer while it is being decoded: its tokens, their text, and whether it is thinking."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from lowmem.config.generation import GenerationConfig
from lowmem.data.procedural import END_THINK, THINK
from lowmem.generate.loops.base import Loop
from lowmem.generate.loops.detector import LoopDetector
from lowmem.generate.rescue import Rescue
from lowmem.generate.stream import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FinishReason = Literal["stop", "length", "repetition"]


@dataclass(frozen=True)
class Repetition:
    """A loop: `count` copies in a row of a block of `shortest` to `longest` tokens (vLLM's `repetition_detection`)."""

    count: int
    shortest: int
    longest: int


@dataclass(frozen=True)
class Request:
    """What is asked: a prompt in tokens (at least one) and how to answer it."""

    prompt: tuple[int, ...]
    config: GenerationConfig
    seed: int
    repetition: Repetition | None = None
    """What counts as a loop; None: what `LoopDetector` notices by itself."""


@dataclass
class Spent:
    """Tokens and seconds by precision ("low", "high")."""

    tokens: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, precision: str, tokens: int, seconds: float) -> None:
        self.tokens[precision] = self.tokens.get(precision, 0) + tokens
        self.seconds[precision] = self.seconds.get(precision, 0.0) + seconds


class Generation:
    """A request's state. `limit`: tokens that may be generated before it is cut off."""

    def __init__(
        self,
        request: Request,
        tokenizer: PreTrainedTokenizerBase,
        *,
        ends: frozenset[int],
        limit: int,
        detector: LoopDetector | None,
    ) -> None:
        self.request, self.limit = request, limit
        self.tokens: list[int] = []
        self.reason: FinishReason | None = None
        self.loop: Loop | None = None
        self.rescue: Rescue | None = None
        self.tried: set[str] = set()
        self.spent = Spent()
        self.logits: Tensor | None = None
        """Of the next token; None while it must be fed first."""
        self.detector = detector
        self._tokenizer, self._ends = tokenizer, ends
        self._prompted = str(tokenizer.decode(list(request.prompt[-64:]))) if request.prompt else ""
        self._given = 0
        self._restart()

    @property
    def text(self) -> str:
        return self._text

    @property
    def begun_thinking(self) -> bool:
        """Whether the prompt has begun a thought."""
        return self._prompted.rfind(THINK) > self._prompted.rfind(END_THINK)

    @property
    def thinking(self) -> bool:
        """Whether the text ends inside a thought, which the prompt may have begun."""
        said = self._prompted + self._text
        return said.rfind(THINK) > said.rfind(END_THINK)

    @property
    def thinking_tokens(self) -> int:
        """Tokens since the thought began, while it lasts."""
        if not self.thinking:
            return 0
        begun = self._text.rfind(THINK)
        return len(self.tokens) - (0 if begun < 0 else self.token_at(begun))

    def push(self, token: int) -> Loop | None:
        """Takes one more token, and decides whether the text is at its end; returns a loop that was noticed."""
        if token in self._ends:
            self.finish("stop")
            return None
        self._append(token)
        if self._stream.stopped:
            self.finish("stop")
            return None
        return self.detector.push(token, self._piece) if self.detector is not None else None

    def force(self, tokens: Sequence[int]) -> None:
        """Tokens that were not chosen by the model follow."""
        for token in tokens:
            self._append(token)
            if self.detector is not None:
                self.detector.push(token, self._piece)

    def say(self, text: str) -> None:
        """`text` follows, which no token stands for; nothing is decoded after it."""
        self._text += self._stream.finish() + text
        self._closed = True

    def rewind(self, tokens: int) -> None:
        """Only the first `tokens` tokens were generated."""
        gone = len(self.tokens) - tokens
        if gone == 0:
            return
        kept = self.tokens[:tokens]
        if self.detector is not None:
            self.detector.rewind(min(gone, len(self.detector)))
        self._restart()
        for token in kept:
            self._append(token)
        self._given = min(self._given, len(self._text))

    def restart(self) -> None:
        """Nothing was generated yet; what was given out stays given."""
        self.rewind(0)
        self.logits = None

    def finish(self, reason: FinishReason) -> None:
        """The text is complete."""
        if self.reason is None:
            self.reason = reason
            if not self._closed:
                self._text += self._stream.finish()

    def take(self) -> str:
        """Text that was not given out yet; nothing while it may have to be taken back."""
        if self.reason is None and self.detector is not None and self.detector.suspects:
            return ""
        fresh = self._text[self._given :]
        self._given = len(self._text)
        return fresh

    def token_at(self, character: int) -> int:
        """How many tokens make up at most the first `character` characters."""
        return bisect.bisect_right(self._offsets, character)

    def character_at(self, token: int) -> int:
        """Characters that the first `token` tokens make up."""
        return self._offsets[token - 1] if token > 0 else 0

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        self._piece = self._stream.push(token)
        self._text += self._piece
        self._offsets.append(len(self._text))

    def _restart(self) -> None:
        self.tokens.clear()
        self._stream = TextStream(self._tokenizer, stop=self.request.config.stop)
        self._text, self._piece = "", ""
        self._offsets: list[int] = []
        self._closed = False
