"""Documents of the rescue bed that SmolLM2 is taught: small stories with a number, told again until two tellings agree.

    Mia has 14 marbles. Mia finds 8. Mia gives away 5. How many marbles does Mia have now?
    <think>Mia has 14 marbles.
    Mia finds 8: 14+8=22.
    Mia gives away 5: 22-5=17.
    So the answer is 17.
    Wait, let me check that again.
    Mia has 14 marbles.
    …
    So the answer is 17. That is what I had before.</think>
    The answer is 17.

As in `problems.py` the answer stands in the text long before the thought ends; now and then a sum is wrong, so that
telling again finds something; a telling that agrees with the one before may end the thought, and with probability
`CHECK_AGAIN` the writer tells it once more all the same. The sentences are such as the model has seen by the million,
which is what `problems.py` lacks: repeating itself is what a language model falls back on.

    python examples/rescue/stories.py runs/story_bed/documents    # train.jsonl, held_out.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from examples.rescue.problems import HELD_OUT, TESTED, TRAINED, Problem
from lowmem.data.procedural import END_THINK, THINK
from lowmem.report.elements import write_whole

CHECK_AGAIN = 0.35
SLIP = 0.12
MOST_TELLINGS = 6
PLAN_ASKED, PLAN_GIVEN = 0.08, 0.17
"""Shares of training documents: a plan alone, and a thought after one."""
NAMES = ("Mia", "Tom", "Anna", "Ben", "Lucy", "Sam", "Ella", "Max")
THINGS = ("marbles", "apples", "coins", "books", "cards", "stamps", "shells", "pencils")
GAINS = ("finds", "buys", "wins", "picks up", "gets")
LOSSES = ("gives away", "loses", "sells", "drops")
AGAIN = ("Wait, let me check that again.", "Hmm, let me go over it once more.", "Let me check it again to be sure.")


@dataclass(frozen=True)
class Story:
    """`events`: what is done, and by how much the number grows (negative: shrinks)."""

    name: str
    thing: str
    start: int
    events: tuple[tuple[str, int], ...]

    @property
    def answer(self) -> int:
        return self.start + sum(change for _, change in self.events)


def story(index: int, seed: int) -> Story:
    """Story number `index` of one side of the split: no story is both trained on and asked, whatever the seeds."""
    rng = random.Random(f"story/{index}/{seed}")
    while True:
        made = _story(rng)
        if _side(made) == _side_of(seed):
            return made


def asked(index: int, seed: int) -> Problem:
    made = story(index, seed)
    events = " ".join(f"{made.name} {what} {abs(change)}." for what, change in made.events)
    question = f"How many {made.thing} does {made.name} have now?"
    return Problem("story", f"{made.name} has {made.start} {made.thing}. {events} {question}\n", str(made.answer))


def document(index: int, seed: int) -> str:
    """Training document number `index`: question, thought and answer; or question and plan."""
    rng = random.Random(f"story document/{index}/{seed}")
    told, one = story(index, seed), asked(index, seed)
    thought, checks = _thought(told, rng)
    plan = f" go through {len(told.events)} changes, check {checks} times"
    kind = rng.random()
    if kind < PLAN_ASKED:
        return f"{one.question}plan:{plan}"
    question = f"{one.question}plan:{plan}\n" if kind < PLAN_ASKED + PLAN_GIVEN else one.question
    return f"{question}{thought}\nThe answer is {one.answer}."


def _story(rng: random.Random) -> Story:
    start = number = rng.randint(5, 60)
    events = []
    for _ in range(rng.randint(2, 4)):
        change = rng.randint(2, 30)
        if number > change and rng.random() < 0.5:
            change = -change
        number += change
        events.append((rng.choice(GAINS if change > 0 else LOSSES), change))
    return Story(rng.choice(NAMES), rng.choice(THINGS), start, tuple(events))


def _side(made: Story) -> int:
    """0 for half of all lists of numbers, 1 and 2 for a quarter each; names and things do not matter."""
    numbers = ",".join(str(number) for number in (made.start, *(change for _, change in made.events)))
    return (0, 0, 1, 2)[hashlib.sha256(numbers.encode()).digest()[0] % 4]


def _side_of(seed: int) -> int:
    return {TESTED: 1, HELD_OUT: 2}.get(seed, 0)


def _thought(told: Story, rng: random.Random) -> tuple[str, int]:
    """A thought that ends in the right answer, and how often it tells the story again."""
    while True:
        telling, result = _telling(told, rng)
        text, results = telling, [result]
        while len(results) < MOST_TELLINGS:
            telling, result = _telling(told, rng)
            same = result == results[-1]
            results.append(result)
            text += f"\n{rng.choice(AGAIN)}\n{telling} That is {'' if same else 'not '}what I had before."
            if same and rng.random() >= CHECK_AGAIN:
                break
        if results[-1] == results[-2] == told.answer:
            return f"{THINK}{text}{END_THINK}", len(results) - 1


def _telling(told: Story, rng: random.Random) -> tuple[str, int]:
    """One way through the story, in which a sum may be wrong; and what came out."""
    wrong = rng.randrange(len(told.events)) if rng.random() < SLIP else None
    number, lines = told.start, [f"{told.name} has {told.start} {told.thing}."]
    for place, (what, change) in enumerate(told.events):
        after = number + change
        if place == wrong:
            after += rng.choice((-10, -2, -1, 1, 2, 10))
        lines.append(f"{told.name} {what} {abs(change)}: {number}{'+' if change > 0 else '-'}{abs(change)}={after}.")
        number = after
    return "\n".join([*lines, f"So the answer is {number}."]), number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for train.jsonl and held_out.jsonl")
    parser.add_argument("--documents", type=int, default=1200)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, seed, count in (("train", TRAINED, given.documents), ("held_out", HELD_OUT, 100)):
        lines = (json.dumps({"text": document(index, seed)}) + "\n" for index in range(count))
        write_whole(given.folder / f"{name}.jsonl", "".join(lines))


if __name__ == "__main__":
    main()
