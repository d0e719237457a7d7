from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem.config.yaml_source import Dumper, from_plain, parse_value, parse_yaml, read_yaml, to_plain
from lowmem.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E-5", 1e-5),
        ("2.e-4", 2e-4),
        (".5", 0.5),
        ("-3", -3),
        ("+3", 3),
        ("010", 10),
        ("1_000", 1000),
        ("1e3", 1000),
        ("3.0", 3),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("y", "y"),
        ("null", None),
        ("None", None),
        ("~", None),
        ("", None),
        ("none", "none"),
        ("2026-01-31", "2026-01-31"),
        ("12:30", "12:30"),
        ("0x1f", "0x1f"),
        ("1e", "1e"),
        (".", "."),
        ("'1e-5'", "1e-5"),
        ("!!str 5", "5"),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
    ],
)
def test_scalars_are_read_alike_from_files_and_from_the_command_line(text: str, value: object) -> None:
    parsed = to_plain(parse_value(text, "command line"))
    assert parsed == value
    assert type(parsed) is type(value)
    in_file = to_plain(parse_yaml(f"key: {text}", "run.yaml"))["key"]
    assert in_file == value
    assert type(in_file) is type(value)


def test_infinity_and_nan_are_numbers_for_the_schema_to_refuse() -> None:
    assert to_plain(parse_value(".inf", "x")) == math.inf
    assert math.isnan(to_plain(parse_value(".nan", "x")))


def test_whole_numbers_stay_whole_only_where_a_float_is_exact() -> None:
    assert isinstance(to_plain(parse_value("1e15", "x")), int)
    assert isinstance(to_plain(parse_value("1e300", "x")), float)


def test_every_value_knows_its_line() -> None:
    root = parse_yaml("model: m\nmethod:\n  kind: lora\n  lora_r:\n    4\n", "run.yaml")
    assert root.entries["method"].where == "run.yaml:2"
    assert root.entries["method"].entries["lora_r"].where == "run.yaml:4"


def test_anchors_may_be_used() -> None:
    assert to_plain(parse_yaml("a: &x {b: 1}\nc: *x", "run.yaml")) == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes("model: m\n".encode("utf-8-sig"))
    assert to_plain(read_yaml(path)) == {"model": "m"}


def test_plain_data_of_other_types_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"defaults: b'x' is bytes, which no config key takes"):
        from_plain({"model": b"x"}, "defaults")


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]))
scalars = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, width=64) | texts


@settings(deadline=None)
@given(st.dictionaries(texts.filter(lambda key: key != "<<"), scalars | st.lists(scalars), min_size=1))
def test_what_is_dumped_is_read_back(data: dict[str, object]) -> None:
    text = yaml.dump(data, Dumper=Dumper, allow_unicode=True)
    assert to_plain(parse_yaml(text, "run.yaml")) == data


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_value_or_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        to_plain(parse_value(text, "command line"))
