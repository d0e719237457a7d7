from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowmem.data.records import read_csv, read_jsonl
from lowmem.data.sources import Source, looks_local, open_source
from lowmem.errors import DataError

ROWS = [{"prompt": f"p{n}", "completion": "c" * n} for n in range(1, 6)]


def _rows(source: Source) -> list[dict[str, object]]:
    return [source.row(n) for n in range(len(source))]


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "a.csv").write_text("prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "lines.json", "a.csv", "a.parquet"):
        assert _rows(open_source(str(tmp_path / name))) == ROWS, name


def test_places_name_the_line_and_blank_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n   \n{"a": 2}\r\n{"a": 3}')
    source = open_source(str(path))
    assert [source.where(n) for n in range(3)] == [f"{path}:1", f"{path}:4", f"{path}:5"]
    assert _rows(source) == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_csv_fields_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"x, ""y""\nz",1\n\nlast,2\n')
    records = read_csv(path)
    assert [records.row(n) for n in range(len(records))] == [{"a": 'x, "y"\nz', "b": "1"}, {"a": "last", "b": "2"}]
    assert [records.where(n) for n in range(2)] == [f"{path}:2", f"{path}:5"]


def test_rows_are_read_from_disk_on_access(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    records = read_jsonl(path)
    path.write_text('{"a": 1}\n{"a": 7}\n')
    assert records.row(1) == {"a": 7}


def test_text_file_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert _rows(open_source(str(tmp_path / "a.txt"))) == [{"text": "one\n\ntwo\n"}]


def test_folder_is_read_file_by_file_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"a": 2}\n')
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "notes.md").write_text("not data")
    source = open_source(str(tmp_path))
    assert _rows(source) == [{"a": 1}, {"a": 2}]
    assert source.where(1) == f"{tmp_path / 'b.jsonl'}:1"


def test_folder_named_by_splits_never_mixes_them(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00002.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "train-00001-of-00002.jsonl").write_text('{"a": 2}\n')
    (tmp_path / "test.jsonl").write_text('{"a": 3}\n')
    assert _rows(open_source(str(tmp_path))) == [{"a": 1}, {"a": 2}]
    assert _rows(open_source(str(tmp_path), split="test")) == [{"a": 3}]
    with pytest.raises(DataError, match="has no split 'dev'; found: test, train"):
        open_source(str(tmp_path), split="dev")


def test_folder_without_split_names_has_only_train(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="has no split 'test'; found: only train, no file is named by split"):
        open_source(str(tmp_path), split="test")


def test_missing_file_suggests_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"trian\.jsonl: no such file or folder; did you mean .*train\.jsonl\?"):
        open_source(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match=r"no such file or folder; .* holds train\.jsonl"):
        open_source(str(tmp_path / "nothing" / "alike" / "zzzz.csv"))


def test_folder_in_the_way_of_a_file_is_an_error_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match="the folder holds no data file; it needs one ending in"):
        open_source(str(tmp_path / "a.jsonl"))


def test_subset_and_split_belong_to_the_hub(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="is local, but subset: sst2 is for hub datasets"):
        open_source(str(tmp_path / "a.jsonl"), subset="sst2")
    with pytest.raises(DataError, match="a local file has only split: train, not 'test'"):
        open_source(str(tmp_path / "a.jsonl"), split="test")


def test_hub_id_without_network_says_what_to_do() -> None:
    with pytest.raises(
        DataError, match=r"glue: is no file or folder here, and the hub did not give it .*local \.jsonl"
    ):
        open_source("glue", subset="sst2")


@pytest.mark.parametrize(
    ("path", "local"),
    [("glue", False), ("openai/gsm8k", False), ("./x", True), ("a/b/c", True), ("x.csv", True), ("~/d", True)],
)
def test_what_can_only_be_a_file_is_never_asked_of_the_hub(path: str, local: bool) -> None:
    assert looks_local(path) is local


def test_unreadable_file_is_an_error_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.symlink_to("/proc/self/mem")  # reading its first page fails with an I/O error, for root as well
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read: Input/output error; check the path"):
        open_source(str(path))


@pytest.mark.parametrize("path", ["./" + "x" * 5000, "./a\0b", "/" + "y" * 300 + "/z.jsonl"])
def test_impossible_names_are_missing_files(path: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(path)


def test_row_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(IndexError, match="row 1 of 1"):
        open_source(str(tmp_path / "a.jsonl")).row(1)


def test_source_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="nothing: the dataset is empty"):
        Source("nothing", [])
