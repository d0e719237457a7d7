from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from lowmem.errors import KernelUnavailable
from lowmem.kernels import dispatch, native, reference
from lowmem.kernels.dispatch import ENVIRONMENT, KernelChoice, chosen

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh_choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    dispatch._choose.cache_clear()
    yield
    dispatch._choose.cache_clear()


def no_compiler() -> None:
    raise KernelUnavailable("no compiler was found")


def test_a_cpu_gets_the_native_kernels() -> None:
    choice = chosen(CPU, torch.bfloat16)
    assert choice.name is KernelChoice.NATIVE
    assert choice.reason.startswith("built for ")


def test_without_a_compiler_the_reference_is_chosen_and_the_reason_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", no_compiler)
    assert chosen(CPU, torch.bfloat16) == dispatch.Choice(KernelChoice.REFERENCE, "no compiler was found")


def test_a_gpu_gets_triton_or_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec("triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: found or object())
    assert chosen(torch.device("cuda"), torch.bfloat16).name is KernelChoice.TRITON
    dispatch._choose.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    choice = chosen(torch.device("cuda"), torch.bfloat16)
    assert choice.name is KernelChoice.REFERENCE
    assert "pip install triton" in choice.reason


def test_the_environment_forces_an_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (KernelChoice.REFERENCE, KernelChoice.NATIVE):
        monkeypatch.setenv(ENVIRONMENT, name)
        assert chosen(CPU, torch.float32).name is name
        assert chosen(CPU, torch.float32).reason.startswith(f"LOWMEM_KERNELS={name}")


def test_a_forced_implementation_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "native")
    with pytest.raises(KernelUnavailable, match="the native kernels run on the CPU, not on cuda"):
        chosen(torch.device("cuda"), torch.float32)
    monkeypatch.setattr(native, "library", no_compiler)
    with pytest.raises(KernelUnavailable, match="no compiler was found"):
        chosen(CPU, torch.float32)
    monkeypatch.setenv(ENVIRONMENT, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    with pytest.raises(KernelUnavailable, match="the Triton kernels run on cuda, not on cpu"):
        chosen(CPU, torch.float32)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    dispatch._choose.cache_clear()
    with pytest.raises(KernelUnavailable, match="pip install triton"):
        chosen(CPU, torch.float32)


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "fortran")
    with pytest.raises(KernelUnavailable, match="LOWMEM_KERNELS=fortran is no implementation; use one of auto, ref"):
        chosen(CPU, torch.float32)


@pytest.mark.parametrize("name", ["auto", "reference", "native"])
def test_every_choice_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, name)
    weight = torch.arange(60.0).reshape(6, 10).bfloat16()
    moved, expected = weight.clone(), weight.clone()
    dispatch.update_(moved, [(5, 0.1)], "gaussian", rounding_key=6, decay=0.5)
    reference.update_(expected, [(5, 0.1)], "gaussian", rounding_key=6, decay=0.5)
    assert torch.equal(moved, expected)
    rows, out = torch.tensor([5, 0]), torch.empty(6, 10, dtype=torch.bfloat16)
    whole = reference.perturbed(weight, 5, 0.1, "gaussian")
    assert torch.equal(dispatch.perturbed(weight, 5, 0.1, "gaussian", out=out), whole)
    assert torch.equal(out, whole)
    assert torch.equal(dispatch.perturbed(weight, 5, 0.1, "gaussian", rows=rows), whole[rows])
    assert torch.equal(dispatch.perturbed_pair(weight, 5, -0.1, "gaussian")[1], whole)
    assert torch.equal(dispatch.direction((6, 10), 5, "gaussian"), reference.direction((6, 10), 5, "gaussian"))
