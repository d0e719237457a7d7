"""What a text answers, and whether that is right: one extraction and one comparison per kind of answer.

A kind is a family of `lowmem.data.procedural` or one of

| kind | the answer is | it is right when |
|---|---|---|
| gsm8k | the number after the last `####` | equal as a number |
| number | the last number | equal as a number |
| boxed | the content of the last `\\boxed{…}` | equal as a number, or letter by letter without spaces and dollars |
| option | the letter A to J that is announced, or stands alone | equal |
| qa | everything | equal without case, punctuation and articles |

What a model thinks is not an answer: everything up to the last `</think>` is ignored, and a thought that never ends
leaves no answer. All functions are pure.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

from lowmem.data.procedural import END_THINK, THINK, families
from lowmem.errors import ConfigError

TEXT_FAMILIES = ("copy", "radd", "sort", "parity")
"""Families whose answers are compared as text; `radd` because its leading zeros count. The others are numbers."""

_NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|(?<![\w.])-?\$?\.\d+")
_ANNOUNCED = re.compile(r"(?:answer|option|choice)(?:\s+is)?\s*[:=]?\s*[\(\[*]*([A-J])(?![\w'])", re.IGNORECASE)
_ALONE = re.compile(r"^\W*([A-J])(?:[).:\]*]|\W*$)")
_BRACKETED = re.compile(r"[(\[]([A-J])[)\]]")


def kinds() -> tuple[str, ...]:
    """All kinds of answers that `extract` and `verify` know."""
    return tuple(_EXTRACT)


def final_text(text: str) -> str | None:
    """What follows the thinking, stripped; None when a thought is never closed."""
    after = text.rpartition(END_THINK)[2]
    return None if THINK in after else after.strip()


def extract(text: str, kind: str) -> str | None:
    """The answer that `text` gives, in the form that `verify` compares; None when it gives none.

    Raises `ConfigError` for an unknown kind.
    """
    find = _lookup(kind)
    answer = final_text(text)
    return None if answer is None else find(answer)


def verify(kind: str, text: str, references: Sequence[str]) -> bool:
    """Whether `text` gives the same answer as one of the references.

    A reference may be the bare answer or a text that gives it, such as a GSM8K solution.
    """
    answer = extract(text, kind)
    if answer is None:
        return False
    return any(answer == _reference(reference, kind) for reference in references)


def verify_value(kind: str, value: str, references: Sequence[str]) -> bool:
    """Whether the bare answer `value`, without a mark around it, is one of the references."""
    answer = _reference(value, kind)
    return answer is not None and any(answer == _reference(reference, kind) for reference in references)


def f1(text: str, references: Sequence[str]) -> float:
    """Overlap of words with the best reference, between 0 and 1, as SQuAD measures it; 0 for an unclosed thought."""
    answer = final_text(text)
    if answer is None:
        return 0.0
    return max((_overlap(_plain(answer), _plain(reference)) for reference in references), default=0.0)


def _lookup(kind: str) -> Callable[[str], str | None]:
    if kind not in _EXTRACT:
        nearest = difflib.get_close_matches(kind, _EXTRACT, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"no verifier for answers of kind {kind!r}; did you mean {nearest!r}? There are {', '.join(_EXTRACT)}"
        )
    return _EXTRACT[kind]


def _reference(reference: str, kind: str) -> str | None:
    """As `extract`, but a bare answer needs no mark around it."""
    found = extract(reference, kind)
    if found is None and kind == "gsm8k":
        return _last_number(reference)
    if found is None and kind == "boxed":
        return _mathematical(reference)
    return found


def _last_number(text: str) -> str | None:
    """The last number of `text` as an exact fraction: "1,200.50" and "$1200.5" are the same."""
    numbers: list[str] = _NUMBER.findall(text)
    return _exact(numbers[-1]) if numbers else None


def _exact(number: str) -> str:
    return str(Fraction(number.replace(",", "").replace("$", "")))


def _after_hashes(text: str) -> str | None:
    _, mark, tail = text.rpartition("####")
    found = _NUMBER.search(tail.splitlines()[0]) if mark and tail.strip() else None
    return _exact(found.group()) if found else None


def _boxed(text: str) -> str | None:
    """The content of the last `\\boxed{…}` with balanced braces."""
    _, mark, tail = text.rpartition(r"\boxed{")
    depth = 1
    for position, character in enumerate(tail):
        depth += (character == "{") - (character == "}")
        if mark and depth == 0:
            return _mathematical(tail[:position])
    return None


def _mathematical(text: str) -> str:
    for old, new in ((r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), (r"\left", ""), (r"\right", ""), (r"\!", "")):
        text = text.replace(old, new)
    text = re.sub(r"\\(?:text|mathrm)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"[\s$]", "", text.replace(r"\$", "")).rstrip(".")
    return _exact(text) if _NUMBER.fullmatch(text) else text


def _option(text: str) -> str | None:
    """The letter after "answer is" (the last such), else at the start, else alone on the last line, else the last
    in brackets. Only capitals, since "a" and "i" are words."""
    announced: list[str] = [letter for letter in _ANNOUNCED.findall(text) if letter.isupper()]
    if announced:
        return announced[-1]
    for line in (text, *text.splitlines()[-1:]):
        if alone := _ALONE.match(line):
            return alone.group(1)
    bracketed: list[str] = _BRACKETED.findall(text)
    return bracketed[-1] if bracketed else None


def _plain(text: str) -> str:
    """Without case, punctuation, articles and doubled spaces, as SQuAD compares answers."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _overlap(ours: str, theirs: str) -> float:
    mine, yours = ours.split(), theirs.split()
    if not mine or not yours:
        return float(mine == yours)
    shared = sum((Counter(mine) & Counter(yours)).values())
    return 2 * shared / (len(mine) + len(yours))


def _nonempty(text: str) -> str | None:
    return text or None


_EXTRACT: dict[str, Callable[[str], str | None]] = {
    "gsm8k": _after_hashes,
    "number": _last_number,
    "boxed": _boxed,
    "option": _option,
    "qa": _plain,
    **{family: _nonempty if family in TEXT_FAMILIES else _last_number for family in families()},
}
