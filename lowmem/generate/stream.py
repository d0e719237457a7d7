"""Tokens in, text out, piece by piece: never half a character, never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HALF = "\ufffd"
"""What a tokenizer puts for bytes that are no character yet."""


class TextStream:
    """Turns the tokens of one answer into text. The pieces joined are the decoded answer up to a stop string.

    Only a window of recent tokens is decoded at each step: from the last two places where the text ended in a
    whole character, since what a token looks like may depend on the one before it (leading spaces).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        self._ids: list[int] = []
        self._start = 0
        """First token of the window."""
        self._shown = 0
        """Tokens before this one are in the text already."""
        self._held = ""
        """Text that may be the beginning of a stop string."""
        self.stopped = False
        """True once a stop string has appeared; later tokens are ignored."""

    def push(self, token: int) -> str:
        """The text that `token` completes, possibly empty."""
        if self.stopped:
            return ""
        self._ids.append(token)
        window = self._decode(self._start, len(self._ids))
        if window.endswith(_HALF):
            return ""
        return self._release(self._advance(window))

    def finish(self) -> str:
        """What was held back: the beginning of a stop string that never came, bytes that are no character."""
        if self.stopped:
            return ""
        released = self._release(self._advance(self._decode(self._start, len(self._ids))))
        rest, self._held = self._held, ""
        return released + ("" if self.stopped else rest)

    def _advance(self, window: str) -> str:
        """The part of the decoded window that is new; the window then starts where the text ended before."""
        fresh = window[len(self._decode(self._start, self._shown)) :]
        self._start, self._shown = self._shown, len(self._ids)
        return fresh

    def _decode(self, start: int, end: int) -> str:
        text = self._tokenizer.decode(
            self._ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that ends `text`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
