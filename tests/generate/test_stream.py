"""Streams of text: whole characters only, stop strings never shown, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lowmem.generate.stream import TextStream
from tests.models.tiny import tiny_tokenizer

BYTES = tiny_tokenizer()


def words_tokenizer() -> PreTrainedTokenizerFast:
    """Word pieces with a leading-space mark: what a piece looks like depends on whether it comes first."""
    vocabulary = {word: i for i, word in enumerate(["▁the", "▁cat", "s", "▁", "a", "<unk>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(tokenizer, stop=stop)
    return [*[stream.push(token) for token in ids], stream.finish()]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_pieces_join_to_the_text_and_hold_whole_characters(text: str) -> None:
    ids = BYTES(text)["input_ids"]
    got = pieces(BYTES, ids)
    assert "".join(got) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in got)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(5, len(BYTES) - 1), max_size=20))
def test_any_tokens_join_to_what_the_tokenizer_decodes(ids: list[int]) -> None:
    assert "".join(pieces(BYTES, ids)) == BYTES.decode(ids, skip_special_tokens=True)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    ids = [BYTES.convert_tokens_to_ids(character) for character in text]
    found = [at for at in (text.find(word) for word in stop) if at >= 0]
    # With one token per character the first stop string to be complete wins, as in any stream.
    ends = [at + len(word) for word in stop if (at := text.find(word)) >= 0]
    expected = text if not found else _cut(text[: min(ends)], stop)
    assert "".join(pieces(BYTES, ids, tuple(stop))) == expected


def _cut(text: str, stop: list[str]) -> str:
    return text[: min(at for at in (text.find(word) for word in stop) if at >= 0)]


def test_no_piece_shows_the_beginning_of_a_stop_string_too_early() -> None:
    ids = [BYTES.convert_tokens_to_ids(c) for c in "xENyEND"]
    assert pieces(BYTES, ids, ("END",)) == ["x", "", "", "ENy", "", "", "", ""]


def test_spaces_between_word_pieces_survive_streaming() -> None:
    tokenizer = words_tokenizer()
    ids = [0, 1, 2, 0, 3, 4]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)
    assert pieces(tokenizer, ids)[:4] == ["the", " cat", "s", " the"]


def test_special_tokens_are_not_text() -> None:
    ids = BYTES("the")["input_ids"]
    assert "".join(pieces(BYTES, [0, *ids, 1])) == "the"


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    half = BYTES("日")["input_ids"][:-1]
    assert pieces(BYTES, half) == [*[""] * len(half), "\ufffd"] or "\ufffd" in pieces(BYTES, half)[-1]


@pytest.mark.parametrize("stop", [(), ("END",)])
def test_finish_releases_what_was_held_back_once(stop: tuple[str, ...]) -> None:
    stream = TextStream(BYTES, stop=stop)
    shown = "".join(stream.push(BYTES.convert_tokens_to_ids(c)) for c in "abEN")
    assert shown + stream.finish() == "abEN"
    assert stream.finish() == ""
