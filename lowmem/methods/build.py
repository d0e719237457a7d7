"""From the config's `method` and `optimizer` to a `Method` attached to a model: the one place that knows them all."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, assert_never

from lowmem.config.method import (
    AutoMethod,
    FullMethod,
    GaloreMethod,
    GumMethod,
    LoraMethod,
    LoraMuonMethod,
    LorsumMethod,
    ZoMethod,
)
from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError
from lowmem.methods.base import Method
from lowmem.methods.first_order import FirstOrder
from lowmem.methods.full import export_model, unfreeze
from lowmem.methods.fully_sharded import shard_
from lowmem.methods.lowrank.build import pair_descent
from lowmem.methods.lowrank.lora import adapter_exporter, attach_lora
from lowmem.methods.prepared import Prepared
from lowmem.methods.projected.build import layerwise, whole_title
from lowmem.methods.rules.build import run_rules
from lowmem.methods.rules.choice import embedding_names
from lowmem.methods.sharding import Shards
from lowmem.methods.zo.build import build_algorithm, direction_kind
from lowmem.methods.zo.perturb import Perturber
from lowmem.methods.zo.scales import over_scales, prepare_scales
from lowmem.methods.zo.zeroth_order import ZerothOrder, weight_scales
from lowmem.models.names import trainable_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_method(config: RunConfig, model: PreTrainedModel, *, shards: Shards | None = None) -> Method:
    """A `Method` over `model`, which is changed in place: frozen, unfrozen or given adapters; cut over `shards` if the
    config says `fsdp`.

    First-order methods leave it in train mode (dropout as its config says), zeroth order in eval mode: both probes
    must see the same function.
    """
    prepared = prepare(config, model)
    return assemble(config, model, shard_(config, model, prepared, shards) if config.fsdp else prepared)


def prepare(config: RunConfig, model: PreTrainedModel) -> Prepared:
    """`model` is frozen, unfrozen or given adapters and put into its mode; no state is made yet.

    Works on the meta device, where the planner calls it before it replaces the parameters by fakes.
    """
    match config.method:
        case LoraMethod() | LorsumMethod() | LoraMuonMethod() as method:
            adapted = attach_lora(model, method, seed=config.seed)
            model.train()
            return Prepared(f"LoRA r={method.lora_r}", adapter_exporter(adapted, method))
        case FullMethod() | GaloreMethod() | GumMethod() as method:
            model.train()
            unfreeze(model)
            return Prepared(whole_title(method), partial(export_model, model))
        case ZoMethod(train="scales"):
            return prepare_scales(model)
        case ZoMethod(train_adapter=None):
            model.eval()
            unfreeze(model)
            return Prepared("", partial(export_model, model))
        case ZoMethod(train_adapter=LoraMethod() as adapter):
            adapted = attach_lora(model, adapter, seed=config.seed)
            model.eval()
            return Prepared(f" on LoRA r={adapter.lora_r}", adapter_exporter(adapted, adapter))
        case AutoMethod():
            raise ConfigError("method.kind: auto is not a method yet; let lowmem.plan.resolve_auto choose one first")
        case _:
            raise AssertionError("pydantic admits no other method")


def assemble(config: RunConfig, model: PreTrainedModel, prepared: Prepared) -> Method:
    """The method over the trainable parameters that a prepared `model` has now, with its fresh state."""
    parameters = trainable_parameters(model)
    match config.method:
        case GaloreMethod() | GumMethod() | FullMethod(update="in_backward") as method:
            rules = run_rules(config, embedding_names(model, parameters))
            return layerwise(config, method, model, parameters, rules, prepared)
        case LoraMethod() | FullMethod():
            return FirstOrder(
                parameters,
                run_rules(config, embedding_names(model, parameters)),
                title=prepared.title,
                seed=config.seed,
                max_grad_norm=config.max_grad_norm,
                exporter=prepared.exporter,
                layout=prepared.layout,
            )
        case LorsumMethod() | LoraMuonMethod() as method:
            return pair_descent(config, method, model, parameters, prepared)
        case ZoMethod(train="scales") as method:
            return over_scales(config, method, model, prepared)
        case ZoMethod() as method:
            perturber = Perturber(model, parameters, seed=config.seed, kind=direction_kind(method))
            algorithm = build_algorithm(method, weight_scales(parameters))
            return ZerothOrder(perturber, algorithm, kind_title=prepared.title, exporter=prepared.exporter)
        case AutoMethod():
            raise AssertionError("prepare refuses it")
        case _:
            assert_never(config.method)
