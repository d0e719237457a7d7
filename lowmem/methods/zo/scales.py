"""QZO: zeroth order over the quantization scales of a quantized base, whose integer codes stay as they are.

    W = s * c (codes c, one scale s per group)      rho = (L(s + eps z) - L(s - eps z)) / (2 eps)      s <- s - lr rho z

Any zeroth-order algorithm decides the step; only the tensors that it perturbs differ. State: 0 bytes per parameter;
trained are 1/64 of the weights for nf4, 1/row for int8, 1/group for the project's own format. Beyond inference it takes
the scales of one layer. What is exported are the scales; when the run folder is opened, a base that `lowmem quantize`
packed is read again, and others are quantized again from the same weights, which gives the same codes.

Cannot be combined with `train_adapter` (train one or the other) nor with double quantization, whose scales are codes.
Norms, embeddings and the head, which are not quantized, stay frozen.

Source: QZO, arXiv 2505.13430, of which the abstract was read: a reconstruction. Known differences: the paper clips the
directional derivative, here `adanaged`, `fzoo` and `meazo` bound their steps instead; `mezo` is as published for MeZO.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from lowmem.config.method import ZoMethod
from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError, FormatError
from lowmem.methods.prepared import Prepared
from lowmem.methods.sharding import fingerprint
from lowmem.methods.zo.build import build_algorithm, direction_kind
from lowmem.methods.zo.perturb import Perturber, Slot
from lowmem.methods.zo.zeroth_order import ZerothOrder, weight_scales
from lowmem.models.resolve import SCALES_FILE
from lowmem.models.scales import Scaled, scaled_layers


def prepare_scales(model: nn.Module) -> Prepared:
    """`model` is in eval mode and none of its parameters requires a gradient: scales are not parameters."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return Prepared(" on quantization scales", partial(export_scales, model))


def over_scales(config: RunConfig, method: ZoMethod, model: nn.Module, prepared: Prepared) -> ZerothOrder:
    """The zeroth-order method over the scales of `model`, which its layers read from new `Parameter`s of the same
    memory. Raises `ConfigError` where it has none."""
    layers = scaled_layers(model)
    if not layers:
        raise ConfigError(
            f"method.train: scales: {type(model).__name__} has no layer with quantization scales; use quantization: "
            "{kind: nf4, double_quant: false} or int8, a model made by lowmem quantize, or train: weights"
        )
    parameters = {layer.name: nn.Parameter(layer.scales, requires_grad=False) for layer in layers.values()}
    parameters = dict(sorted(parameters.items()))
    for layer in layers.values():
        layer.put(parameters[layer.name])
    slots = {module: [Slot(layer.name, parameters[layer.name], layer.put)] for module, layer in layers.items()}
    perturber = Perturber(model, parameters, seed=config.seed, kind=direction_kind(method), slots=slots)
    algorithm = build_algorithm(method, weight_scales(parameters))
    digest = _digest(layers)

    def export(folder: Path) -> None:
        if _digest(layers) != digest:
            raise FormatError(
                "the integer codes of the quantized base changed during the run, which trains scales alone: something "
                "else wrote into the model, and scales are worth nothing without their codes"
            )
        prepared.exporter(folder)

    return ZerothOrder(perturber, algorithm, kind_title=prepared.title, exporter=export)


def export_scales(model: nn.Module, folder: Path) -> None:
    """`folder` holds the scales of `model`, under the names that `load_scales` expects."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    scales = {layer.name: layer.scales.detach().contiguous() for layer in scaled_layers(model).values()}
    save_file(scales, folder / SCALES_FILE)


def _digest(layers: dict[nn.Module, Scaled]) -> int:
    """A hash of all codes; 0 for those of a plan, which have no values."""
    codes = [tensor for layer in layers.values() for tensor in layer.codes]
    return 0 if any(isinstance(tensor, FakeTensor) for tensor in codes) else fingerprint(codes)
