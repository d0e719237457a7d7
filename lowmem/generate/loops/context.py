"""Whether a text stands inside code or a table, where repetition is ordinary."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MARKS = re.compile(r"```|\\begin\{|\\end\{")
_LONGEST = 7
"""Characters of the longest mark."""


@dataclass(frozen=True)
class TextContext:
    """Open fences and LaTeX environments after some text; `tail` is what may be the beginning of a mark."""

    fenced: bool = False
    environments: int = 0
    tail: str = ""

    @property
    def strict(self) -> bool:
        """Inside a fenced block or a `\\begin{…}` environment."""
        return self.fenced or self.environments > 0

    def after(self, piece: str) -> TextContext:
        """The context once `piece` has followed."""
        if not piece:
            return self
        text, read = self.tail + piece, 0
        fenced, environments = self.fenced, self.environments
        for mark in _MARKS.finditer(text):
            read = mark.end()
            if mark.group() == "```":
                fenced = not fenced
            else:
                environments = max(0, environments + (1 if "begin" in mark.group() else -1))
        return TextContext(fenced, environments, text[max(read, len(text) - _LONGEST + 1) :])
