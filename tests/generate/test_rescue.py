"""The rescue policy as a table of traces, and the announcements that it reads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lowmem.generate.answers import announced, mentioned, plain, settled
from lowmem.generate.rescue import Ask, Commit, FallBack, Trace, decide, ends_sentence, sentence_end

CLOSE = "</think>"


def trace(text: str, loop: str = "", **changes: object) -> Trace:
    whole = Trace(text + loop, thinking=True, reason="loop", loop_at=len(text))
    return replace(whole, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (r"So \boxed{\frac{1}{2}} holds", [r"\frac12"]),
        (r"\boxed{x^{2}+1} and \boxed{ 4 }", ["x^2+1", "4"]),
        (r"an open \boxed{12", []),
        ("#### 1,234\nmore", ["1234"]),
        ("The answer is 42. Next", ["42"]),
        ("the final answer: **B**\n", ["b"]),
        ("answer is $3.50, I think", ["3.50,ithink"]),
        ("The answer is 3.5.", ["3.5"]),
        ("The answer is \\boxed{7}.", ["7"]),
        ("The answer is not clear.", []),
        ("no numbers here", []),
        ("The answer would be (C); so", ["(c)"]),
        ("answer = 12\nanswer = 13\n", ["12", "13"]),
    ],
)
def test_announcements_are_found_in_order(text: str, values: list[str]) -> None:
    assert [one.value for one in announced(text)] == values


def test_an_announcement_stands_where_it_says() -> None:
    text = "We add. The answer is 15. Then #### 16\n"
    for one in announced(text):
        assert text[one.start : one.start + len(one.text)] == one.text


def test_values_are_compared_without_their_dress() -> None:
    assert plain(r" $1{,}234 $. ") == plain("1,234")
    assert plain("1,234,567") == "1234567"
    assert plain("(1, 2)") == "(1,2)"


def test_two_of_the_last_three_win_else_the_newest() -> None:
    def winner(text: str) -> str | None:
        one = settled(announced(text))
        return one and one.value

    assert winner("answer: 1\nanswer: 2\nanswer: 1\n") == "1"
    assert winner("answer: 1\nanswer: 1\nanswer: 1\nanswer: 2\nanswer: 3\n") == "3"
    assert winner("nothing") is None


def test_guesses_are_the_last_number_else_the_last_option() -> None:
    assert mentioned("12 apples and 3,000 pears") == "3,000"
    assert mentioned("either (A) or [B]") == "B"
    assert mentioned("nothing") is None


def test_an_answer_before_the_loop_is_taken_and_one_inside_it_is_not() -> None:
    action = decide(trace("We add. The answer is 15. ", "The answer is 16. " * 9), close=CLOSE)
    assert isinstance(action, Commit)
    assert (action.answer, action.status) == ("15", "rescued_early_answer")
    assert action.text == "\n</think>\n\nThe answer is 15"
    inside = decide(trace("We add. ", "The answer is 16. " * 9), close=CLOSE)
    assert isinstance(inside, Ask)


def test_answers_that_contradict_each_other_go_to_the_higher_precision_where_there_is_one() -> None:
    text = "The answer is 15. No, the answer is 16. "
    unsure = trace(text, "Hm. " * 50, can_fall_back=True)
    assert isinstance(decide(unsure, close=CLOSE), FallBack)
    alone = decide(replace(unsure, can_fall_back=False), close=CLOSE)
    assert isinstance(alone, Commit)
    assert (alone.answer, alone.status) == ("16", "rescued_early_answer")
    again = decide(replace(unsure, tried=frozenset({"fall back"})), close=CLOSE)
    assert again == alone
    for sure in ("The answer is 15. ", text + "No, the answer is 15. "):
        action = decide(trace(sure, "Hm. " * 50, can_fall_back=True), close=CLOSE)
        assert isinstance(action, Commit)
        assert action.answer == "15"


def test_asking_goes_back_to_a_whole_sentence() -> None:
    text = "One sentence. And half of an"
    action = decide(trace(text, " other" * 30), close=CLOSE)
    assert action == Ask(len("One sentence."), "\n</think>\nFinal answer:")


def test_steps_are_tried_once_and_in_order() -> None:
    stuck = trace("There were 12 and 3. ", "Hm. " * 50, can_fall_back=True)
    first = decide(stuck, close=CLOSE)
    second = decide(replace(stuck, tried=frozenset({"ask"})), close=CLOSE)
    third = decide(replace(stuck, tried=frozenset({"ask", "fall back"})), close=CLOSE)
    assert [type(first), type(second), type(third)] == [Ask, FallBack, Commit]
    assert isinstance(third, Commit)
    assert (third.status, third.answer) == ("uncommitted_guess", "3")
    nothing = decide(replace(trace("Hm. "), tried=frozenset({"ask"})), close=CLOSE)
    assert isinstance(nothing, Commit)
    assert (nothing.status, nothing.answer) == ("no_answer", None)
    assert nothing.text.endswith("No answer was found.")


def test_outside_a_thought_the_loop_is_cut_and_nothing_added() -> None:
    said = "A story about a cat. "
    action = decide(trace(said, "It slept. " * 30, thinking=False), close=CLOSE)
    assert action == Commit(len("A story about a cat."), "", None, "cut")
    solved = "We add. The answer is 15. Good"
    action = decide(trace(solved, " very good" * 30, thinking=False), close=CLOSE)
    assert isinstance(action, Commit)
    assert (solved[: action.keep], action.text) == ("We add. The answer is 15.", "")


def test_punctuation_at_the_cut_belongs_to_the_sentence_before() -> None:
    text = "It is a cat. It is a cat. It is a cat. "
    action = decide(Trace(text, thinking=True, reason="loop", loop_at=text.index(".")), close=CLOSE)
    assert isinstance(action, Ask)
    assert text[: action.keep] == "It is a cat."


def test_ends_of_sentences() -> None:
    assert sentence_end("One. Two! Thr") == len("One. Two!")
    assert sentence_end("no end in sight") == len("no end in sight")
    assert sentence_end("Early. " + "x" * 400) == 407, "too far back to give up"
    assert [ends_sentence(text) for text in ("Done.", 'He said "no!" ', "a line\n", "half of", "3.5 is")] == [
        *(True, True, True),
        *(False, False),
    ]
