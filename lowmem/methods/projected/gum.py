"""GUM (Pan et al., arXiv 2510.17802): GaLore made unbiased by layers that, drawn at random, train what it leaves out.

    q = gamma / layers; every K updates gamma layers are drawn, without replacement
    the others:  R = b R + (1 - b) P'G / (1 - q)                 W = (1 - lr wd) W - lr c P msign(R)
    drawn:       R = b R + (1 - b) (G - P P'G) / q               W = (1 - lr wd) W - lr c msign(R)

with c = 0.2 sqrt(max(m, n)), so that AdamW's learning rates carry over. What enters R is G on average, exactly:
(1 - q) P P'G / (1 - q) + q (G - P P'G) / q = G, at a second moment of |P'G|^2 / (1 - q) + |G - P P'G|^2 / q (both
tested). msign forgets the scale of R, so the *step* has the mean (1 - q) P msign(P'G) + q msign(G - P P'G), which is
along msign(G) for q = 1/2 only. `ns_gain: unbiased` multiplies the two steps by 1 / (1 - q) and 1 / q: their mean is
then msign(G) for a fresh P, but a drawn layer moves 1 / q times as far and the step's variance grows by as much.

Memory per s x l matrix, s <= l, in state_dtype: r s + r l, and s l + r s in drawn layers. The draw is of whole decoder
layers, so the peak is the same in every period. gamma = 0 is GaLore with Muon, biased.
A reconstruction: equations from a catalogue of the paper, whose code and tuned settings were not found. Ours: c and b,
R starts anew with every basis and branch (as described), matrices look for a new basis in turn and not all at the
start of a period, by sketching, see `basis.py`. Vectors, embeddings and heads take the config's `optimizer`.
"""

from __future__ import annotations

import torch

from lowmem.config.method import GumMethod
from lowmem.methods.projected.matrix import Branches
from lowmem.methods.rules.base import Rule
from lowmem.methods.rules.muon import Muon
from lowmem.methods.rules.stored import Stored


def gum_branches(method: GumMethod, share: float, dtype: torch.dtype) -> Branches:
    """Both branches' rule is momentum and msign; `share` is q."""

    def rule(weight_decay: float) -> Rule:
        muon = Muon(method.momentum, nesterov=False, ns_steps=method.ns_steps, weight_decay=weight_decay)
        return Stored(muon, dtype)

    unbiased = method.ns_gain == "unbiased" and share > 0
    return Branches(
        rule(0.0),
        gain=1 / (1 - share) if unbiased else 1.0,
        forgets=True,
        full_rule=rule,
        full_gain=1 / share if unbiased else 1.0,
    )
