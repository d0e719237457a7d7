"""Whatever is in a data file, opening it ends in a dataset or in a `DataError` that names the place and a way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerFast

from lowmem.config.dataset import Dataset
from lowmem.data.dataset import open_dataset
from lowmem.errors import DataError

SECTION: TypeAdapter[Dataset] = TypeAdapter(Dataset)

PAIR = b'{"prompt": "Q", "completion": " A"}\n'
CHAT = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}\n'

# (what is wrong, file name, content, keys of the section, what the message says)
CASES: list[tuple[str, str, bytes, dict[str, Any], str]] = [
    ("empty file", "d.jsonl", b"", {}, r"d\.jsonl: the dataset is empty; it needs at least one row"),
    ("only blank lines", "d.jsonl", b"\n  \n\n", {}, r"d\.jsonl: the dataset is empty"),
    ("only a byte order mark", "d.jsonl", b"\xef\xbb\xbf", {}, r"d\.jsonl: the dataset is empty"),
    (
        "cut line",
        "d.jsonl",
        PAIR + b'{"prompt": "x',
        {},
        r"d\.jsonl:2: is not valid JSON: Unterminated string .*write one",
    ),
    ("python literal", "d.jsonl", b"{'prompt': 'x'}\n", {}, r"d\.jsonl:1: is not valid JSON: .*in double quotes"),
    ("two objects on a line", "d.jsonl", PAIR.strip() + PAIR, {}, r"d\.jsonl:1: is not valid JSON: Extra data"),
    ("list as a row", "d.jsonl", PAIR + b'["a", "b"]\n', {}, r"d\.jsonl:2: is a list, not an object; each line"),
    ("string as a row", "d.jsonl", b'"hello"\n', {}, r"d\.jsonl:1: is a string, not an object"),
    ("number as a row", "d.jsonl", b"12\n", {}, r"d\.jsonl:1: is a number, not an object"),
    ("null as a row", "d.jsonl", PAIR + b"null\n", {}, r"d\.jsonl:2: is a null, not an object"),
    (
        "latin-1",
        "d.jsonl",
        PAIR + b'{"prompt": "\xe9", "completion": "x"}\n',
        {},
        r"d\.jsonl:2: is not UTF-8 .*0xe9.*save",
    ),
    ("utf-16", "d.jsonl", PAIR.decode().encode("utf-16"), {}, r"d\.jsonl:1: is not UTF-8 text"),
    ("gzip", "d.jsonl", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", {}, r"d\.jsonl:1: is not UTF-8 .*uncompressed"),
    (
        "nested too deep",
        "d.jsonl",
        b'{"a": ' + b"[" * 200_000,
        {},
        r"d\.jsonl:1: cannot be read as JSON: .*remove or split",
    ),
    ("endless number", "d.jsonl", b'{"a": ' + b"9" * 5000 + b"}", {}, r"d\.jsonl:1: cannot be read as JSON: Exceeds"),
    (
        "half a surrogate",
        "d.jsonl",
        rb'{"prompt": "\ud800", "completion": "x"}',
        {},
        r"d\.jsonl:1: .*surrogate pair .*remove",
    ),
    (
        "unknown columns",
        "d.jsonl",
        b'{"foo": 1, "bar": 2}\n',
        {},
        r"d\.jsonl:1: the format cannot be .*columns foo, bar; set",
    ),
    ("no columns", "d.jsonl", b"{}\n", {}, r"d\.jsonl:1: the format cannot be recognised from the columns \(none\)"),
    (
        "task without its name",
        "d.jsonl",
        b'{"sentence": "a", "label": 1}',
        {},
        r"d\.jsonl:1: .*format: task, task: sst2",
    ),
    (
        "later row lacks a column",
        "d.jsonl",
        PAIR * 2 + b'{"prompt": "Q"}\n',
        {},
        r"d\.jsonl:3: format completion needs the columns prompt, completion .*found: prompt\. Rename",
    ),
    (
        "answer is null",
        "d.jsonl",
        b'{"prompt": "Q", "completion": null}\n',
        {},
        r"d\.jsonl:1: column 'completion' is null",
    ),
    ("answer is a list", "d.jsonl", b'{"prompt": "Q", "completion": [1]}', {}, r"d\.jsonl:1: .*is \[1\].*needs text"),
    ("answer is true", "d.jsonl", b'{"prompt": "Q", "completion": true}', {}, r"d\.jsonl:1: .*is True.*needs text"),
    (
        "wrong column names",
        "d.jsonl",
        b'{"question": "Q", "solution": "A"}\n',
        {"format": "completion", "prompt_column": "question", "completion_column": "answer"},
        r"d\.jsonl:1: .*'answer' is missing; found: question, solution",
    ),
    ("alpaca without output", "d.jsonl", b'{"instruction": "x"}\n', {"format": "alpaca"}, r"'output' is missing"),
    (
        "messages is text",
        "d.jsonl",
        b'{"messages": "hello"}\n',
        {},
        r"d\.jsonl:1: column 'messages' is 'hello'.*a list",
    ),
    (
        "turn without content",
        "d.jsonl",
        b'{"messages": [{"role": "user"}]}\n',
        {},
        r"d\.jsonl:1: messages\[0\]: is .*role and",
    ),
    (
        "unknown role",
        "d.jsonl",
        CHAT.replace(b'"user"', b'"robot"'),
        {},
        r"role 'robot' is not one of system, user.*rename",
    ),
    (
        "no assistant",
        "d.jsonl",
        CHAT.replace(b"assistant", b"user"),
        {},
        r"d\.jsonl:1: the conversation has no assistant",
    ),
    ("no turns", "d.jsonl", b'{"messages": []}\n', {}, r"d\.jsonl:1: the conversation has no assistant turn"),
    (
        "sharegpt half done",
        "d.jsonl",
        b'{"conversations": [{"from": "human"}]}',
        {},
        r"conversations\[0\]: is .*from and value",
    ),
    (
        "answers is a number",
        "d.jsonl",
        b'{"context": "c", "question": "q", "answers": 3}',
        {},
        r"column 'answers' is not understood",
    ),
    (
        "label out of range",
        "d.jsonl",
        b'{"sentence": "s", "label": 7}',
        {"format": "task", "task": "sst2"},
        r"label '7' is not one",
    ),
    (
        "unlabelled",
        "d.jsonl",
        b'{"sentence": "s", "label": -1}',
        {"format": "task", "task": "sst2"},
        r"the row is unlabelled",
    ),
    (
        "label is a list",
        "d.jsonl",
        b'{"sentence": "s", "label": [0]}',
        {"format": "task", "task": "sst2"},
        r"\[0\].*needs a label",
    ),
    (
        "target is text",
        "d.jsonl",
        b'{"text": "t", "target": "x", "label": true}',
        {"format": "task", "task": "wsc"},
        r"column 'target' is 'x'.*needs an object",
    ),
    (
        "cause or effect",
        "d.jsonl",
        b'{"premise": "p", "question": "why", "choice1": "a", "choice2": "b", "label": 0}',
        {"format": "task", "task": "copa"},
        r"column question is 'why'; it must be cause or effect",
    ),
    (
        "text column missing",
        "d.jsonl",
        b'{"body": "x"}\n',
        {"format": "text"},
        r"d\.jsonl:1: .*'text' is missing; found: body",
    ),
    ("json cut", "d.json", b'[{"prompt": "Q"},\n {"prompt":', {}, r"d\.json:2: is not valid JSON"),
    ("json of numbers", "d.json", b"[1, 2]", {}, r"d\.json: element 1 is a number, not an object; a \.json file"),
    ("json object over lines", "d.json", b'{\n "data": []\n}', {}, r"d\.json:1: is not valid JSON: .*list of objects"),
    ("json empty list", "d.json", b"[]", {}, r"d\.json: the dataset is empty"),
    ("json latin-1", "d.json", b'[{"a": 1},\n{"a": "\xe9"}]', {}, r"d\.json:2: is not UTF-8 text"),
    ("csv with only a header", "d.csv", b"prompt,completion\n", {}, r"d\.csv: the dataset is empty"),
    ("csv empty", "d.csv", b"", {}, r"d\.csv: the dataset is empty"),
    (
        "csv ragged",
        "d.csv",
        b"prompt,completion\na,b\na,b,c\n",
        {},
        r"d\.csv:3: has 3 fields, the header has 2 .*quote",
    ),
    ("csv open quote", "d.csv", b'prompt,completion\na,"b\nc,d\n', {}, r"d\.csv:2: is not valid CSV: unexpected end"),
    ("csv stray quote", "d.csv", b'prompt,completion\na,"b"x\n', {}, r"d\.csv:2: is not valid CSV: .*quote fields"),
    ("csv repeated name", "d.csv", b"a,a\n1,2\n", {}, r"d\.csv:1: the header 'a', 'a' has an empty or repeated name"),
    (
        "csv huge field",
        "d.csv",
        b"prompt,completion\n" + b"x" * 140_000 + b",b\n",
        {},
        r"d\.csv:2: .*field larger.*use \.jsonl",
    ),
    ("csv latin-1", "d.csv", b"prompt,completion\na,\xe9\n", {}, r"d\.csv:2: is not UTF-8 text"),
    ("parquet garbage", "d.parquet", b"PAR1 no", {}, r"d\.parquet: is not a readable parquet file .*write it again"),
    ("parquet empty", "d.parquet", b"", {}, r"d\.parquet: is not a readable parquet file"),
    ("txt blank", "d.txt", b" \n\n", {}, r"d\.txt: the dataset is empty"),
    ("txt latin-1", "d.txt", b"one\ntwo \xe9\n", {}, r"d\.txt:2: is not UTF-8 text"),
    ("txt as pairs", "d.txt", b"hello", {"format": "completion"}, r"d\.txt: format completion needs .*found: text"),
    ("unknown ending", "d.xml", b"<a/>", {}, r"d\.xml: files ending in '\.xml' are not read; use one of \.jsonl"),
    ("no ending", "d", PAIR, {}, r"d: files ending in '' are not read"),
    (
        "answer cut away",
        "d.jsonl",
        b'{"prompt": "Q", "completion": "A"}',
        {"max_length": 1},
        r"d\.jsonl:1: nothing in this sample would be trained.*raise max_length",
    ),
    (
        "begin of text written out",
        "d.jsonl",
        b'{"prompt": "<bos>Q", "completion": "A"}',
        {"bos": True},
        r"d\.jsonl:1: the sample would begin with the begin-of-text token twice.*remove it",
    ),
]


def _open(path: Path, keys: dict[str, Any], tokenizers: dict[bool, PreTrainedTokenizerFast]) -> None:
    keys = dict(keys)
    max_length, bos = keys.pop("max_length", 64), keys.pop("bos", False)
    section = SECTION.validate_python({"format": "auto", "path": str(path)} | keys)
    dataset = open_dataset(section, tokenizer=tokenizers[bos], max_length=max_length)
    for index in range(len(dataset)):
        assert dataset[index].rows


@pytest.fixture(scope="module")
def tokenizers(plain: PreTrainedTokenizerFast, with_bos: PreTrainedTokenizerFast) -> dict[bool, Any]:
    return {False: plain, True: with_bos}


@pytest.mark.parametrize(("name", "content", "keys", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_malformed_file_is_refused_with_its_place_and_a_way_out(
    tmp_path: Path, tokenizers: dict[bool, Any], name: str, content: bytes, keys: dict[str, Any], message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        _open(path, keys, tokenizers)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NAMES = (
    "prompt completion instruction input output messages conversations role content from value text context question "
    "answers answer sentence label premise hypothesis choice1 choice2 target span1_text passage"
)
_COLUMNS = st.sampled_from(_NAMES.split())
_ROW = st.dictionaries(_COLUMNS, _JSON | st.lists(st.dictionaries(_COLUMNS, _JSON, max_size=2), max_size=2), max_size=5)
_FORMATS = st.sampled_from(
    [{"format": "auto"}, {"format": "alpaca"}, {"format": "messages"}, {"format": "completion"}, {"format": "text"}]
    + [{"format": "qa"}]
    + [{"format": "task", "task": task} for task in ("sst2", "rte", "cb", "boolq", "wsc", "wic", "multirc", "copa")]
)
_FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_FUZZ
@given(st.lists(_ROW, max_size=3), _FORMATS, st.sampled_from([4, 64]))
def test_any_rows_open_or_are_refused(
    tmp_path: Path, tokenizers: dict[bool, Any], rows: list[Any], keys: dict[str, Any], max_length: int
) -> None:
    path = tmp_path / "fuzz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _opens_or_is_refused(path, keys | {"max_length": max_length}, tokenizers)


@_FUZZ
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
    st.sampled_from(["jsonl", "json", "csv", "parquet", "txt"]),
)
def test_any_bytes_open_or_are_refused(
    tmp_path: Path, tokenizers: dict[bool, Any], content: bytes, ending: str
) -> None:
    path = tmp_path / f"fuzz.{ending}"
    path.write_bytes(content)
    _opens_or_is_refused(path, {}, tokenizers)


@_FUZZ
@given(st.integers(0, 200), st.integers(0, 255))
def test_any_damaged_byte_opens_or_is_refused(
    tmp_path: Path, tokenizers: dict[bool, Any], position: int, byte: int
) -> None:
    content = bytearray(CHAT + PAIR)
    content[position % len(content)] = byte
    path = tmp_path / "fuzz.jsonl"
    path.write_bytes(content)
    _opens_or_is_refused(path, {"format": "messages"}, tokenizers)


def _opens_or_is_refused(path: Path, keys: dict[str, Any], tokenizers: dict[bool, Any]) -> None:
    try:
        _open(path, keys, tokenizers)
    except DataError as error:
        refusal = str(error)
    else:
        return
    assert path.name in refusal
