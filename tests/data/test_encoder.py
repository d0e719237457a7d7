from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lowmem.data.encoder import Encoder
from lowmem.data.samples import Turn
from lowmem.errors import DataError
from tests.data.conftest import CORPUS, make_tokenizer

TOKENIZER = make_tokenizer()
ENCODER = Encoder(TOKENIZER)


def test_special_prefix_is_what_the_tokenizer_puts_before_a_text(with_bos: PreTrainedTokenizerFast) -> None:
    assert Encoder(with_bos).prefix == (with_bos.bos_token_id,)
    assert ENCODER.prefix == ()


def test_tokenizer_without_end_of_text_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-text token, so a model could never learn to stop; set eos_token"):
        Encoder(tokenizer)


WORDS = st.lists(st.sampled_from([*" ".join(CORPUS).split(), "\n", "é", "<eos>"]), min_size=1, max_size=40).map(
    " ".join
)


@settings(max_examples=100, deadline=None)
@given(WORDS, st.sampled_from([" great", " It", "\nYes", "Yes", "7", "é", " "]))
def test_continuation_equals_the_tail_of_the_whole_text_where_no_token_spans_the_border(
    context: str, text: str
) -> None:
    head, whole = ENCODER.encode(context), ENCODER.encode(context + text)
    expected = whole[len(head) :] if whole[: len(head)] == head else ENCODER.encode(text)
    assert ENCODER.after(context, text) == expected
    assert ENCODER.decode(head + ENCODER.after(context, text)) == context + text


def test_continuation_keeps_the_tokens_of_its_context() -> None:
    """ "gre" + "at" would merge; a model that generates sees "gre" alone."""
    assert len(ENCODER.encode(" great")) < len(ENCODER.encode(" gre") + ENCODER.after(" gre", "at"))
    assert ENCODER.decode(ENCODER.encode(" gre") + ENCODER.after(" gre", "at")) == " great"


def test_template_that_refuses_is_an_error_of_the_sample() -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    encoder = Encoder(make_tokenizer(chat=template))
    with pytest.raises(DataError, match=r"f:3: the chat template refuses .*\(no system\); its roles are system, user"):
        encoder.render((Turn("system", "s"), Turn("user", "u")), "f:3")


def test_plain_template_is_used_where_the_tokenizer_has_none() -> None:
    turns = (Turn("user", "hi"), Turn("assistant", "yo"), Turn("user", "so?"))
    assert ENCODER.render(turns, "f", ask=True) == (
        "### User:\nhi\n\n### Assistant:\nyo<eos>\n### User:\nso?\n\n### Assistant:\n"
    )
