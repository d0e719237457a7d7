"""Each rule by itself, against its definition."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem.generate.loops.base import Loop, Periodicity, Rule, periodic_from
from lowmem.generate.loops.context import TextContext
from lowmem.generate.loops.counter import CounterRule
from lowmem.generate.loops.ngram import NGramRule
from lowmem.generate.loops.novelty import NoveltyRule
from lowmem.generate.loops.restated import RestatedRule
from lowmem.generate.loops.tail import TailRule
from tests.oracles.loops import fires_at

WORDS = ["wait", "check", "again", "so", "because", "there", "is", "a", "mistake", "then", "we", "go"]


def word(token: int) -> str:
    """Tokens below 100 are numbers of one digit, others words."""
    return str(token) if token < 10 else f" {WORDS[token % len(WORDS)]}"


def first_fire(rule: Rule, tokens: Sequence[int], *, strict: bool = False) -> tuple[int, Loop] | None:
    history: list[int] = []
    for token in tokens:
        history.append(token)
        loop = rule.push(history, strict=strict)
        if loop is not None:
            return len(history), loop
    return None


def looping(period: int, length: int, *, before: int = 57, seed: int = 0) -> list[int]:
    """Distinct tokens, then a block of distinct tokens repeated to `length` tokens."""
    draw = random.Random(seed)
    block = draw.sample(range(10_000, 20_000), period)
    return [*draw.sample(range(1000), before), *(block[i % period] for i in range(length))]


@pytest.mark.parametrize("period", [1, 2, 7, 16, 40, 160, 333, 334])
def test_the_bare_rule_fires_after_20_and_three_periods(period: int) -> None:
    tokens = looping(period, 20 + 3 * period + 50)
    assert first_fire(NGramRule(guarded=False), tokens) == (57 + 20 + 3 * period, Loop("ngram", 57, period))


def test_periods_longer_than_the_window_allows_are_for_the_long_rule() -> None:
    tokens = looping(335, 4000)
    assert first_fire(NGramRule(), tokens) is None
    fired = first_fire(NGramRule(n=40, count=3, window=8192, name="long"), tokens)
    assert fired == (57 + 40 + 2 * 335, Loop("long", 57, 335))


@pytest.mark.slow
def test_the_long_rule_sees_periods_up_to_4076() -> None:
    def rule() -> NGramRule:
        return NGramRule(n=40, count=3, window=8192, name="long")

    assert first_fire(rule(), looping(4076, 8300)) == (57 + 40 + 2 * 4076, Loop("long", 57, 4076))
    assert first_fire(rule(), looping(4077, 12_500)) is None


@pytest.mark.parametrize("alphabet", [2, 3, 10, 5000])
def test_the_rolling_rule_is_its_definition(alphabet: int) -> None:
    for seed in range(60):
        draw = random.Random(seed)
        tokens = [draw.randrange(alphabet) for _ in range(draw.randrange(20, 160))]
        if seed % 2:
            at = draw.randrange(len(tokens))
            tokens += tokens[at:] * 3
        n, count, window = draw.choice([(3, 3, 40), (5, 4, 64), (4, 2, 30)])
        fired = first_fire(NGramRule(n=n, count=count, window=window, guarded=False), tokens)
        assert (fired and fired[0]) == fires_at(tokens, n=n, count=count, window=window), seed


@pytest.mark.parametrize("period", [1, 3, 10, 15])
def test_the_guard_asks_short_periods_for_64_tokens_and_single_tokens_for_128(period: int) -> None:
    fired = first_fire(NGramRule(), looping(period, 300))
    assert fired is not None
    assert fired[0] - 57 == (128 if period == 1 else max(64, 20 + 3 * period))


def test_inside_code_twice_as_many_repetitions_are_needed() -> None:
    tokens = looping(30, 600)
    loose, strict = first_fire(NGramRule(), tokens), first_fire(NGramRule(), tokens, strict=True)
    assert loose is not None
    assert strict is not None
    assert (loose[0] - 57, strict[0] - 57) == (20 + 3 * 30, 20 + 7 * 30)


def test_turns_that_differ_a_little_are_a_loop_in_prose_and_boilerplate_in_code() -> None:
    block = list(range(100, 140))
    tokens = [token for turn in range(12) for token in [*block, 500 + turn]]
    assert first_fire(NGramRule(), tokens) is not None
    assert first_fire(NGramRule(), tokens, strict=True) is None
    assert first_fire(NGramRule(), block * 12, strict=True) is not None


@pytest.mark.parametrize(("period", "at"), [(1, 128), (5, 64), (16, 64), (30, 120), (512, 2048)])
def test_the_tail_rule_wants_four_exact_copies(period: int, at: int) -> None:
    fired = first_fire(TailRule(), looping(period, 4 * period + 200))
    assert fired == (57 + at, Loop("tail", 57, period))


def test_the_tail_rule_is_blind_to_a_change() -> None:
    tokens = [*looping(30, 3 * 30 + 29), 1, *looping(30, 3 * 30 + 29)[57:]]
    assert first_fire(TailRule(), tokens) is None


def counting(turn: list[int], values: Sequence[int]) -> list[int]:
    """`turn` with its token 0 replaced by each of the values, digit by digit."""
    tokens: list[int] = []
    for value in values:
        tokens += [d for t in turn for d in ([int(c) for c in str(value)] if t == 0 else [t])]
    return tokens


TURN = [*range(20, 32), 0, *range(40, 54)]


def test_a_counting_loop_is_noticed_through_its_numbers() -> None:
    tokens = counting(TURN, range(7, 30))
    fired = first_fire(CounterRule(word), tokens)
    assert fired is not None
    assert fired[1].rule == "counter"
    assert fired[0] <= 6 * (len(TURN) + 2)
    assert first_fire(NGramRule(n=30), tokens) is None


@pytest.mark.parametrize(
    "values", [[3, 3, 3, 3, 3, 3, 3, 3], [3, 81, 12, 5, 60, 7, 2, 9, 44, 8]], ids=["constant", "random"]
)
def test_numbers_that_do_not_count_are_no_counting_loop(values: list[int]) -> None:
    assert first_fire(CounterRule(word), counting(TURN, values)) is None


def test_rows_with_many_numbers_are_no_counting_loop() -> None:
    row = [20, 0, 21, 0, 22, 0, 23, 24]
    assert first_fire(CounterRule(word), counting(row * 3, range(40))) is None


def test_sentences_in_changing_order_have_no_novelty() -> None:
    draw = random.Random(1)
    sentences = [[draw.randrange(1000, 9000) for _ in range(draw.randrange(14, 22))] for _ in range(5)]
    tokens = [token for _ in range(60) for token in draw.choice(sentences)]
    fired = first_fire(NoveltyRule(share=0.6), tokens)
    assert fired is not None
    assert fired[0] < 700
    assert first_fire(NoveltyRule(), [draw.randrange(1000, 9000) for _ in range(3000)]) is None


def say(*pieces: str) -> Loop | None:
    rule = RestatedRule()
    return next((loop for piece in pieces if (loop := rule.push(piece)) is not None), None)


def test_the_same_answer_five_times_is_a_loop() -> None:
    said = [" So", " the", " answer", " is", " 42", ".", " Hmm", "."]
    assert say(*said * 4) is None
    loop = say(*said * 5)
    assert loop is not None
    assert (loop.rule, loop.period) == ("restated", len(said))


def test_an_answer_restated_after_new_numbers_is_work() -> None:
    rounds = [
        piece for n in range(8) for piece in (" The", " answer is", " 42", ".", f" But {n + 100}", " is new", ".")
    ]
    assert say(*rounds) is None


def test_boxes_and_hashes_are_announcements() -> None:
    assert say(*[r"\boxed{\frac{1}{2}}"[:7], r"12}", "\n"] * 5) is not None
    assert say(*["#### 18", "\n", "ok "] * 5) is not None


def test_different_answers_are_not_one_answer() -> None:
    assert say(*[f" The answer is {n}. " for n in range(9)]) is None


def test_a_context_knows_fences_and_environments_also_across_pieces() -> None:
    context = TextContext()
    seen = []
    for piece in ["text ``", "`python\n", "x = 1\n```", " then \\beg", "in{align}", " a \\end{align}", " b"]:
        context = context.after(piece)
        seen.append(context.strict)
    assert seen == [False, True, False, False, True, False, False]


@pytest.mark.parametrize(
    ("pieces", "strict"),
    [
        (["\n   ", " self", ".", "assert", "Equal", "(x", "_", "y", "),", " range", "(", "n", "))"], True),
        (["So", " the", " answer", " is", " 3", " *", " (", "4", " +", " 5", ")", " =", " 27", "."], False),
    ],
    ids=["code", "arithmetic"],
)
def test_code_is_known_by_its_marks_without_a_fence(pieces: list[str], strict: bool) -> None:
    context = TextContext()
    for piece in pieces * 8:
        context = context.after(piece)
    assert context.strict is strict


@given(st.lists(st.integers(0, 3), min_size=8, max_size=120), st.integers(1, 6))
def test_periodicity_is_that_of_the_whole_text(tokens: list[int], period: int) -> None:
    kept = Periodicity()
    for length in range(period + 1, len(tokens) + 1):
        assert kept.since(tokens[:length], period) == periodic_from(tokens[:length], period)


RULES: dict[str, Callable[[], Rule]] = {
    "ngram": lambda: NGramRule(n=4, count=3, window=60, guarded=False),
    "tail": lambda: TailRule(longest=16, tokens=12),
    "counter": lambda: CounterRule(word, n=3, window=80, least=16),
    "novelty": lambda: NoveltyRule(n=3, span=20, window=60, share=0.7),
}


@pytest.mark.parametrize("name", RULES)
@settings(deadline=None)
@given(data=st.data())
def test_what_is_forgotten_never_was(name: str, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.integers(0, 14), max_size=150))
    lost = data.draw(st.lists(st.integers(0, 14), max_size=60))
    rest = data.draw(st.lists(st.integers(0, 14), max_size=60)) * 3
    rewound, straight = RULES[name](), RULES[name]()
    history: list[int] = []
    for token in kept + lost:
        history.append(token)
        rewound.push(history, strict=False)
    rewound.forget(kept)
    history = []
    for token in kept:
        history.append(token)
        straight.push(history, strict=False)
    for token in rest:
        history.append(token)
        assert rewound.push(history, strict=False) == straight.push(history, strict=False)
