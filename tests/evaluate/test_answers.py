"""Tables of texts and the answers they give."""

from __future__ import annotations

import pytest

from lowmem.data.procedural import families, generate
from lowmem.errors import ConfigError
from lowmem.evaluate.answers import TEXT_FAMILIES, extract, f1, final_text, kinds, verify


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", "42"),
        ("<think>1+1=2;</think>2", "2"),
        ("1+1=2;</think>\n 2 ", "2"),  # a template opened the thought
        ("<think>one</think>2<think>three</think>4", "4"),
        ("<think>never closed 7", None),
        ("<think>closed</think>5<think>and open again", None),
        ("<think></think>", ""),
        ("", ""),
    ],
)
def test_final_text_is_what_follows_the_last_closed_thought(text: str, expected: str | None) -> None:
    assert final_text(text) == expected


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("gsm8k", "3 * 4 = 12\n#### 12", "12"),
        ("gsm8k", "#### 7\nno, wait\n#### $1,200.50 dollars", "2401/2"),
        ("gsm8k", "####-3", "-3"),
        ("gsm8k", "the answer is 12", None),
        ("gsm8k", "####", None),
        ("gsm8k", "#### unknown\n12", None),
        ("gsm8k", "<think>#### 5", None),
        ("number", "First 3, then 18.", "18"),
        ("number", "It costs $1,234,567.", "1234567"),
        ("number", "1,2,3", "3"),
        ("number", "12,345,6", "6"),
        ("number", "x = -0.50", "-1/2"),
        ("number", "5-3", "3"),
        ("number", "a .5 share", "1/2"),
        ("number", "007", "7"),
        ("number", "the 3rd of v2", "3"),
        ("number", "none", None),
        ("number", "<think>41", None),
        ("number", "<think>41</think>", None),
        ("boxed", r"so \boxed{1} and then \boxed{\dfrac{1}{2}}.", r"\frac{1}{2}"),
        ("boxed", r"\boxed{ 1{,}000 }", "1{,}000"),
        ("boxed", r"$\boxed{\$1,000.0}$", "1000"),
        ("boxed", r"\boxed{\text{blue}}", "blue"),
        ("boxed", r"\boxed{unbalanced{", None),
        ("boxed", "no box } here", None),
        ("option", "The answer is (C).", "C"),
        ("option", "Answer: B, not option D because A is wrong. Final answer: **A**", "A"),
        ("option", "B", "B"),
        ("option", "(d)", None),
        ("option", "D) because of this", "D"),
        ("option", "A good reason is hard to find", None),
        ("option", "I think so.\nC.", "C"),
        ("option", "either (A) or rather (B)", "B"),
        ("option", "the answer is a long story", None),
        ("option", "<think>The answer is B", None),
        ("qa", "<think>hm</think> The  Eiffel-Tower!", "eiffeltower"),
        ("qa", "an apple and a pear", "apple and pear"),
        ("add", "<think>7+9+0=16;1+0+0=01;</think>16", "16"),
        ("add", "<think>7+9+0=16;", None),
        ("copy", "<think>a;</think> a b", "a b"),
        ("copy", "<think>a;</think>", None),
    ],
)
def test_extraction_table(kind: str, text: str, expected: str | None) -> None:
    assert extract(text, kind) == expected


@pytest.mark.parametrize(
    ("kind", "text", "references", "right"),
    [
        ("gsm8k", "#### 1200.0", ["He has 1,200 left.\n#### 1,200"], True),
        ("gsm8k", "#### 1200", ["1,200"], True),
        ("gsm8k", "1200", ["#### 1200"], False),
        ("number", "about 18.0", ["17", "18"], True),
        ("number", "18.01", ["18"], False),
        ("number", "18", [], False),
        ("boxed", r"\boxed{\tfrac{1}{2}}", [r"\frac{1}{2}"], True),
        ("boxed", r"\boxed{0.50}", ["0.5"], True),
        ("boxed", "0.5", ["0.5"], False),
        ("option", "(B)", ["B"], True),
        ("option", "(B)", ["C"], False),
        ("qa", "the Danube", ["Rhine", "danube."], True),
        ("qa", "Danube river", ["Danube"], False),
        ("qa", "<think>danube", ["danube"], False),
        ("sum", "<think></think>044", ["44"], True),
        ("radd", "<think></think>044", ["44"], False),
    ],
)
def test_verification_table(kind: str, text: str, references: list[str], right: bool) -> None:
    assert verify(kind, text, references) is right


@pytest.mark.parametrize("family", families())
def test_every_family_accepts_its_own_completion_and_refuses_a_changed_one(family: str) -> None:
    for index in range(30):
        problem = generate(family, index, 3)
        assert verify(family, problem.completion, [problem.answer])
        assert not verify(family, problem.completion + "7", [problem.answer])
        assert not verify(family, problem.completion.partition("</think>")[0], [problem.answer])


def test_text_families_exist() -> None:
    assert set(TEXT_FAMILIES) < set(families()) < set(kinds())


@pytest.mark.parametrize(
    ("text", "references", "expected"),
    [
        ("the blue whale", ["blue whale"], 1.0),
        ("a blue boat", ["blue whale", "green boat house"], 0.5),
        ("blue blue", ["blue"], 2 / 3),
        ("grey", ["blue"], 0.0),
        ("the", ["a"], 1.0),
        ("the", ["blue"], 0.0),
        ("<think>blue", ["blue"], 0.0),
        ("blue", [], 0.0),
    ],
)
def test_f1_table(text: str, references: list[str], expected: float) -> None:
    assert f1(text, references) == pytest.approx(expected)


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="kind 'gms8k'; did you mean 'gsm8k'"):
        verify("gms8k", "1", ["1"])
