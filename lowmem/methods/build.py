"""From the config's `method` and `optimizer` to a `Method` attached to a model: the one place that knows them all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from lowmem.config.method import FullMethod, LoraMethod, ZoMethod
from lowmem.config.optimizer import AdamW as AdamWConfig
from lowmem.config.optimizer import Optimizer
from lowmem.config.optimizer import Sgd as SgdConfig
from lowmem.config.run import RunConfig
from lowmem.methods.base import Method
from lowmem.methods.first_order import FirstOrder
from lowmem.methods.full import export_model, unfreeze
from lowmem.methods.lowrank.lora import attach_lora, export_adapter
from lowmem.methods.rules.adamw import AdamW
from lowmem.methods.rules.base import Rule
from lowmem.methods.rules.sgd import Sgd
from lowmem.methods.zo.adanaged import AdaNaged
from lowmem.methods.zo.algorithm import Algorithm, Scales
from lowmem.methods.zo.mezo import DEFAULT_EPS, Mezo
from lowmem.methods.zo.perturb import Perturber
from lowmem.methods.zo.snr import SnrNewton
from lowmem.methods.zo.zeroth_order import ZerothOrder, weight_scales
from lowmem.models.names import trainable_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_method(config: RunConfig, model: PreTrainedModel) -> Method:
    """A `Method` over `model`, which is changed in place: frozen, unfrozen or given adapters."""
    match config.method:
        case LoraMethod():
            adapted = attach_lora(model, config.method, seed=config.seed)
            title = f"LoRA r={config.method.lora_r}"
            return _first_order(config, model, title, partial(export_adapter, adapted))
        case FullMethod():
            unfreeze(model)
            return _first_order(config, model, "full finetuning", partial(export_model, model))
        case ZoMethod():
            return _zeroth_order(config, config.method, model)
        case _:
            assert_never(config.method)


def build_rule(optimizer: Optimizer) -> Rule:
    match optimizer:
        case AdamWConfig():
            return AdamW(betas=optimizer.betas, eps=optimizer.eps, weight_decay=optimizer.weight_decay)
        case SgdConfig():
            return Sgd(momentum=optimizer.momentum, weight_decay=optimizer.weight_decay)
        case _:
            assert_never(optimizer)


def _first_order(config: RunConfig, model: PreTrainedModel, title: str, exporter: Callable[[Path], None]) -> FirstOrder:
    return FirstOrder(
        trainable_parameters(model),
        build_rule(config.optimizer),
        title=title,
        seed=config.seed,
        max_grad_norm=config.max_grad_norm,
        exporter=exporter,
    )


def _zeroth_order(config: RunConfig, method: ZoMethod, model: PreTrainedModel) -> ZerothOrder:
    exporter: Callable[[Path], None]
    if method.train_adapter is not None:
        adapted = attach_lora(model, method.train_adapter, seed=config.seed)
        title, exporter = f" on LoRA r={method.train_adapter.lora_r}", partial(export_adapter, adapted)
    else:
        unfreeze(model)
        title, exporter = "", partial(export_model, model)
    parameters = trainable_parameters(model)
    perturber = Perturber(model, parameters, seed=config.seed, kind=method.direction)
    algorithm = _algorithm(method, weight_scales(parameters))
    return ZerothOrder(perturber, algorithm, kind_title=title, exporter=exporter)


def _algorithm(method: ZoMethod, scales: Scales) -> Algorithm:
    match method.algorithm, method.step_rule:
        case "mezo", _:
            return Mezo(method.zo_eps or DEFAULT_EPS)
        case "adanaged", "snr":
            return SnrNewton(scales)
        case "adanaged", "parameter_free":
            return AdaNaged(scales, period=method.probe_period)
        case _:
            raise AssertionError("pydantic admits no other algorithm")
