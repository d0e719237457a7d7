"""Other tools on the same model and the same text: bitsandbytes' NF4, HQQ, llama.cpp."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowmem.models.load import LoadedModel
from quant.judge import Judge, logits_of
from quant.variants import linears

GROUP = 64
"""Columns that share a scale in HQQ and NF4."""
LLAMA = Path(__file__).with_name("llama_child.py")


class PeerMissing(SystemExit):
    """The tool is not installed; the message says how to get it."""


def peer(name: str, original: LoadedModel, judge: Judge, calibration: Sequence[Tensor], folder: Path) -> dict[str, Any]:
    """One row: what `judge` says, bits per weight of the linears, bytes of a whole file where the tool writes one.

    Only llama.cpp is calibrated: it takes an importance matrix; NF4 and HQQ look at weights alone.
    """
    if name == "nf4":
        return _nf4(original, judge)
    if name.startswith("hqq"):
        return _hqq(original, judge, bits=int(name[3:]))
    return _llama(name.removeprefix("llama-").upper(), original, judge, calibration, folder)


def _nf4(original: LoadedModel, judge: Judge) -> dict[str, Any]:
    """NF4 codes with fp32 scales of 64 weights, without double quantization; decoded in place."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    nbytes = count = 0
    for linear in linears(original.model).values():
        codes, state = quantize_4bit(linear.weight.data, blocksize=GROUP, quant_type="nf4")
        linear.weight.data.copy_(dequantize_4bit(codes, state).reshape(linear.weight.shape))
        nbytes += codes.nbytes + state.absmax.nbytes
        count += linear.weight.numel()
    return {**judge(logits_of(original.model)), "linear_bits": 8 * nbytes / count, "linear_bytes": nbytes}


def _hqq(original: LoadedModel, judge: Judge, *, bits: int) -> dict[str, Any]:
    """HQQ's own solver on groups of 64 along the inputs; scales and zeros in fp16, as it stores them by default."""
    if importlib.util.find_spec("hqq") is None:
        raise PeerMissing("HQQ is not installed: pip install hqq")
    from hqq.core.quantize import Quantizer

    nbytes = count = 0
    for linear in linears(original.model).values():
        codes, meta = Quantizer.quantize(
            linear.weight.data,
            nbits=bits,
            group_size=GROUP,
            axis=1,
            optimize=True,
            device="cpu",
            compute_dtype=torch.float32,
        )
        linear.weight.data.copy_(Quantizer.dequantize(codes, meta).reshape(linear.weight.shape))
        groups = linear.weight.numel() // GROUP
        nbytes += bits * linear.weight.numel() // 8 + 2 * 2 * groups
        count += linear.weight.numel()
    return {**judge(logits_of(original.model)), "linear_bits": 8 * nbytes / count, "linear_bytes": nbytes}


@torch.no_grad()
def mean_squares(model: Any, chunks: Sequence[Tensor]) -> dict[str, Tensor]:
    """Of every linear layer of the blocks: the mean square of each input column over the chunks, fp32 (n,)."""
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def add(module: Any, inputs: tuple[Tensor, ...]) -> None:
            found = inputs[0].flatten(0, -2).double().square().sum(0)
            sums[name] = sums[name] + found if name in sums else found

        return add

    handles = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears(model).items()]
    for chunk in chunks:
        model(input_ids=chunk, use_cache=False)
    for handle in handles:
        handle.remove()
    tokens = sum(chunk.numel() for chunk in chunks)
    return {name: (found / tokens).float() for name, found in sums.items()}


def _llama(
    kind: str, original: LoadedModel, judge: Judge, calibration: Sequence[Tensor], folder: Path
) -> dict[str, Any]:
    """llama.cpp's quantizer on our gguf export of the original, with an importance matrix of the calibration text;
    logits of its own decoder."""
    python = os.environ.get("LLAMA_PYTHON")
    if python is None:
        raise PeerMissing(
            "llama.cpp runs in an interpreter of its own: set LLAMA_PYTHON to one that has llama-cpp-python"
        )
    from lowmem.models.gguf_export import write_gguf

    folder.mkdir(parents=True, exist_ok=True)
    source, chunks, importance = folder / "original.gguf", folder / "chunks.json", folder / "importance.npz"
    if not source.is_file():
        write_gguf(original.model, original.tokenizer, source)
    chunks.write_text(json.dumps([chunk[0].tolist() for chunk in judge.chunks]))
    if not importance.is_file():
        found = mean_squares(original.model, calibration)
        np.savez(importance, **{name: values.numpy() for name, values in found.items()})
    command = [python, str(LLAMA), str(source), kind, str(chunks), str(importance), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"llama.cpp failed on {kind}\n{done.stderr[-3000:]}")
    files = iter(sorted(folder.glob("logits-*.npy")))

    def logits(chunk: Tensor) -> Tensor:
        """The judge asks for its chunks in order, and the files are numbered in that order."""
        return torch.from_numpy(np.load(next(files))).float()

    row = {**judge(logits), **json.loads(done.stdout.splitlines()[-1])}
    for file in folder.glob("logits-*.npy"):
        file.unlink()
    return row
