"""HARP against the randomized Hadamard transform on matrices of real size, at equal bytes.

    python examples/quant/real_size.py --quick          # 512 wide, one seed, under a minute
    python examples/quant/real_size.py --size 4096      # hours on one core

Small matrices overfit (their angles are a sizeable share of their weights), so a claim about HARP needs wide ones: here
with outlier columns, a low-rank part, and correlated inputs. HARP's angles count as bytes, and the RHT is given the
widest groups of scales that make it *at least as large*; both are coded with the same feedback and sweeps. Groups are
at least 64 wide, so narrow matrices stay below HARP's bytes: `equal_bytes` is then false, and the row proves nothing.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lowmem.quant.codec import BLOCK, Kind
from lowmem.quant.harp import FitOptions
from lowmem.quant.quantize import QuantizeOptions, quantize_weight

SPECTRA = ("gaussian", "outliers", "low-rank")


def real_size_problem(size: int, spectrum: str, seed: int) -> tuple[Tensor, Tensor]:
    """A weight (size, size) with the spectrum asked for, and the second moment of correlated inputs (power law)."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(size, size, generator=generator)
    if spectrum == "outliers":
        W[:, torch.randperm(size, generator=generator)[: size // 128]] *= 8
    if spectrum == "low-rank":
        rank = max(1, size // 128)
        left, right = torch.randn(size, rank, generator=generator), torch.randn(rank, size, generator=generator)
        W += 2 * left @ right / rank**0.5
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    spectrum_of_inputs = torch.arange(1, size + 1).float() ** -0.8
    return W * 0.02, (basis * spectrum_of_inputs) @ basis.T


def compare(size: int, kind: Kind, spectrum: str, seed: int, *, steps: int = 200) -> dict[str, Any]:
    """Loss and bytes of HARP (the better of its two fits) and of the RHT with row scales and at HARP's bytes."""
    W, H = real_size_problem(size, spectrum, seed)
    base = QuantizeOptions(kind=kind, seed=seed, fit=FitOptions(steps=steps))
    harp = quantize_weight(W, H, QuantizeOptions(**{**vars(base), "candidates": ("harp", "harp-conditional")}))
    plain = quantize_weight(W, H, QuantizeOptions(**{**vars(base), "candidates": ("rht",)}))
    spare = harp.nbytes - plain.nbytes
    groups = max(1, -(-spare // (2 * size)) + 1)
    group_size = max(BLOCK, size // groups // BLOCK * BLOCK)
    finer = QuantizeOptions(**{**vars(base), "candidates": ("rht",), "group_size": group_size})
    equal = quantize_weight(W, H, finer)
    return {
        "size": size,
        "kind": kind,
        "spectrum": spectrum,
        "seed": seed,
        "equal_bytes": equal.nbytes >= harp.nbytes,
        "harp": {"loss": harp.loss, "nbytes": harp.nbytes, "reports": [asdict(report) for report in harp.reports]},
        "rht": {"loss": plain.loss, "nbytes": plain.nbytes},
        "rht_equal_bytes": {"loss": equal.loss, "nbytes": equal.nbytes, "group_size": group_size},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="512 wide, s2, one seed")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--kinds", nargs="+", default=["s2", "e8"])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    size, kinds, seeds = arguments.size, arguments.kinds, arguments.seeds
    if arguments.quick:
        size, kinds, seeds = 512, ["s2"], 1
    for kind in kinds:
        for spectrum in SPECTRA:
            for seed in range(seeds):
                print(json.dumps(compare(size, kind, spectrum, seed)), flush=True)


if __name__ == "__main__":
    main()
