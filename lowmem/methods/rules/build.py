"""From the config's `optimizer` to the rule of every parameter."""

from __future__ import annotations

from typing import assert_never

from lowmem.config import optimizer as optimizers
from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError
from lowmem.methods.rules.adafactor import Adafactor
from lowmem.methods.rules.adamw import AdamW
from lowmem.methods.rules.adamw8bit import AdamW8bit
from lowmem.methods.rules.base import Rule
from lowmem.methods.rules.choice import RuleChoice
from lowmem.methods.rules.lion import Lion
from lowmem.methods.rules.lionmuon import LionMuon
from lowmem.methods.rules.muon import Muon
from lowmem.methods.rules.normuon import NorMuon
from lowmem.methods.rules.rowmax import RowMax
from lowmem.methods.rules.sgd import Sgd
from lowmem.methods.rules.signum import Signum
from lowmem.methods.rules.softmuon import SoftMuon
from lowmem.methods.rules.softsignum import SoftSignum
from lowmem.methods.rules.stosign import StoSign


def run_rules(config: RunConfig, embeddings: frozenset[str] = frozenset()) -> RuleChoice:
    """The rule of every parameter of the run; `embeddings` are names of tables and heads."""
    return build_rules(config.optimizer, embeddings, total_updates=config.max_steps)


def build_rules(
    optimizer: optimizers.Optimizer, embeddings: frozenset[str] = frozenset(), *, total_updates: int | None = None
) -> RuleChoice:
    """The rule of every parameter; rules of matrices leave vectors and `embeddings` to `optimizer.others`.

    `total_updates`: how many the run has at most. Raises `ConfigError` for a rule that must know and is not told.
    """
    matrices = build_rule(optimizer, total_updates)
    if not isinstance(optimizer, optimizers.OfMatrices):
        return RuleChoice(matrices, matrices)
    decay = optimizer.weight_decay
    others: Rule = AdamW(weight_decay=decay) if optimizer.others == "adamw" else Signum(weight_decay=decay)
    return RuleChoice(matrices, others, embeddings)


def build_rule(optimizer: optimizers.Optimizer, total_updates: int | None = None) -> Rule:
    """The rule that `optimizer` names: for every parameter, or of the hidden matrices alone."""
    keys = optimizer.model_dump(exclude={"kind", "others"})  # rules and sections share their names
    match optimizer:
        case optimizers.AdamW():
            return AdamW(**keys)
        case optimizers.AdamW8bit():
            return AdamW8bit(**keys)
        case optimizers.Adafactor():
            return Adafactor(**keys)
        case optimizers.Sgd():
            return Sgd(**keys)
        case optimizers.Lion():
            return Lion(**keys)
        case optimizers.Signum():
            return Signum(**keys)
        case optimizers.StoSign():
            return StoSign(**keys)
        case optimizers.SoftSignum():
            return SoftSignum(_known(total_updates, optimizer.kind), **keys)
        case optimizers.RowMax():
            return RowMax(**keys)
        case optimizers.Muon():
            return Muon(**keys)
        case optimizers.NorMuon():
            return NorMuon(**keys)
        case optimizers.SoftMuon():
            return SoftMuon(_known(total_updates, optimizer.kind), **keys)
        case optimizers.LionMuon():
            return LionMuon(**keys)
        case optimizers.SignMuon():
            momentum = keys.pop("momentum")
            return LionMuon(betas=(momentum, momentum), **keys)
        case _:
            assert_never(optimizer)


def _known(total_updates: int | None, kind: str) -> int:
    if total_updates is None:
        raise ConfigError(
            f"optimizer.kind: {kind} softens towards the end of a run, which must be known; set max_steps"
        )
    return total_updates
