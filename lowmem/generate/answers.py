"""Where a text announces an answer: what a rescue can commit to before a loop began.

An announcement is `\\boxed{…}` with balanced braces, `#### …`, "answer is …" / "answer: …", or a letter of a multiple
choice in one of these. Text quoted from the problem does not count when the caller passes what was generated only.
Verifying an answer is another matter (`lowmem.evaluate.answers`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_HASHES = re.compile(r"####\s*(?P<value>[^\s#][^\n]*)")
_WORDS = re.compile(
    r"(?:\bthe\s+)?(?:\bfinal\s+)?\banswer(?:\s+(?:is|would\s+be|should\s+be)|\s*[:=])\s*(?P<value>[^\s.;][^\n;]*?)\s*(?=\.(?:\s|$)|[;\n]|$)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.])-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_OPTION = re.compile(r"[(\[]([A-J])[)\]]")
_DRESSING = "*_ $\"'`"
_LONGEST = 120
"""Characters of an announced value; more is a sentence, not an answer."""


@dataclass(frozen=True)
class Announced:
    """`text` is the announcement as it stands at `start`; `value` what it announces, for comparing."""

    start: int
    text: str
    value: str


def announced(text: str) -> list[Announced]:
    """Every announcement in `text`, in order."""
    found = [*_boxes(text)]
    for pattern in (_HASHES, _WORDS):
        for match in pattern.finditer(text):
            value = match["value"].strip(_DRESSING)
            if value and len(value) <= _LONGEST and not value.startswith(("\\boxed", "not ")):
                found.append(Announced(match.start(), match.group().strip(), plain(value)))
    return sorted(found, key=lambda one: one.start)


def mentioned(text: str) -> str | None:
    """The last number, else the last bracketed option letter: a guess where nothing was announced."""
    numbers = _NUMBER.findall(text)
    if numbers:
        return str(numbers[-1]).rstrip(",")
    options = _OPTION.findall(text)
    return str(options[-1]) if options else None


def agreed(found: list[Announced]) -> Announced | None:
    """The answer of two of the last three announcements; None where no two are the same."""
    last = found[-3:]
    return next((one for one in reversed(last) if sum(other.value == one.value for other in last) >= 2), None)


def settled(found: list[Announced]) -> Announced | None:
    """The answer that is `agreed`, else the newest; None where there is none."""
    return agreed(found) or (found[-1] if found else None)


def plain(value: str) -> str:
    """`value` without what writing adds: spaces, dollars, thousands separators, LaTeX spacing, a final point."""
    value = re.sub(r"\\(?:left|right|,|!|;|text|mathrm)\b|\\[,!;]", "", value)
    value = re.sub(r"(?<=\d)(?:,|\{,\})(?=\d{3}\b)", "", value)
    return re.sub(r"[\s$*{}]+", "", value).rstrip(".").lower()


def _boxes(text: str) -> list[Announced]:
    found = []
    for match in re.finditer(r"\\boxed\{", text):
        depth = 1
        for end in range(match.end(), len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                inside = text[match.end() : end]
                found.append(Announced(match.start(), text[match.start() : end + 1], plain(inside)))
                break
    return found
