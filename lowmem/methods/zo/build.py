"""From the config's `method: {kind: zo}` to the algorithm that decides its moves."""

from __future__ import annotations

from typing import assert_never

from lowmem.config.method import ZoMethod
from lowmem.methods.zo.adanaged import AdaNaged
from lowmem.methods.zo.algorithm import Algorithm, Scales
from lowmem.methods.zo.fzoo import DEFAULT_PROBES, Fzoo
from lowmem.methods.zo.meazo import Meazo
from lowmem.methods.zo.mezo import DEFAULT_EPS, Mezo
from lowmem.methods.zo.snr import CURVATURE_PERIOD, DIRECTIONS, SnrNewton


def build_algorithm(method: ZoMethod, scales: Scales) -> Algorithm:
    """A fresh algorithm for weights of these `scales`."""
    eps = method.zo_eps or DEFAULT_EPS
    match method.algorithm:
        case "mezo":
            return Mezo(eps)
        case "meazo":
            return Meazo(eps)
        case "fzoo":
            return Fzoo(eps, method.probes or DEFAULT_PROBES)
        case "adanaged":
            return SnrNewton(scales) if method.step_rule == "snr" else AdaNaged(scales, period=method.probe_period)
        case _:
            assert_never(method.algorithm)


def zo_forwards(method: ZoMethod) -> float:
    """Forward passes of a step, on average."""
    match method.algorithm:
        case "mezo" | "meazo":
            return 2.0
        case "fzoo":
            return 1.0 + (method.probes or DEFAULT_PROBES)
        case "adanaged":
            snr = method.step_rule == "snr"
            return 1 + DIRECTIONS + 1 / CURVATURE_PERIOD if snr else 2 + 3 / method.probe_period
        case _:
            assert_never(method.algorithm)
