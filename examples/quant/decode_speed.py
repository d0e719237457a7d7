"""Decoding at batch 1 of a 1B-class model of random weights, in turn: transformers, our packed layers, llama.cpp.

A round lets every contestant decode a few tokens, one after the other, so that what else runs on the machine meets all
of them; a ratio is the median over rounds of the ratios within a round. Times are CPU seconds (with more than one
thread: wall seconds).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowmem.quant.codec import BLOCK, PLANE_BYTES, Kind, PackedWeight, group_count, padded
from lowmem.quant.linear import QuantLinear
from lowmem.quant.rotation import no_rotation, random_hadamard
from lowmem.quant.transform import transform
from quant.peers import PeerMissing

CHILD = Path(__file__).with_name("llama_decode.py")
Contestant = Callable[[int], list[float]]
"""Seconds of each of so many tokens."""


def shape(layers: int) -> dict[str, int]:
    return {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    }


def llama(layers: int, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(tie_word_embeddings=False, **shape(layers))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def random_weight(kind: Kind, m: int, n: int, *, group_size: int = 0) -> PackedWeight:
    planes = []
    for size in PLANE_BYTES[kind]:
        nbytes = m * padded(n) // BLOCK * size
        words = torch.randint(0, 2**62, (nbytes // 8 + 1,))
        planes.append(words.view(torch.uint8)[:nbytes].view(m, -1).clone())  # fresh memory is aligned
    scales = torch.full((m, group_count(n, group_size)), 0.01).half()
    residual = 0.28 if kind in ("e8r", "nested") else 0.0
    return PackedWeight(kind, (m, n), tuple(planes), scales, 1.0, residual, group_size)


def quantize_randomly(model: nn.Module, kind: Kind) -> int:
    """Replaces every linear layer in place, the head by 4 bits; the bytes that one token reads.

    Layers that read one input share its rotation, as in a quantized model.
    """
    nbytes = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear):
                continue
            m, n = child.weight.shape
            head = name == "lm_head"
            weight = random_weight("int4" if head else kind, m, n, group_size=64 if head else 0)
            nbytes += weight.nbytes
            sides = (no_rotation(n), no_rotation(m)) if head else (random_hadamard(n, 0), random_hadamard(m, 1))
            setattr(parent, name, QuantLinear(weight, *sides))
    return nbytes


def decoder(model: Any, clock: Callable[[], float]) -> Contestant:
    """transformers' own decoding step with a cache, after a prompt of four."""
    with torch.inference_mode():
        cache = model(torch.ones(1, 4, dtype=torch.long), use_cache=True).past_key_values

    def tokens(count: int) -> list[float]:
        found = []
        with torch.inference_mode():
            for _ in range(count):
                start = clock()
                model(torch.ones(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
                found.append(clock() - start)
        return found

    return tokens


@contextmanager
def llama_cpp(layers: int, folder: Path, *, threads: int) -> Iterator[tuple[Contestant, dict[str, Any]]]:
    """llama.cpp's Q2_K of the shape in its own process, and what it holds. Needs LLAMA_PYTHON."""
    python = os.environ.get("LLAMA_PYTHON")
    if python is None:
        raise PeerMissing(
            "llama.cpp runs in an interpreter of its own: set LLAMA_PYTHON to one that has llama-cpp-python"
        )
    sizes = folder / "shape.json"
    sizes.write_text(json.dumps(shape(layers)))
    command = [python, str(CHILD), str(sizes), str(folder), str(threads)]
    with (
        (folder / "llama.log").open("w") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None

        def answer() -> Any:
            line = child.stdout.readline() if child.stdout else ""
            if not line:
                raise SystemExit(f"llama.cpp ended\n{(folder / 'llama.log').read_text()[-3000:]}")
            return json.loads(line)

        def tokens(count: int) -> list[float]:
            assert child.stdin is not None
            child.stdin.write(f"{count}\n")
            child.stdin.flush()
            return [cpu if threads == 1 else wall for cpu, wall in answer()]

        yield tokens, answer()
        child.stdin.close()


def rotation_decoder(model: nn.Module, clock: Callable[[], float]) -> Contestant:
    """All rotations of one token and nothing else, each on an input that is new to it."""
    parts = []
    for layer in model.modules():
        if isinstance(layer, QuantLinear):
            for side, inverse in (("in", False), ("out", True)):
                ready = transform(layer.rotation(side), inverse=inverse)
                if ready is not None:
                    parts.append((ready, torch.randn(1, layer.in_features if side == "in" else layer.out_features)))

    def tokens(count: int) -> list[float]:
        found = []
        for _ in range(count):
            start = clock()
            for ready, x in parts:
                ready(x)
            found.append(clock() - start)
        return found

    return tokens


def alternate(contestants: dict[str, Contestant], *, rounds: int, tokens: int) -> dict[str, list[float]]:
    """Median seconds per token of each contestant in each round; one round before them warms up."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name, run in contestants.items():
            seconds = statistics.median(run(tokens))
            if round_:
                found[name].append(seconds)
    return found


def ratio(found: dict[str, list[float]], over: str, name: str) -> float:
    """How many times `name` is as fast as `over`."""
    return statistics.median(a / b for a, b in zip(found[over], found[name], strict=True))


def decode(
    kinds: tuple[Kind, ...], *, layers: int, rounds: int, tokens: int, threads: int, peer: bool, folder: Path
) -> tuple[dict[str, float], dict[str, Any]]:
    """Ratios and medians as flat keys, and what llama.cpp's file holds (empty without `peer`)."""
    clock = time.process_time if threads == 1 else time.perf_counter
    contestants: dict[str, Contestant] = {
        "fp32": decoder(llama(layers), clock),
        "bf16": decoder(llama(layers, torch.bfloat16), clock),
    }
    keys: dict[str, float] = {"layers": float(layers)}
    for kind in kinds:
        model = llama(layers)
        keys[f"{kind}_bytes_a_token"] = float(quantize_randomly(model, kind))
        contestants[kind] = decoder(model, clock)
        contestants[f"{kind}_rotations"] = rotation_decoder(model, clock)
    if not peer:
        found, made = alternate(contestants, rounds=rounds, tokens=tokens), {}
    else:
        with llama_cpp(layers, folder, threads=threads) as (run, made):
            found = alternate({**contestants, "llama_q2_k": run}, rounds=rounds, tokens=tokens)
    keys |= {f"{name}_s_per_token": statistics.median(seconds) for name, seconds in found.items()}
    for kind in kinds:
        keys |= {f"{kind}_over_{other}": ratio(found, other, kind) for other in ("bf16", "fp32")}
        keys[f"{kind}_rotation_share"] = 1 / ratio(found, kind, f"{kind}_rotations")
        if peer:
            keys[f"{kind}_over_llama_q2_k"] = ratio(found, "llama_q2_k", kind)
    return keys, made
