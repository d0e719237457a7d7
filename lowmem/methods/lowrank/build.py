"""From the config's adapter methods to adapters on a model, and to the methods that train both factors together."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from torch import nn

from lowmem.config.method import AdapterMethod, LoraMuonMethod, LorsumMethod
from lowmem.config.run import RunConfig
from lowmem.methods.lowrank.descent import PairDescent
from lowmem.methods.lowrank.lora_muon import LoraMuon
from lowmem.methods.lowrank.lorsum_rule import Lorsum
from lowmem.methods.lowrank.pair import find_pairs
from lowmem.methods.lowrank.pair_rule import PairRule
from lowmem.methods.prepared import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pair_rule(method: LorsumMethod | LoraMuonMethod) -> PairRule:
    """The rule that `method` describes."""
    keys = method.model_dump(exclude={"kind", *AdapterMethod.model_fields})  # rules and sections share their names
    match method:
        case LorsumMethod():
            return Lorsum(**keys)
        case LoraMuonMethod():
            return LoraMuon(**keys)
        case _:
            assert_never(method)


def pair_descent(
    config: RunConfig,
    method: LorsumMethod | LoraMuonMethod,
    model: PreTrainedModel,
    parameters: dict[str, nn.Parameter],
    prepared: Prepared,
) -> PairDescent:
    """The method over the adapters that a prepared `model` has, with fresh state."""
    return PairDescent(
        parameters,
        find_pairs(model),
        pair_rule(method),
        title=prepared.title,
        seed=config.seed,
        max_grad_norm=config.max_grad_norm,
        exporter=prepared.exporter,
    )
