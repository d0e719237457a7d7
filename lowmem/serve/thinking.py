"""Thoughts and answers apart: text in pieces goes in, what belongs to either comes out."""

from __future__ import annotations

from dataclasses import dataclass

from lowmem.data.procedural import END_THINK, THINK


@dataclass
class Said:
    """Text by where it belongs."""

    reasoning: str = ""
    content: str = ""

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content)


class ThinkingSplitter:
    """`push` in any cut gives the same text in total as one push of the whole, so streams and answers agree.

    A closing tag outside a thought (a loop may say it again) is no text. Line breaks that begin the answer after a
    thought are left out.
    """

    def __init__(self, *, thinking: bool) -> None:
        self._thinking = thinking
        self._held = ""
        self._fresh = False
        """Right after a thought: leading line breaks of the answer are not shown."""

    def push(self, piece: str) -> Said:
        """What is certain once `piece` has followed; what may be the beginning of a tag is held."""
        text, said = self._held + piece, Said()
        while True:
            found = [(at, tag) for tag in (THINK, END_THINK) if (at := text.find(tag)) >= 0]
            if not found:
                break
            at, tag = min(found)
            self._add(said, text[:at])
            text = text[at + len(tag) :]
            self._fresh = self._fresh or tag == END_THINK
            self._thinking = tag == THINK
        keep = max(_beginning(text, THINK), _beginning(text, END_THINK))
        self._held = text[len(text) - keep :]
        self._add(said, text[: len(text) - keep])
        return said

    def finish(self) -> Said:
        """What was held and is no tag after all."""
        said = Said()
        self._add(said, self._held)
        self._held = ""
        return said

    def _add(self, said: Said, text: str) -> None:
        if self._thinking:
            said.reasoning += text
            return
        if self._fresh:
            text = text.lstrip("\n")
            self._fresh = not text
        said.content += text


def split(text: str, *, thinking: bool) -> Said:
    """The thoughts and the answer of a whole text. `thinking`: the prompt has begun a thought."""
    splitter = ThinkingSplitter(thinking=thinking)
    first, rest = splitter.push(text), splitter.finish()
    return Said(first.reasoning + rest.reasoning, first.content + rest.content)


def _beginning(text: str, tag: str) -> int:
    """Length of the longest proper beginning of `tag` that ends `text`."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
