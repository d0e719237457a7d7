"""The restated-answer rule: the same answer is announced again and again, and no new number comes up.

"So the answer is 42. Let me double-check. … The answer is 42." It reads text, not tokens: an announcement is
`\\boxed{…}`, `#### …` or "answer is …" / "answer: …". Source of the idea: our reading of arXiv 2606.02011's delayed
commitment; the numbers (five announcements within 1024 tokens, no number that had not stood before the first of them)
are our own.
"""

from __future__ import annotations

import re

from lowmem.generate.loops.base import Loop

_ANNOUNCED = re.compile(
    r"\\boxed\{([^{}\n]{1,80})\}|####\s*([^\s#][^\n]{0,80}?)(?=\n)|\banswer(?:\s+is|\s*[:=])\s*\**\s*([^\n.;,]{1,80}?)"
    r"(?=[.;,\n]\s)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?=\D)")
_REACH = 120
"""Characters of earlier text that an announcement may begin in."""


class RestatedRule:
    """Takes text piece by piece, one (possibly empty) piece a token."""

    def __init__(self, *, times: int = 5, window: int = 1024) -> None:
        self._times, self._window = times, window
        self._restart()

    def _restart(self) -> None:
        self._text = ""
        self._ends: list[int] = []
        self._after = 0
        self._said: list[tuple[int, str]] = []
        self._numbers: dict[str, int] = {}

    def push(self, piece: str) -> Loop | None:
        """The text that the next token completed."""
        self._text += piece
        self._ends.append(len(self._text))
        if not piece:
            return None
        fresh = self._scan(len(self._ends) - 1)
        return self._judge() if fresh else None

    def forget(self, count: int) -> None:
        """The last `count` tokens never came."""
        pieces = [self._text[a:b] for a, b in zip([0, *self._ends], self._ends, strict=False)]
        self._restart()
        for piece in pieces[: len(pieces) - count]:
            self.push(piece)

    def _scan(self, token: int) -> bool:
        """Reads what is new; True when an announcement was completed."""
        begin = max(0, (self._ends[-2] if token else 0) - _REACH)
        for found in _NUMBER.finditer(self._text, begin):
            self._numbers.setdefault(found.group(), token)
        said = False
        for found in _ANNOUNCED.finditer(self._text, max(begin, self._after)):
            value = _plain(next(group for group in found.groups() if group is not None))
            self._said.append((token, value))
            self._after, said = found.end(), True
        return said

    def _judge(self) -> Loop | None:
        token, value = self._said[-1]
        same = [at for at, said in self._said if said == value and token - at <= self._window]
        if len(same) < self._times:
            return None
        first = same[-self._times]
        news = any(first < at for at in self._numbers.values())
        return None if news else Loop("restated", first, same[-1] - same[-2])


def _plain(answer: str) -> str:
    return re.sub(r"[\s$*\\]+", "", answer).lower()
