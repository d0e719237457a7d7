from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem.data import packing
from lowmem.data.batch import IGNORE
from lowmem.data.collate import collate
from lowmem.data.encoder import Encoder
from lowmem.data.packing import PACKABLE, TokenStream, row_bounds, token_row, tokenize
from lowmem.data.samples import Example, TokenRow
from tests.data.conftest import make_tokenizer

ENCODER = Encoder(make_tokenizer())
WITH_BOS = Encoder(make_tokenizer(bos=True))
DOCUMENTS = ["It was great.", "The cat sat on the mat because it was tired.", "four", "Yes or No? " * 9]

SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _rows(documents: list[str], max_length: int, *, packed: bool, encoder: Encoder = ENCODER) -> list[TokenRow]:
    stream = tokenize(documents, encoder)
    bounds = row_bounds(stream, max_length, packed=packed)
    return [token_row(stream, *span, packed=packed) for span in bounds]


def test_documents_begin_and_end_with_their_special_tokens() -> None:
    stream = tokenize(["It was", " \n", "four"], WITH_BOS)
    assert WITH_BOS.decode(stream.ids.tolist()) == "<bos>It was<eos><bos>four<eos>"
    assert [int(stream.ids[start]) for start in stream.starts] == [WITH_BOS.bos] * 2


def test_packed_rows_lose_no_token_and_are_full() -> None:
    stream = tokenize(DOCUMENTS, ENCODER)
    rows = _rows(DOCUMENTS, 16, packed=True)
    assert [token for row in rows for token in row.ids] == stream.ids.tolist()[: sum(len(row.ids) for row in rows)]
    assert all(len(row.ids) == 16 for row in rows[:-1])


LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(2, 20))
def test_positions_restart_and_first_tokens_are_not_trained(lengths: list[int], max_length: int) -> None:
    """Against the slow definition, token by token."""
    import numpy as np

    starts = tuple(sum(lengths[:n]) for n in range(len(lengths)))
    stream = TokenStream(np.arange(1, sum(lengths) + 1, dtype=np.uint32), starts)
    for begin, end in row_bounds(stream, max_length, packed=True):
        row, position = token_row(stream, begin, end, packed=True), 0
        assert row.positions is not None
        for t in range(end - begin):
            position = 0 if begin + t in starts else position
            assert row.positions[t] == position
            if t > 0:  # the label of a row's first token is never used
                assert row.labels[t] == (IGNORE if begin + t in starts else row.ids[t])
            position += 1


def test_unpacked_rows_hold_one_document_each() -> None:
    rows = _rows(DOCUMENTS, 16, packed=False)
    stream = tokenize(DOCUMENTS, ENCODER)
    assert all(row.positions is None and row.labels == row.ids for row in rows)
    starts = [stream.ids[start : start + 2].tolist() for start in stream.starts]
    begun = [list(row.ids[:2]) for row in rows]
    assert [pair for pair in begun if pair in starts] == starts
    assert all(ENCODER.eos not in row.ids[:-1] for row in rows)


def test_long_documents_are_tokenized_in_pieces_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    document = "The cat sat.\n\nIt was great.\n" * 30
    whole = tokenize([document], ENCODER).ids.tolist()
    monkeypatch.setattr(packing, "_PIECE", 50)
    assert tokenize([document], ENCODER).ids.tolist() == whole
    assert tokenize(["x" * 200], ENCODER).ids.tolist() == [*ENCODER.encode("x" * 200), ENCODER.eos]


def _model(model_type: str, attention: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **SMALL)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def _leak(model: Any) -> float:
    """Largest difference between the logits of packed documents and of each document alone."""
    (row,) = _rows(DOCUMENTS, 100, packed=True)
    batch = collate([Example((row,), "f")], pad_id=0)
    assert batch.attention_mask is None
    assert batch.position_ids is not None
    with torch.no_grad():
        packed = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        alone = [
            model(input_ids=torch.tensor([row.ids]), use_cache=False).logits
            for row in _rows(DOCUMENTS, 100, packed=False)
        ]
    return float((packed - torch.cat(alone, dim=1)).abs().max())


KERNELS = [
    (kind, kernel) for kind in sorted(PACKABLE) for kernel in ("sdpa", "eager") if (kind, kernel) != ("gemma2", "sdpa")
]


@pytest.mark.parametrize(("model_type", "attention"), KERNELS)
def test_packed_documents_do_not_see_each_other(model_type: str, attention: str) -> None:
    assert _leak(_model(model_type, attention)) < 1e-5


def test_architecture_that_leaks_is_not_packable() -> None:
    assert "opt" not in PACKABLE
    assert _leak(_model("opt", "sdpa")) > 1e-3
