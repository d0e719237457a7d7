"""What may be asked of `lowmem quantize`, and what is said to the rest."""

from __future__ import annotations

from typing import get_args

import pytest

from lowmem.config.load_quantize import load_quantize
from lowmem.config.quantize import CODEC_BITS, Codec
from lowmem.errors import ConfigError
from lowmem.quant.codec import KINDS, bits_per_code


def test_four_bits_are_the_default_and_codecs_follow_bits() -> None:
    assert load_quantize({"model": "m"}).codecs == ("s4",)
    assert load_quantize({"model": "m", "bits": 2}).codecs == ("e8",)
    assert load_quantize({"model": "m", "codec": "nested"}).codecs == ("nested",)
    assert load_quantize({"model": "m", "average_bits": 2.5}).codecs == ("e8", "s3", "s4")


def test_bits_of_codecs_are_those_of_the_format() -> None:
    assert set(get_args(Codec)) < set(KINDS)
    assert {codec: bits_per_code(codec) for codec in CODEC_BITS} == CODEC_BITS


def test_harp_is_tried_where_it_is_asked_for_or_scalars_of_two_bits_may_be_used() -> None:
    three = ("rht", "harp", "harp-conditional")
    assert load_quantize({"model": "m"}).candidates == ("rht",)
    assert load_quantize({"model": "m", "bits": 2}).candidates == ("rht",)
    assert load_quantize({"model": "m", "bits": 2, "rotation": "harp"}).candidates == three
    assert load_quantize({"model": "m", "codec": "s2"}).candidates == three
    assert load_quantize({"model": "m", "average_bits": 3.0, "mixed_codecs": ["s2", "s3"]}).candidates == three
    assert load_quantize({"model": "m", "rotation": "none"}).candidates == ("none",)


def test_overrides_reach_sections_and_a_name_is_a_dataset() -> None:
    config = load_quantize({"model": "m"}, ["gate.max_divergence=0.2", "dataset=a.txt", "recover.steps=5"])
    assert config.gate.max_divergence == 0.2
    assert config.dataset[0].model_dump()["path"] == "a.txt"
    assert config.recover.steps == 5


def test_the_label_names_the_bits() -> None:
    assert load_quantize({"model": "m"}).label == "4bit"
    assert load_quantize({"model": "m", "average_bits": 2.5}).label == "2.5bit"
    assert load_quantize({"model": "m", "size": "2.5 GiB"}).label == "2.5GiB"


@pytest.mark.parametrize(
    ("given", "overrides", "said"),
    [
        ({"bits": 3, "codec": "e8"}, [], "codec: e8 has 2 bits and bits: 3 was asked for; 3 bits are s3, e8r"),
        ({"bits": 5}, [], "bits: is 5"),
        ({"size": "1GiB", "average_bits": 2.0}, [], "size and average_bits both say how large"),
        ({"size": "1GiB", "bits": 2}, [], "bits: every layer would get the same"),
        ({"size": "soon"}, [], "size: .*soon"),
        ({"average_bits": 3.0}, ["mixed_codecs=[]"], "mixed_codecs: is empty, so there is nothing to choose from"),
        ({}, ["gate.max_divergense=1"], "gate.max_divergense: is not a key; did you mean max_divergence"),
        ({}, ["codek=s2"], "codek: is not a key; did you mean codec"),
        ({}, ["group_size=100"], "group_size: 100 is no multiple of 64"),
        ({}, ["calibration"], "'calibration' is not an override; write key=value"),
        ({"bits": 2}, ["bits.more=1"], "bits.more: bits is no section"),
        ({"model": None}, [], "model: is required"),
        ({}, ["calibration.tokens=0"], "calibration.tokens: is 0: input should be greater than 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, object], overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_quantize({"model": "m", **given}, overrides)
