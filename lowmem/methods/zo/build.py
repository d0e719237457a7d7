"""From the config's `method: {kind: zo}` to the algorithm that decides its moves, and the directions that it takes."""

from __future__ import annotations

from typing import assert_never

from lowmem.config.method import ZoMethod
from lowmem.kernels.noise import Kind, LowRank
from lowmem.methods.zo import fzoo, lozo, zo_muon
from lowmem.methods.zo.adanaged import AdaNaged
from lowmem.methods.zo.algorithm import Algorithm, Scales
from lowmem.methods.zo.fzoo import Fzoo
from lowmem.methods.zo.history import DEFAULT_MOMENTUM, DEFAULT_WINDOW, History
from lowmem.methods.zo.lozo import Lozo
from lowmem.methods.zo.meazo import Meazo
from lowmem.methods.zo.mezo import DEFAULT_EPS, Mezo
from lowmem.methods.zo.snr import CURVATURE_PERIOD, DIRECTIONS, SnrNewton
from lowmem.methods.zo.zo_muon import ZoMuon
from lowmem.methods.zo.zo_sign import ZoSign


def build_algorithm(method: ZoMethod, scales: Scales) -> Algorithm:
    """A fresh algorithm for weights of these `scales`."""
    eps = method.zo_eps or DEFAULT_EPS
    momentum = DEFAULT_MOMENTUM if method.momentum is None else method.momentum
    history = History(momentum, method.history or DEFAULT_WINDOW)
    match method.algorithm:
        case "mezo":
            return Mezo(eps)
        case "meazo":
            return Meazo(eps)
        case "fzoo":
            return Fzoo(eps, _probes(method))
        case "zo_sign":
            return ZoSign(eps, history)
        case "zo_muon":
            return ZoMuon(eps, history, probes=_probes(method), top_k=method.top_k or 0)
        case "lozo":
            return Lozo(eps, history)
        case "adanaged":
            return SnrNewton(scales) if method.step_rule == "snr" else AdaNaged(scales, period=method.probe_period)
        case _:
            assert_never(method.algorithm)


def direction_kind(method: ZoMethod) -> Kind:
    """The law of the directions."""
    match method.algorithm:
        case "zo_muon":
            return LowRank(method.rank or zo_muon.DEFAULT_RANK)
        case "lozo":
            return LowRank(method.rank or lozo.DEFAULT_RANK)
        case _:
            return method.direction


def zo_forwards(method: ZoMethod) -> float:
    """Forward passes of a step, on average."""
    match method.algorithm:
        case "mezo" | "meazo" | "zo_sign" | "lozo":
            return 2.0
        case "fzoo" | "zo_muon":
            return 1.0 + _probes(method)
        case "adanaged":
            snr = method.step_rule == "snr"
            return 1 + DIRECTIONS + 1 / CURVATURE_PERIOD if snr else 2 + 3 / method.probe_period
        case _:
            assert_never(method.algorithm)


def _probes(method: ZoMethod) -> int:
    return method.probes or (fzoo.DEFAULT_PROBES if method.algorithm == "fzoo" else zo_muon.DEFAULT_PROBES)
