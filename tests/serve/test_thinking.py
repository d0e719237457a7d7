from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lowmem.serve.thinking import Said, ThinkingSplitter, split

TEXTS = st.lists(st.sampled_from(["<think>", "</think>", "<", "thi", "nk>", "\n", "a", "</"]), max_size=12).map("".join)


@given(text=TEXTS, cuts=st.lists(st.integers(0, 60), max_size=6), thinking=st.booleans())
def test_any_cut_gives_the_same_text(text: str, cuts: list[int], thinking: bool) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    splitter, said = ThinkingSplitter(thinking=thinking), Said()
    for start, end in pairwise(edges):
        part = splitter.push(text[start:end])
        said = Said(said.reasoning + part.reasoning, said.content + part.content)
    part = splitter.finish()
    assert Said(said.reasoning + part.reasoning, said.content + part.content) == split(text, thinking=thinking)


def test_thoughts_go_one_way_and_answers_the_other() -> None:
    assert split("<think>so</think>\n\n42", thinking=False) == Said("so", "42")
    assert split("so</think>42", thinking=True) == Said("so", "42")
    assert split("a < b", thinking=False) == Said("", "a < b")
    assert split("<think>never ends", thinking=False) == Said("never ends", "")


def test_a_tag_that_a_loop_says_again_is_no_text() -> None:
    assert split("<think>so</think>42</think>42", thinking=False) == Said("so", "4242")
