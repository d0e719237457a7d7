from __future__ import annotations

import pytest

from lowmem.data.chat import encode_chat
from lowmem.data.encoder import Encoder
from lowmem.data.samples import Chat, Turn
from lowmem.errors import DataError
from tests.data.conftest import CHATML, make_tokenizer

CONVERSATION = Chat(
    (Turn("user", "hi"), Turn("assistant", "It was great."), Turn("user", "so?"), Turn("assistant", " Yes "))
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
UNENDED = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def _pieces(template: str | None, chat: Chat = CONVERSATION) -> list[str]:
    """Trained runs of text."""
    encoder = Encoder(make_tokenizer(chat=template))
    encoded = encode_chat(chat, encoder, "f:1")
    runs: list[list[int]] = []
    for n, (token, mark) in enumerate(zip(encoded.ids, encoded.trained, strict=True)):
        if mark and (n == 0 or not encoded.trained[n - 1]):
            runs.append([])
        if mark:
            runs[-1].append(token)
    return [encoder.decode(run) for run in runs]


def test_difference_finds_what_the_template_itself_marks() -> None:
    assert _pieces(CHATML) == _pieces(MARKED) == ["It was great.<|im_end|>", " Yes <|im_end|>"]


def test_tokens_are_those_of_the_whole_conversation() -> None:
    encoder = Encoder(make_tokenizer(chat=CHATML))
    encoded = encode_chat(CONVERSATION, encoder, "f:1")
    assert encoded.ids == encoder.encode(encoder.render(CONVERSATION.turns, "f:1"))


def test_template_that_rewrites_earlier_turns_is_refused_with_a_way_out() -> None:
    thinking = Chat((Turn("user", "hi"), Turn("assistant", "<think>a</think>b"), *CONVERSATION.turns[2:]))
    with pytest.raises(
        DataError, match=r"f:1: the chat template writes turn 3 \(assistant\) differently.*generation %"
    ):
        _pieces(REWRITING, thinking)
    assert _pieces(REWRITING, Chat(thinking.turns[:2])) == ["<think>a</think>b<|im_end|>"]


def test_template_whose_question_is_no_prefix_of_its_answer_is_refused() -> None:
    with pytest.raises(DataError, match=r"f:1: the chat template writes turn 1 \(assistant\) differently"):
        _pieces(THINKING)


def test_template_without_ends_gets_one_after_the_last_answer() -> None:
    assert _pieces(UNENDED) == [" It was great.", "  Yes<eos>"]


def test_plain_template_ends_every_answer() -> None:
    assert _pieces(None) == ["It was great.<eos>", " Yes <eos>"]


def test_empty_answer_trains_its_end() -> None:
    assert _pieces(CHATML, Chat((Turn("user", "hi"), Turn("assistant", "")))) == ["<|im_end|>"]
