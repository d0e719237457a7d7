"""ZO-Muon: several probes in low-rank directions, averaged over steps, and a step of steepest descent in spectral norm.

    rho_i = (L(x + eps z_i) - L(x)) / eps,  z_i = U V^T / sqrt(r) per matrix, i = 1..N
    G     = average of the last rho_i z_i (`history.py`), of rank N r H at most
    x    <- x - lr 0.2 sqrt(max(m, n)) msign(G)          msign over the k largest singular directions with `top_k`

Vectors and vocabularies move by sign. `lr` carries over from Muon: entries of a matrix move by about 0.2 lr. Scaling
the loss changes nothing (tested). N + 1 forwards a step, 0 bytes a weight; an update draws N H low-rank directions and
needs three fp32 copies of the largest matrix.

Sources: ZO-Muon (arXiv 2602.17155) and ZO-MOPI (arXiv 2605.09034), of which the abstracts were read: a reconstruction.
The papers keep one orthonormal subspace for many steps and a momentum inside it; here every probe has its own low-rank
direction, and the subspace is the span of those in the history, so that nothing is stored. Reports disagree on whether
spectral steps pay without gradients (specifications: 86.5 against MeZO's 90.8 on SST-2 with all weights of OPT-1.3B,
better with LoRA); this project's own numbers are in docs/results.md where there are any.
"""

from __future__ import annotations

import math

from lowmem.methods.zo.algorithm import Evaluate, Move
from lowmem.methods.zo.form import Form
from lowmem.methods.zo.history import History
from lowmem.methods.zo.perturb import Direction

DEFAULT_PROBES = 4
DEFAULT_RANK = 8


class ZoMuon:
    def __init__(self, eps: float, history: History, *, probes: int, top_k: int) -> None:
        self._eps, self._history, self._probes, self._top_k = eps, history, probes, top_k

    @property
    def title(self) -> str:
        top = f", top {self._top_k}" if self._top_k else ""
        return f"ZO-Muon (reconstruction), {self._probes} probes{top}"

    def step(self, evaluate: Evaluate, *, lr: float, step: int) -> Move:
        directions = [Direction(step, i) for i in range(self._probes)]
        here = evaluate(None, 0.0).mean
        slopes = [(evaluate(z, self._eps).mean - here) / self._eps for z in directions]
        forwards, details = self._probes + 1, {"projected_grad": slopes[0]}
        if not all(map(math.isfinite, slopes)):
            return Move(here, (), forwards, details, skipped=True)
        self._history.add(step, list(zip(directions, slopes, strict=True)))
        form = Form("spectral", lr, top_k=self._top_k)
        return Move(here, self._history.terms(step), forwards, details, form=form)

    def numbers(self) -> dict[str, float | int | None]:
        return self._history.numbers()

    def load_numbers(self, numbers: dict[str, float | int | None]) -> None:
        self._history.load_numbers(numbers)
