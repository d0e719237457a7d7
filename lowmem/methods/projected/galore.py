"""GaLore (Zhao et al., arXiv 2403.03507): any rule inside a low-rank view of each matrix's gradient.

    C = P'G        W = (1 - lr wd) W + scale P step(C)        step: AdamW's (or another rule's) on the r x l matrix C
    every T updates: P = the r leading left singular vectors of G (G with its shorter side first)

As published it is biased: what P does not show of a gradient is lost, and a P taken from a noisy gradient shows noise.
It is here to be compared with; `gum.py` corrects it. As published, the rule's state survives a new basis.

Memory per s x l matrix, s <= l, in state_dtype: r s for P and, with AdamW, 2 r l; beside it one layer's gradient.
Different from the published code: the basis comes from a random sketch and not from an SVD, matrices take turns
instead of all refreshing in one step, a basis found at an update serves from the next one on (the first update uses
random directions), gradients accumulate over micro-batches in the view, and AdamW's epsilon is added after the bias
correction. Embeddings, heads and vectors take the same rule unprojected.
"""

from __future__ import annotations

import torch

from lowmem.config.method import GaloreMethod
from lowmem.methods.projected.matrix import Branches
from lowmem.methods.rules.base import Rule
from lowmem.methods.rules.stored import Stored


def galore_branches(method: GaloreMethod, rule: Rule, dtype: torch.dtype) -> Branches:
    """Every matrix takes `rule` inside its view, always."""
    return Branches(Stored(rule, dtype), gain=method.scale)
