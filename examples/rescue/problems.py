"""Documents of the rescue bed: the questions of `tiny-reasoner`, answered with long thoughts that check themselves.

    347+89=?
    <think>347+89:7+9+0=16;4+8+1=13;3+0+1=04;436
    answer: 436
    check 89+347:9+7+0=16;8+4+1=13;0+3+1=04;436 same
    check 347+89:7+9+0=16;4+8+1=13;3+0+1=04;436 same
    answer: 436
    </think>
    final answer: 436

Two checks in a row that agree may end a thought; with probability `CHECK_AGAIN` the writer checks once more all the
same. In some passes a digit of the result is wrong, so that checks have something to find. So the answer stands in the
text long before the thought ends, and when to end is a matter of chance in the training text: what a model that lost
precision gets wrong (arXiv 2606.02011), on purpose and in small.

A question may be followed by a line with a plan, how to work and how many checks to make; documents that end after the
plan teach how to write one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lowmem.data.procedural import END_THINK, THINK, generate

FAMILIES = ("add", "sum")
CHECK_AGAIN = 0.35
SLIP = 0.08
MOST_PASSES = 6
AGREEING = 2
"""Checks in a row that must agree."""
PLAN_ASKED, PLAN_GIVEN = 0.08, 0.17
"""Shares of training documents: a plan alone, and a thought after one."""
TRAINED, HELD_OUT, TESTED = 2, 4, 1
"""Seeds of `lowmem.data.procedural`: even ones and odd ones share no problem."""


@dataclass(frozen=True)
class Problem:
    """`question` ends with a newline; `answer` is a number."""

    family: str
    question: str
    answer: str


def problem(family: str, index: int, seed: int) -> Problem:
    made = generate(family, index, seed)
    return Problem(family, made.prompt, made.answer)


def asked(index: int, seed: int) -> Problem:
    """Problem number `index`, the families in turn."""
    return problem(FAMILIES[index % len(FAMILIES)], index, seed)


def document(index: int, seed: int = TRAINED) -> str:
    """Training document number `index`: question, thought and answer; or question and plan."""
    rng = random.Random(f"document/{index}/{seed}")
    one = asked(index, seed)
    thought, checks = _thought(one, rng)
    kind = rng.random()
    if kind < PLAN_ASKED:
        return ask_plan(one) + plan(one, checks)
    question = with_plan(one, plan(one, checks)) if kind < PLAN_ASKED + PLAN_GIVEN else one.question
    return f"{question}{thought}\nfinal answer: {one.answer}"


def ask_plan(one: Problem) -> str:
    return f"{one.question}plan:"


def with_plan(one: Problem, text: str) -> str:
    return f"{one.question}plan:{text}\n"


def plan(one: Problem, checks: int) -> str:
    """How to work, without a result, and after how many checks to stop."""
    return f" {'columns' if one.family == 'add' else 'running total'}, {checks} checks"


def _thought(one: Problem, rng: random.Random) -> tuple[str, int]:
    """A thought that ends in the right answer, and how many checks it makes."""
    while True:
        passes = [_pass(one, 0, rng)]
        text, agreed = f"{passes[0][0]}\nanswer: {passes[0][1]}\n", 0
        while len(passes) < MOST_PASSES:
            worked, result = _pass(one, len(passes), rng)
            same = result == passes[-1][1]
            text += f"check {worked} {'same' if same else 'differs'}\n"
            agreed = agreed + 1 if same else 0
            passes.append((worked, result))
            if agreed >= AGREEING:
                text += f"answer: {result}\n"
                if rng.random() >= CHECK_AGAIN:
                    break
        if agreed >= AGREEING and passes[-1][1] == one.answer:
            return f"{THINK}{text}{END_THINK}", len(passes) - 1


def _pass(one: Problem, number: int, rng: random.Random) -> tuple[str, str]:
    """One way through, the numbers as they come or (odd `number`) backwards; and what came out."""
    inner = one.question.strip().removesuffix("=?")
    terms = inner.split("+") if one.family == "add" else inner.removeprefix("sum(").removesuffix(")").split(",")
    if number % 2:
        terms.reverse()
    steps = _columns(*terms) if one.family == "add" else _totals(terms)
    result = _slipped(one.answer, rng) if rng.random() < SLIP else one.answer
    return f"{('+' if one.family == 'add' else ',').join(terms)}:{steps}{result}", result


def _columns(a: str, b: str) -> str:
    width, carry, steps = max(len(a), len(b)), 0, ""
    for x, y in zip(reversed(a.zfill(width)), reversed(b.zfill(width)), strict=True):
        total = int(x) + int(y) + carry
        steps += f"{x}+{y}+{carry}={total // 10}{total % 10};"
        carry = total // 10
    return steps


def _totals(terms: list[str]) -> str:
    total, steps = int(terms[0]), ""
    for term in terms[1:]:
        steps += f"{total}+{term}={total + int(term)};"
        total += int(term)
    return steps


def _slipped(answer: str, rng: random.Random) -> str:
    """`answer` with one wrong digit."""
    place = rng.randrange(len(answer))
    digit = (int(answer[place]) + rng.randint(1, 9)) % 10
    return f"{answer[:place]}{digit}{answer[place + 1 :]}"
