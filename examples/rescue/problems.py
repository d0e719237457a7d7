"""Problems of the rescue bed: short questions, long worked thoughts that check themselves, one answer.

A thought works the problem out, announces the answer, and then checks it: it works everything out again and compares.
Two results in a row that agree may end it; with probability `CHECK_AGAIN` the writer checks once more all the same. In
some thoughts a slip is planted in a pass, so that a check has something to find. So the answer stands in the text long
before the thought ends, and when to end is a matter of chance in the training text: what a model that lost precision
gets wrong (arXiv 2606.02011), on purpose and in small.

| family | question | a pass |
|---|---|---|
| add | `347+589+26=?` | column by column, `347+589:7+9=16,4+8+1=13,3+5+1=9,936.` |
| chain | `chain 17+5-8=?` | a running total modulo 100, `0+17=17,17+5=22,22-8=14.` |
| sort | `sort 52,17,83=?` | the smallest of what is left, `52,17,83:17.52,83:52.83:83.` |

The first pass takes the numbers as they come, every later one in an order of its own: a check is work and no copy.

A question may be followed by a line with an outline: which steps, and how many checks. Documents that end after the
outline teach how to write one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from lowmem.data.procedural import END_THINK, THINK

FAMILIES = ("add", "chain", "sort")
CHECK_AGAIN = 0.35
SLIP = 0.15
"""Probability that the first pass of a thought goes wrong; half as often in each later one."""
MOST_PASSES = 6
OUTLINE_ASKED, OUTLINE_GIVEN = 0.12, 0.18
"""Shares of training documents: an outline alone, and a thought after one."""
OPENINGS = ("Wait, let me check.", "Let me make sure.", "Hmm, let me do it again.", "Wait, once more.")
ANSWER = "Final answer:"
WORDS = (
    "add chain sort So the answer is Wait let me check Let make sure Hmm do it again once more That gives same as not "
    "Final Outline first then checks stop"
)


@dataclass(frozen=True)
class Problem:
    """`question` ends with a newline; `answer` is compared letter by letter."""

    family: str
    question: str
    answer: str
    numbers: tuple[int, ...]
    """Negative ones are taken away."""


@dataclass(frozen=True)
class Pass:
    """One way through: its text and what came out."""

    text: str
    result: str


def problem(family: str, index: int, *, test: bool) -> Problem:
    """Problem number `index`; training and test problems never have the same question."""
    for attempt in range(1000):
        found = _MAKE[family](random.Random(f"{family}/{index}/{attempt}/{test}"))
        if _for_tests(found.question) == test:
            return found
    raise AssertionError("one question in four is a test question")


def document(index: int) -> str:
    """Training document number `index`: question, thought and answer; or question and outline."""
    rng = random.Random(f"document/{index}")
    one = problem(rng.choice(FAMILIES), index, test=False)
    thought, checks = _thought(one, rng)
    kind = rng.random()
    if kind < OUTLINE_ASKED:
        return ask_outline(one) + outline(one, checks)
    question = with_outline(one, outline(one, checks)) if kind < OUTLINE_ASKED + OUTLINE_GIVEN else one.question
    return f"{question}{thought}\n{ANSWER} {one.answer}"


def ask_outline(one: Problem) -> str:
    return f"{one.question}Outline:"


def with_outline(one: Problem, text: str) -> str:
    return f"{one.question}Outline:{text}\n"


def outline(one: Problem, checks: int) -> str:
    """The steps without a result, and after how many checks to stop."""
    match one.family:
        case "add":
            first, second, *rest = one.numbers
            steps = f"first {first}+{second}" + "".join(f",then +{number}" for number in rest)
        case "chain":
            steps = f"first {one.numbers[0]}" + "".join(f",then {number:+d}" for number in one.numbers[1:])
        case _:
            steps = "first " + ",then ".join(map(str, sorted(one.numbers)[:2]))
    return f" {steps}, checks {checks}, stop."


def _thought(one: Problem, rng: random.Random) -> tuple[str, int]:
    """A thought that ends in the right answer, and how many checks it makes."""
    while True:
        said = [worked(one.family, one.numbers, rng, slip=rng.random() < SLIP)]
        text = f"{said[0].text}\nSo the answer is {said[0].result}.\n"
        while len(said) < MOST_PASSES:
            order = tuple(rng.sample(one.numbers, len(one.numbers)))
            said.append(worked(one.family, order, rng, slip=rng.random() < SLIP / 2))
            new, old = said[-1].result, said[-2].result
            text += f"{rng.choice(OPENINGS)}\n{said[-1].text}\nThat gives {new},"
            if new != old:
                text += f" not {old}.\n"
                continue
            text += f" the same as {old}.\nSo the answer is {new}.\n"
            if rng.random() >= CHECK_AGAIN:
                break
        if len(said) > 1 and said[-1].result == said[-2].result == one.answer:
            return f"{THINK}{text}{END_THINK}", len(said) - 1


def worked(family: str, numbers: tuple[int, ...], rng: random.Random, *, slip: bool) -> Pass:
    """One pass. With `slip`, one intermediate digit comes out wrong and everything after builds on it."""
    wrong_at = rng.randrange(len(numbers) - 1) if slip else -1
    match family:
        case "add":
            return _columns(numbers, wrong_at, rng)
        case "chain":
            return _totals(numbers, wrong_at, rng)
        case _:
            return _smallest(numbers, wrong_at)


def _columns(numbers: tuple[int, ...], wrong_at: int, rng: random.Random) -> Pass:
    total, lines = numbers[0], []
    for at, number in enumerate(numbers[1:]):
        width = max(len(str(total)), len(str(number)))
        carry, digits, columns = 0, "", []
        wrong_column = rng.randrange(width) if at == wrong_at else -1
        pairs = zip(reversed(f"{total:0{width}d}"), reversed(f"{number:0{width}d}"), strict=True)
        for place, (x, y) in enumerate(pairs):
            result = int(x) + int(y) + carry
            if place == wrong_column:
                result = (result + rng.choice((1, -1))) % 20
            columns.append(f"{x}+{y}" + ("+1" if carry else "") + f"={result}")
            carry, digits = result // 10, f"{result % 10}{digits}"
        after = int(("1" if carry else "") + digits)
        lines.append(f"{total}+{number}:{','.join(columns)},{after}.")
        total = after
    return Pass("\n".join(lines), str(total))


def _totals(numbers: tuple[int, ...], wrong_at: int, rng: random.Random) -> Pass:
    total, steps = 0, []
    for at, number in enumerate(numbers):
        after = (total + number) % 100
        if at == wrong_at:
            after = (after + rng.choice((1, -1, 10))) % 100
        steps.append(f"{total}{number:+d}={after}")
        total = after
    return Pass(",".join(steps) + ".", str(total))


def _smallest(numbers: tuple[int, ...], wrong_at: int) -> Pass:
    left, taken, lines = list(numbers), [], []
    for at in range(len(numbers)):
        ordered = sorted(left)
        chosen = ordered[1] if at == wrong_at and len(ordered) > 1 else ordered[0]
        lines.append(f"{','.join(map(str, left))}:{chosen}.")
        left.remove(chosen)
        taken.append(str(chosen))
    return Pass("".join(lines), ",".join(taken))


def _make_add(rng: random.Random) -> Problem:
    numbers = tuple(rng.randint(10 ** (digits - 1), 10**digits - 1) for digits in rng.choices((2, 3), k=3))
    return Problem("add", f"{'+'.join(map(str, numbers))}=?\n", str(sum(numbers)), numbers)


def _make_chain(rng: random.Random) -> Problem:
    numbers = (rng.randint(10, 99), *(rng.choice((1, 1, -1)) * rng.randint(2, 29) for _ in range(rng.randint(4, 7))))
    written = "".join(f"{number:+d}" for number in numbers[1:])
    return Problem("chain", f"chain {numbers[0]}{written}=?\n", str(sum(numbers) % 100), numbers)


def _make_sort(rng: random.Random) -> Problem:
    numbers = tuple(rng.sample(range(10, 100), rng.randint(4, 6)))
    answer = ",".join(map(str, sorted(numbers)))
    return Problem("sort", f"sort {','.join(map(str, numbers))}=?\n", answer, numbers)


_MAKE: dict[str, Callable[[random.Random], Problem]] = {"add": _make_add, "chain": _make_chain, "sort": _make_sort}


def _for_tests(question: str) -> bool:
    return blake2b(question.encode(), digest_size=4).digest()[0] % 4 == 0
