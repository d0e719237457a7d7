"""From the config to layer-wise methods: GaLore, GUM, and full finetuning that updates inside backward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lowmem.config.method import FullMethod, GaloreMethod, GumMethod
from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError
from lowmem.methods.layerwise import LayerWise
from lowmem.methods.prepared import Prepared
from lowmem.methods.projected.draw import Draw, layer_of
from lowmem.methods.projected.galore import galore_branches
from lowmem.methods.projected.gum import gum_branches
from lowmem.methods.projected.matrix import ProjectedMatrix, Projection
from lowmem.methods.rules.adamw import AdamW
from lowmem.methods.rules.choice import RuleChoice, embedding_names
from lowmem.methods.rules.lion import Lion
from lowmem.methods.rules.sgd import Sgd
from lowmem.methods.rules.signum import Signum
from lowmem.methods.rules.stored import Stored
from lowmem.methods.rules.stosign import StoSign
from lowmem.methods.tensor_update import TensorUpdate, WholeUpdate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ELEMENTWISE = (AdamW, Lion, Sgd, Signum, StoSign)
"""Rules for which a row of a matrix is updated as it would be alone."""


def layerwise(
    config: RunConfig,
    method: FullMethod | GaloreMethod | GumMethod,
    model: PreTrainedModel,
    parameters: dict[str, nn.Parameter],
    rules: RuleChoice,
    prepared: Prepared,
) -> LayerWise:
    """The method over all `parameters` of `model`; `rules` are those of the config's `optimizer`."""
    match method:
        case FullMethod():
            updates: dict[str, TensorUpdate] = {n: WholeUpdate(p, rules(n, p)) for n, p in parameters.items()}
            title = f"{prepared.title} + {rules.title}, updated in backward"
        case GaloreMethod() | GumMethod():
            matrices = projected_names(model, parameters)
            updates = projected_updates(config, method, parameters, matrices, rules)
            title = f"{prepared.title} ({rules.others.title} off the matrices)"
    return LayerWise(
        parameters,
        updates,
        title=title,
        seed=config.seed,
        clipping=method.clipping,
        max_grad_norm=config.max_grad_norm,
        exporter=prepared.exporter,
    )


def whole_title(method: FullMethod | GaloreMethod | GumMethod) -> str:
    """What a method that trains all weights is called, before its rule is known."""
    match method:
        case GaloreMethod():
            return f"GaLore r={method.rank}"
        case GumMethod():
            return f"GUM r={method.rank}, {method.gamma} layers drawn"
        case _:
            return "full finetuning"


def projected_names(model: PreTrainedModel, parameters: dict[str, nn.Parameter]) -> list[str]:
    """Matrices of the decoder's layers: neither embeddings nor the head. Raises `ConfigError` where there are none."""
    tables = embedding_names(model, parameters)
    names = [name for name, p in parameters.items() if p.dim() == 2 and name not in tables]
    if not names:
        raise ConfigError(f"method: {type(model).__name__} has no matrix outside of its embeddings to project")
    return names


def projected_updates(
    config: RunConfig,
    method: GaloreMethod | GumMethod,
    parameters: dict[str, nn.Parameter],
    matrices: list[str],
    rules: RuleChoice,
) -> dict[str, TensorUpdate]:
    """One update per parameter, in order; embeddings and vectors take the rule that `rules` has for them."""
    dtype = STATE_DTYPES[method.state_dtype]
    shared = _projection(config, method, rules, _draw(config, method, matrices, parameters))
    others = Stored(rules.others, dtype, elementwise=isinstance(rules.others, ELEMENTWISE))

    def update(name: str, parameter: Tensor) -> TensorUpdate:
        if name not in matrices:
            return WholeUpdate(parameter, others)
        return ProjectedMatrix(parameter, name, shared, index=matrices.index(name), count=len(matrices))

    return {name: update(name, parameter) for name, parameter in parameters.items()}


def _projection(config: RunConfig, method: GaloreMethod | GumMethod, rules: RuleChoice, draw: Draw) -> Projection:
    dtype = STATE_DTYPES[method.state_dtype]
    if isinstance(method, GumMethod):
        branches = gum_branches(method, draw.share, dtype)
    else:
        branches = galore_branches(method, rules.matrices, dtype)
    decay = config.optimizer.weight_decay
    return Projection(method.rank, method.period, branches, draw, dtype, config.seed, decay)


def _draw(
    config: RunConfig, method: GaloreMethod | GumMethod, matrices: list[str], parameters: dict[str, nn.Parameter]
) -> Draw:
    layers = sorted({layer_of(name) for name in matrices}, key=_depth)
    planned = any(isinstance(p, FakeTensor) for p in parameters.values())
    gamma = method.gamma if isinstance(method, GumMethod) else 0
    return Draw(tuple(layers), gamma, method.period, config.seed, fixed=planned)


def _depth(layer: str) -> tuple[int, str]:
    last = layer.rsplit(".", 1)[-1]
    return (int(last) if last.isdigit() else -1, layer)
