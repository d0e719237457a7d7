"""Generated problems whose answers can be checked: a prompt, a worked solution in <think> tags, and the answer.

A problem is a pure function of (family, index, seed): every draw is a digit of one hash, so there is no
generator to seed or to carry along, and the same problem comes out on every machine and Python version.

Seeds of different parity never share a problem. A hash of the prompt puts every problem on one of two sides,
three quarters on the side of the even seeds and a quarter on the side of the odd ones; a draw from the wrong side
is drawn again. So train with an even seed and evaluate with an odd one. The embedded model was trained with
seed 0.

| family | prompt | trace | answer |
|---|---|---|---|
| add | `347+89=?` | columns from the right, `7+9+0=16;`: digits + carry = new carry, digit | `436` |
| sum | `sum(12,5,27)=?` | running total, `12+5=17;17+27=44;` | `44` |
| copy | `copy(k-3)=?` | the characters one by one, `k;-;3;` | `k-3` |
| sub | `347-89=?` | as add, `7-9-0=18;`: digits - borrow = new borrow, digit | `258` |
| radd | `radd(743,98)=?` | as add, on numbers written from the last digit to the first | `634` |
| modsum | `modsum(12,5,27)=?` | running total modulo 10, `2+5=7;7+7=4;` | `4` |
| max | `max(12,45,7)=?` | running maximum, `12,45:45;45,7:45;` | `45` |
| sort | `sort(31,5,12)=?` | the smallest of what is left, `5;12;31;` | `5,12,31` |
| parity | `parity(347)=?` | the last digit, `7;` | `odd` |

`PRETRAINED` is what the embedded model has been trained on; `copy` is there to teach it every character.
`HELD_OUT` is what it has never seen: targets for finetuning.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from lowmem.errors import ConfigError

PRETRAINED = ("add", "sum", "copy")
HELD_OUT = ("sub", "radd", "modsum", "max", "sort", "parity")

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz +-*/=?(),.;:<>|!#%'\"_"
"""All that problems are written in, besides the newline that ends a prompt and the two think tags."""

THINK, END_THINK = "<think>", "</think>"
ODD_SEED_SHARE = 4
"""One problem in this many is on the side of the odd seeds."""


@dataclass(frozen=True)
class Problem:
    """One problem. `completion` is the worked solution in think tags and then `answer`; no end-of-text mark."""

    prompt: str
    completion: str
    answer: str
    family: str


class Draws:
    """Independent uniform integers: the digits, in mixed radix, of a 512-bit hash of `key`.

    512 bits are more than any family draws (below 100), so the bias of a draw is below 2**-400.
    """

    def __init__(self, key: str) -> None:
        self._digits = int.from_bytes(hashlib.blake2b(key.encode()).digest(), "big")

    def below(self, n: int) -> int:
        """The next integer in [0, n)."""
        self._digits, drawn = divmod(self._digits, n)
        return drawn

    def between(self, low: int, high: int) -> int:
        """The next integer in [low, high]."""
        return low + self.below(high - low + 1)

    def number(self, digits: int) -> int:
        """The next number of exactly `digits` digits (0 counts as one digit)."""
        return self.between(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


@dataclass(frozen=True)
class _Solved:
    prompt: str
    steps: Sequence[str]
    answer: str


def _columns(a: int, b: int, sign: int) -> list[str]:
    """The written method from the last digit: `x+y+carry=` or `x-y-borrow=`, then the new carry and digit."""
    mark, steps, carry = "+" if sign > 0 else "-", [], 0
    width = max(len(str(a)), len(str(b)))
    for x, y in zip(reversed(f"{a:0{width}d}"), reversed(f"{b:0{width}d}"), strict=True):
        result = int(x) + sign * (int(y) + carry)
        steps.append(f"{x}{mark}{y}{mark}{carry}=")
        carry = int(not 0 <= result <= 9)
        steps[-1] += f"{carry}{result % 10};"
    return steps


def _numbers(draws: Draws, least: int, most: int, digits: int) -> list[int]:
    return [draws.number(draws.between(1, digits)) for _ in range(draws.between(least, most))]


def _call(name: str, arguments: Sequence[object]) -> str:
    return f"{name}({','.join(map(str, arguments))})=?"


def _add(draws: Draws) -> _Solved:
    a, b = _numbers(draws, 2, 2, 4)
    return _Solved(f"{a}+{b}=?", _columns(a, b, 1), str(a + b))


def _sub(draws: Draws) -> _Solved:
    b, a = sorted(_numbers(draws, 2, 2, 4))
    return _Solved(f"{a}-{b}=?", _columns(a, b, -1), str(a - b))


def _radd(draws: Draws) -> _Solved:
    a, b = _numbers(draws, 2, 2, 4)
    return _Solved(_call("radd", [str(a)[::-1], str(b)[::-1]]), _columns(a, b, 1), str(a + b)[::-1])


def _sum(draws: Draws) -> _Solved:
    total, *rest = terms = [draws.between(1, 29) for _ in range(draws.between(2, 5))]
    steps = []
    for term in rest:
        steps.append(f"{total}+{term}={total + term};")
        total += term
    return _Solved(_call("sum", terms), steps, str(total))


def _modsum(draws: Draws) -> _Solved:
    terms = [draws.between(1, 29) for _ in range(draws.between(2, 5))]
    steps, total = [], terms[0] % 10
    for term in (term % 10 for term in terms[1:]):
        steps.append(f"{total}+{term}={(total + term) % 10};")
        total = (total + term) % 10
    return _Solved(_call("modsum", terms), steps, str(total))


def _max(draws: Draws) -> _Solved:
    largest, *rest = terms = _numbers(draws, 2, 5, 2)
    steps = []
    for term in rest:
        steps.append(f"{largest},{term}:{max(largest, term)};")
        largest = max(largest, term)
    return _Solved(_call("max", terms), steps, str(largest))


def _sort(draws: Draws) -> _Solved:
    terms = _numbers(draws, 2, 5, 2)
    ordered = [str(term) for term in sorted(terms)]
    return _Solved(_call("sort", terms), [f"{term};" for term in ordered], ",".join(ordered))


def _parity(draws: Draws) -> _Solved:
    number = draws.number(draws.between(2, 5))
    return _Solved(_call("parity", [number]), [f"{number % 10};"], "odd" if number % 2 else "even")


def _copy(draws: Draws) -> _Solved:
    text = "".join(CHARACTERS[draws.below(len(CHARACTERS))] for _ in range(draws.between(2, 7))).strip() or "."
    return _Solved(_call("copy", [text]), [f"{character};" for character in text], text)


_FAMILIES: dict[str, Callable[[Draws], _Solved]] = {
    "add": _add,
    "sum": _sum,
    "copy": _copy,
    "sub": _sub,
    "radd": _radd,
    "modsum": _modsum,
    "max": _max,
    "sort": _sort,
    "parity": _parity,
}


def families() -> tuple[str, ...]:
    """Names of all families, the pretrained ones first."""
    return tuple(_FAMILIES)


def generate(family: str, index: int, seed: int) -> Problem:
    """Problem number `index` of `family` under `seed`; the prompt ends with a newline.

    Different indices may give the same problem, seeds of different parity never do. Raises `ConfigError` for an
    unknown family.
    """
    if family not in _FAMILIES:
        nearest = difflib.get_close_matches(family, _FAMILIES, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"dataset.family: no family {family!r}; did you mean {nearest!r}? There are {', '.join(_FAMILIES)}"
        )
    for attempt in count():  # expected number of draws: 4/3 for an even seed, 4 for an odd one
        solved = _FAMILIES[family](Draws(f"{family}/{seed}/{index}/{attempt}"))
        if _on_odd_side(solved.prompt) == bool(seed % 2):
            break
    completion = f"{THINK}{''.join(solved.steps)}{END_THINK}{solved.answer}"
    return Problem(prompt=f"{solved.prompt}\n", completion=completion, answer=solved.answer, family=family)


def _on_odd_side(prompt: str) -> bool:
    return hashlib.blake2b(prompt.encode(), digest_size=4).digest()[0] % ODD_SEED_SHARE == 0
