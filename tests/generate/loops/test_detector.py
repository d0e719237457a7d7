"""All rules together, on texts that people write and on texts that are stuck."""

from __future__ import annotations

import ast
import random
import re
from pathlib import Path

import pytest

from lowmem.generate.loops.base import Loop
from lowmem.generate.loops.detector import RULES, LoopDetector

PIECES: list[str] = []


def encode(text: str) -> list[int]:
    """Words with the space before them, single digits, and marks: about what a byte-pair tokenizer gives."""
    known = {piece: number for number, piece in enumerate(PIECES)}
    tokens = []
    for piece in re.findall(r" ?[A-Za-z]+|\d|\s+|[^A-Za-z\d\s]", text):
        if piece not in known:
            known[piece] = len(PIECES)
            PIECES.append(piece)
        tokens.append(known[piece])
    return tokens


def read(text: str, detector: LoopDetector | None = None) -> Loop | None:
    detector = LoopDetector(PIECES.__getitem__) if detector is None else detector
    for token in encode(text):
        loop = detector.push(token, PIECES[token])
        if loop is not None:
            return loop
    return None


SENTENCES = [
    "Let me find the number of apples first. ",
    "Hmm, but that cannot be what the question asks for. ",
    "So we multiply by three and take five away. ",
    "Let me read the problem once more with care. ",
]
DRAW = random.Random(7)
STUCK = {
    "exact": "We need the sum of both parts. " + "Wait, let me double-check the result. " * 12,
    "one token": "The result is " + "0" * 300,
    "long block": "Start. " + " ".join(SENTENCES) * 8,
    "counter": "Now. "
    + "".join(f"Wait, let me go over step {n} again, since I may be wrong there. " for n in range(20)),
    "changing order": "".join(DRAW.choice(SENTENCES) for _ in range(90)),
    "restated": "".join(f"{DRAW.choice(SENTENCES)}{DRAW.choice(SENTENCES)}So the answer is twelve. " for _ in range(6)),
}
FINE = {
    "json": "\n".join(f'{{"id": {n}, "name": "n{DRAW.random():.5f}", "ok": true}}' for n in range(200)),
    "rule": "Results\n" + "-" * 60 + "\nrow one\n" + "=" * 60 + "\n",
    "latex": "\\begin{pmatrix}\n" + "".join("0 & 0 & 1 & 0 \\\\\n" for _ in range(6)) + "\\end{pmatrix}",
    "matrix": "".join(f"{a} & {a * 7 % 13} & {a * 5 % 11} \\\\\n" for a in range(40)),
    "asserts": "```python\n" + "".join(f"self.assertEqual(f({n}), {n * n % 17})\n" for n in range(30)) + "```",
    "list": "".join(f"{n}. {DRAW.choice(SENTENCES)}{DRAW.random()}\n" for n in range(30)),
    "steps": "".join(f"Step {n}: {n * 17} + {n * 5} = {n * 22}.\n" for n in range(1, 30)),
}


@pytest.mark.parametrize("name", STUCK)
def test_a_stuck_text_is_noticed(name: str) -> None:
    assert read(STUCK[name]) is not None


@pytest.mark.parametrize("name", FINE)
def test_an_ordinary_text_is_left_alone(name: str) -> None:
    assert read(FINE[name]) is None


def test_code_of_the_standard_library_is_left_alone() -> None:
    """In a fence, as models write it: four deprecated classes that differ in their names are a loop elsewhere."""
    assert read(f"Here it is:\n```python\n{Path(ast.__file__).read_text()[:30_000]}") is None


def test_the_rules_that_are_asked_for_are_the_ones_that_look() -> None:
    assert read(STUCK["exact"], LoopDetector(PIECES.__getitem__, rules=("counter", "novelty"))) is None
    fired = read(STUCK["counter"], LoopDetector(PIECES.__getitem__, rules=("counter",)))
    assert fired is not None
    assert fired.rule == "counter"


@pytest.mark.parametrize("name", STUCK)
def test_rewinding_equals_never_having_pushed(name: str) -> None:
    tokens = encode(STUCK[name])
    straight = LoopDetector(PIECES.__getitem__)
    expected = [straight.push(token, PIECES[token]) for token in tokens]
    half = len(tokens) // 2
    rewound = LoopDetector(PIECES.__getitem__)
    for token in [*tokens[:half], *tokens[:70]]:
        rewound.push(token, PIECES[token])
    rewound.rewind(70)
    assert len(rewound) == half
    assert [rewound.push(token, PIECES[token]) for token in tokens[half:]] == expected[half:]


def test_more_cannot_be_rewound_than_was_pushed() -> None:
    detector = LoopDetector(PIECES.__getitem__, rules=RULES)
    with pytest.raises(ValueError, match="cannot rewind 1 tokens of 0"):
        detector.rewind(1)
