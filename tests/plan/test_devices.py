"""What a device takes besides tensors."""

from __future__ import annotations

import pytest

from lowmem.errors import ConfigError
from lowmem.plan.devices import CPU, CUDA, MIB, parse_device


def test_a_device_may_bring_its_size() -> None:
    assert parse_device("cuda:24GiB").total == 24 * 2**30
    assert parse_device("cpu").total is None
    assert parse_device("cpu").costs is CPU


def test_the_bill_adds_what_is_not_tensors() -> None:
    assert parse_device("cuda").bill(100) == 682 * MIB + 100
    assert parse_device("cpu").bill(0, adapters=True) - parse_device("cpu").bill(0) == CPU.adapters


@pytest.mark.parametrize("text", ["tpu", "cuda:", "cuda:big", "", "cuda24"])
def test_other_devices_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no device|is not a size"):
        parse_device(text)


@pytest.mark.parametrize("costs", [CUDA, CPU], ids=["cuda", "cpu"])
def test_every_constant_names_its_source(costs: object) -> None:
    text = " ".join(costs.sources)  # type: ignore[attr-defined]
    for name in ("base", "workspace"):
        assert name in text
