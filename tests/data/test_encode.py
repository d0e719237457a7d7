from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem.data.batch import IGNORE
from lowmem.data.encode import EncodeSettings, encode_sample, one_token_options
from lowmem.data.encoder import Encoder
from lowmem.data.samples import Chat, Choice, Completion, Example, Prompt, Turn
from lowmem.errors import DataError
from tests.data.conftest import CHATML, make_tokenizer

ENCODER = Encoder(make_tokenizer())
WITH_BOS = Encoder(make_tokenizer(bos=True))
CHAT = Encoder(make_tokenizer(chat=CHATML))
PAIR = Completion(Prompt("What is two plus two?"), " The answer is four.")


def _encode(sample: Completion | Chat | Choice, max_length: int = 64, encoder: Encoder = ENCODER) -> Example:
    return encode_sample(sample, encoder, EncodeSettings(max_length), "f:1")


def _trained(example: Example, encoder: Encoder = ENCODER) -> str:
    row = example.rows[0]
    return encoder.decode([token for token, label in zip(row.ids, row.labels, strict=True) if label != IGNORE])


def test_loss_falls_on_the_completion_and_the_end_of_text_after_it() -> None:
    example = _encode(PAIR)
    assert _trained(example) == " The answer is four.<eos>"
    assert example.rows[0].labels[-1] == ENCODER.eos
    assert ENCODER.decode(example.rows[0].ids) == "What is two plus two? The answer is four.<eos>"


def test_end_of_text_is_trained_though_it_pads() -> None:
    encoder = Encoder(make_tokenizer(pad="<eos>"))
    assert _encode(PAIR, encoder=encoder).rows[0].labels[-1] == encoder.eos


def test_training_on_the_prompt_labels_every_token() -> None:
    row = encode_sample(PAIR, ENCODER, EncodeSettings(64, train_on_prompt=True), "f:1").rows[0]
    assert row.labels == row.ids


def test_spaces_between_prompt_and_answer_belong_to_the_answer() -> None:
    apart = _encode(Completion(Prompt("What is it? "), "The cat"))
    together = _encode(Completion(Prompt("What is it?"), " The cat"))
    assert apart.rows == together.rows


def test_evaluation_prompt_is_what_the_answer_was_trained_after() -> None:
    item = _encode(Completion(PAIR.prompt, PAIR.completion, ("four",), "qa"), encoder=WITH_BOS).evaluation
    assert item is not None
    assert list(item.prompt_ids) == [WITH_BOS.bos, *WITH_BOS.encode(PAIR.prompt.text)]
    assert (item.prompt, item.references, item.verifier) == ("What is two plus two?", ("four",), "qa")


TEXTS = st.text(alphabet="abc It was great\n", max_size=40)


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS, st.integers(3, 40), st.booleans())
def test_cutting_takes_the_prompt_from_the_left_and_the_answer_only_when_it_is_too_long(
    prompt: str, answer: str, max_length: int, bos: bool
) -> None:
    encoder = WITH_BOS if bos else ENCODER
    sample = Completion(Prompt(prompt), answer)
    try:
        whole, cut = _encode(sample, 10_000, encoder), _encode(sample, max_length, encoder)
    except DataError:
        assert not bos  # nothing before a single answer token
        return
    wanted = [label for label in whole.rows[0].labels if label != IGNORE]
    kept = [label for label in cut.rows[0].labels if label != IGNORE]
    prefix = len(encoder.prefix)
    assert len(cut.rows[0].ids) == min(len(whole.rows[0].ids), max_length)
    context = min(1, len(whole.rows[0].ids) - len(wanted))
    assert kept == wanted[: max_length - context]
    assert cut.cut_answer == (len(kept) < len(wanted))
    head = cut.rows[0].ids[: len(cut.rows[0].ids) - len(kept)]
    if len(head) > prefix:
        assert head[:prefix] == encoder.prefix
    full_head = whole.rows[0].ids[prefix : len(whole.rows[0].ids) - len(wanted)]
    kept_head = head[prefix:] if head[:prefix] == encoder.prefix else head
    assert full_head[len(full_head) - len(kept_head) :] == kept_head


def test_passage_gives_way_before_the_question() -> None:
    sample = Completion(Prompt("Context: ", "It was great. " * 20, "\nQuestion: was it?"), " Yes")
    example = _encode(sample, 60)
    text = ENCODER.decode(example.rows[0].ids)
    assert text.startswith("Context: ")
    assert text.endswith("great. \nQuestion: was it? Yes<eos>")
    assert example.cut_prompt
    assert len(example.rows[0].ids) == 60


def test_answer_cut_away_is_an_error_with_the_sample() -> None:
    with pytest.raises(DataError, match=r"f:1: nothing in this sample would be trained.*raise max_length.*'The'"):
        encode_sample(Completion(Prompt("What"), "The"), ENCODER, EncodeSettings(1), "f:1")


def test_begin_of_text_twice_is_an_error_with_the_sample() -> None:
    with pytest.raises(DataError, match=r"f:1: .*begin-of-text token twice.*remove it from the text: '<bos><bos>Hi"):
        _encode(Completion(Prompt("<bos>Hi"), " you"), encoder=WITH_BOS)
    assert _encode(Completion(Prompt("<bos>Hi"), " you")).rows[0].ids[0] == ENCODER.bos


def test_template_that_writes_begin_of_text_twice_is_an_error() -> None:
    encoder = Encoder(make_tokenizer(chat="{{ bos_token }}{{ bos_token }}" + CHATML))
    with pytest.raises(DataError, match="begin-of-text token twice"):
        _encode(Chat((Turn("user", "hi"), Turn("assistant", "yo"))), encoder=encoder)


SENTIMENT = Choice(Prompt("", "The cat sat on the mat.", " It was"), (" terrible", " great"), 1)


def test_options_of_one_token_need_one_row() -> None:
    ids = one_token_options(SENTIMENT, ENCODER)
    assert ids is not None
    assert [ENCODER.decode([token]) for token in ids] == [" terrible", " great"]
    example = encode_sample(SENTIMENT, ENCODER, EncodeSettings(64, options=2, option_ids=ids), "f:1")
    assert len(example.rows) == 1
    assert ENCODER.decode(example.rows[0].ids) == "The cat sat on the mat. It was"
    assert set(example.rows[0].labels) == {IGNORE}
    assert (example.gold, example.option_ids, example.options) == (1, ids, 2)


def test_longer_options_get_a_row_each() -> None:
    choice = Choice(SENTIMENT.prompt, (" quite bad", " great", " zzz"), 2)
    assert one_token_options(choice, ENCODER) is None
    example = encode_sample(choice, ENCODER, EncodeSettings(64, options=3), "f:1")
    assert [_trained(Example((row,), "")) for row in example.rows] == [" quite bad", " great", " zzz"]
    prompts = {row.ids[: row.labels.count(IGNORE)] for row in example.rows}
    assert prompts == {tuple(ENCODER.encode(SENTIMENT.prompt.text))}


def test_options_that_share_their_only_token_are_not_told_apart_by_it() -> None:
    assert one_token_options(Choice(Prompt("a"), (" great", " great"), 0), ENCODER) is None


@pytest.mark.parametrize("max_length", [8, 12, 200])
def test_options_are_never_cut(max_length: int) -> None:
    choice = Choice(Prompt("", "It was great. " * 9, "\nYes or No?\n"), ("Yes", "Maybe not"), 0)
    example = encode_sample(choice, ENCODER, EncodeSettings(max_length, options=2), "f:1")
    assert [_trained(Example((row,), "")) for row in example.rows] == ["Yes", "Maybe not"]
    assert all(len(row.ids) <= max_length for row in example.rows)


def test_option_without_room_for_its_prompt_is_an_error() -> None:
    choice = Choice(Prompt("It was"), (" quite bad", " great"), 0)
    with pytest.raises(DataError, match="which leaves no room for its prompt within max_length=3; raise max_length"):
        encode_sample(choice, ENCODER, EncodeSettings(3, options=2), "f:1")


def test_options_written_alike_are_an_error() -> None:
    choice = Choice(Prompt("It was"), (" great", " great"), 0)
    with pytest.raises(DataError, match="writes two of the options ' great', ' great' alike or as nothing"):
        encode_sample(choice, ENCODER, EncodeSettings(64, options=2), "f:1")


CONVERSATION = Chat(
    (
        Turn("system", "Be kind."),
        Turn("user", "What is two plus two?"),
        Turn("assistant", "four"),
        Turn("user", "Yes or No?"),
        Turn("assistant", "The answer is Yes"),
    )
)


def test_loss_falls_on_every_assistant_turn_with_its_end() -> None:
    example = _encode(CONVERSATION, 200, CHAT)
    assert _trained(example, CHAT) == "four<|im_end|>The answer is Yes<|im_end|>"
    whole = CHAT.render(CONVERSATION.turns, "f")
    assert CHAT.decode(example.rows[0].ids) == whole.removesuffix("\n")


def test_conversation_after_its_last_answer_is_left_out() -> None:
    asked = Chat((*CONVERSATION.turns, Turn("user", "Why?")))
    assert _encode(asked, 200, CHAT).rows == _encode(CONVERSATION, 200, CHAT).rows


def test_evaluation_prompt_of_a_conversation_ends_where_the_last_answer_begins() -> None:
    item = _encode(CONVERSATION, 200, CHAT).evaluation
    assert item is not None
    assert CHAT.decode(item.prompt_ids) == item.prompt
    assert item.prompt.endswith("Yes or No?<|im_end|>\n<|im_start|>assistant\n")
    assert item.references == ("The answer is Yes",)


@pytest.mark.parametrize("template", [CHATML, "{{ bos_token }}" + CHATML])
@pytest.mark.parametrize("max_length", range(2, 60, 3))
def test_long_conversation_keeps_its_last_answer(template: str, max_length: int) -> None:
    encoder = Encoder(make_tokenizer(chat=template))
    whole, cut = _encode(CONVERSATION, 10_000, encoder), _encode(CONVERSATION, max_length, encoder)
    answer = encoder.encode("The answer is Yes<|im_end|>")
    row = cut.rows[0]
    assert len(row.ids) == min(max_length, len(whole.rows[0].ids))
    assert cut.cut_answer == (len(answer) > max_length - 1)
    if cut.cut_answer:
        assert row.ids[1:] == tuple(answer[: max_length - 1])
        assert row.labels[0] == IGNORE
    else:
        assert row.ids[-len(answer) :] == row.labels[-len(answer) :] == tuple(answer)
        if template != CHATML and max_length > len(answer) + 1:
            assert row.ids[0] == encoder.bos
    assert cut.cut_prompt == (len(row.ids) < len(whole.rows[0].ids))
