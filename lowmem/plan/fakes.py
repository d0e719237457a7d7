"""A model of any architecture whose parameters are fake tensors: shapes and dtypes of the real one, no memory.

Built on meta (peft and bitsandbytes wrap meta parameters but no fakes), then every parameter and buffer is replaced by
a fake *cpu* tensor: an autograd graph over fake cuda tensors aborts a build of torch without CUDA.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lowmem.config.method import AdapterMethod
from lowmem.config.quantization import Nf4, Quantization
from lowmem.config.run import RunConfig
from lowmem.data.batch import Batch, Options
from lowmem.methods.base import Method
from lowmem.methods.build import assemble, prepare
from lowmem.models.checkpointing import set_gradient_checkpointing
from lowmem.models.packed_quantizer import packed_headers, put_packed_layers
from lowmem.models.quantized import quantization_request
from lowmem.models.source import ModelSource
from lowmem.plan.tracker import LiveBytes
from lowmem.quant.modules import packed_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

NF4_BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4-bit format."""
NESTED_BLOCK = 256
"""Scales that share a scale of their own with `double_quant`."""


@dataclass(frozen=True)
class BatchShape:
    """One micro-batch: `examples` rows of `tokens` tokens, all trained, or a prompted task of `options` options."""

    examples: int
    tokens: int
    options: int | None = None
    """K of a classification task whose options are one token each: the head then sees one position per row."""
    packed: bool = False
    """Packed rows bring positions instead of a padding mask."""
    trained: int | None = None
    """Labelled tokens of the whole batch; None = every token that has one before it."""

    def batch(self) -> Batch:
        """Such a batch; the first row ends one token early, so that a padding mask is a real one."""
        rows, length = self.examples, self.tokens
        ids = torch.full((rows, length), 1, dtype=torch.long)
        mask = None if self.packed else torch.ones_like(ids)
        if mask is not None and length > 1:
            mask[0, -1] = 0
        where = torch.arange(rows)
        options = None
        if self.options is not None:
            choice = torch.arange(self.options).expand(rows, self.options)
            options = Options(where, torch.zeros_like(where), torch.zeros_like(where), self.options, token_ids=choice)
        positions: tuple[Tensor, ...] = (where.repeat_interleave(length - 1), torch.arange(length - 1).repeat(rows))
        positions = tuple(index[: self.trained] for index in positions)
        restart = torch.arange(length).expand(rows, length) if self.packed else None
        return Batch(ids, mask, ids, position_ids=restart, options=options, positions=positions)


@dataclass(frozen=True)
class FakeRun:
    """The model and the very method that would train it, over fake tensors that live in `mode`."""

    mode: FakeTensorMode
    model: PreTrainedModel
    method: Method
    parameters: int
    trainable: int


def with_depth(shape: PretrainedConfig, layers: int) -> PretrainedConfig:
    """`shape` with only its first `layers` decoder layers."""
    short = copy.deepcopy(shape)
    text: Any = short.get_text_config()
    text.num_hidden_layers = layers
    for name in ("layer_types", "mlp_layer_types"):
        kinds = getattr(text, name, None)
        if kinds:
            setattr(text, name, list(kinds[:layers]))
    return short


def fake_run(config: RunConfig, shape: PretrainedConfig, tracker: LiveBytes) -> FakeRun:
    """`config`'s method attached to a fake model of `shape`; loading and attaching are phases of their own."""
    config = _plannable(config)
    model = _meta_model(config, shape)
    attached = prepare(config, model)
    set_gradient_checkpointing(model, config.gradient_checkpointing)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    parameters = sum(_parameters_in(p) for p in model.parameters()) + packed_weights(model)
    with mode:
        _replace_tensors(model, config.quantization)
        with tracker, tracker.phase("load"):
            tracker.track_module(model)
            _read_one(model, config)
        with tracker, tracker.phase("attach"):
            method = assemble(config, model, attached)
    return FakeRun(mode, model, method, parameters, sum(t.numel() for t in method.trainable.values()))


def fake_model(config: RunConfig, shape: PretrainedConfig) -> tuple[FakeTensorMode, PreTrainedModel]:
    """A model of `shape` for inference only, with the mode that its fake tensors live in."""
    model = _meta_model(config, shape)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        _replace_tensors(model, config.quantization)
    return mode, model


def _plannable(config: RunConfig) -> RunConfig:
    """`config` with adapters initialised plainly: other ways read the weights, which a plan does not have."""
    match config.method:
        case AdapterMethod(init_lora_weights="pissa") as method:
            return config.model_copy(update={"method": method.model_copy(update={"init_lora_weights": "default"})})
    return config


def _meta_model(config: RunConfig, shape: PretrainedConfig) -> PreTrainedModel:
    """Shapes and dtypes on the meta device, linear layers replaced where the base is quantized."""
    from transformers import AutoModelForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    source = ModelSource.from_config(config)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(shape),
            dtype=source.torch_dtype,
            attn_implementation=source.attn_implementation,
            trust_remote_code=source.trust_remote_code,
        )
        if (packed := packed_headers(shape)) is not None:
            put_packed_layers(model, packed, partial=True)
    request = quantization_request(source.quantization, source.torch_dtype)
    if request is not None:
        quantizer: Any = AutoHfQuantizer.from_config(request, pre_quantized=False)
        quantizer.preprocess_model(model=model, device_map={"": "cpu"})
        quantizer.postprocess_model(model)
        for layer in _quantized_layers(model):
            _store_codes(layer, source.quantization)
    model.config.use_cache = False
    return model.eval()


def _read_one(model: nn.Module, config: RunConfig) -> None:
    """A quantized base is made layer by layer: beside what is finished, the largest matrix exists in 16 or 32 bits.

    Weights that are not quantized are read in place (measured: loading SmolLM2 holds 14 MiB more than the model).
    """
    sizes = [layer.in_features * layer.out_features for layer in _quantized_layers(model)]
    if sizes:
        torch.empty(max(sizes), dtype=ModelSource.from_config(config).torch_dtype)


def _quantized_layers(model: nn.Module) -> list[Any]:
    names = ("Linear4bit", "Linear8bitLt")
    return [m for m in model.modules() if type(m).__name__ in names and type(m).__module__.startswith("bitsandbytes")]


def _store_codes(layer: Any, quantization: Quantization) -> None:
    """The layer's weight has the shape and dtype of its codes, still on meta."""
    if isinstance(quantization, Nf4):
        shape: tuple[int, ...] = (-(-layer.out_features * layer.in_features // 2), 1)
        codes = torch.empty(shape, dtype=torch.uint8, device="meta")
        layer.support_avx512bf16_for_cpu = False  # a layout for inference only, which training never meets
    else:
        codes = torch.empty((layer.out_features, layer.in_features), dtype=torch.int8, device="meta")
    layer.weight.data = codes


def _parameters_in(parameter: Tensor) -> int:
    """Weights that a stored tensor stands for: two per byte of 4-bit codes."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)


def _replace_tensors(model: nn.Module, quantization: Quantization) -> None:
    """Every parameter and buffer is a new tensor of its shape on the (fake) CPU; ties stay ties."""
    fresh: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in fresh:
                tensor = torch.empty(parameter.shape, dtype=parameter.dtype)
                fresh[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            module._parameters[name] = fresh[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    for layer in _quantized_layers(model):
        _attach_statistics(layer, nested=isinstance(quantization, Nf4) and quantization.double_quant)


def _attach_statistics(layer: Any, *, nested: bool) -> None:
    """What bitsandbytes keeps beside the codes: block scales, or one scale per row."""
    rows, columns = layer.out_features, layer.in_features
    if type(layer).__name__ == "Linear8bitLt":
        layer.state.CB, layer.state.SCB = layer.weight.data, torch.empty(rows)
        layer.weight.CB = layer.weight.SCB = None
        layer.weight.has_fp16_weights = False
        layer.state.threshold = 0.0  # how many outlier columns there are depends on values; they are few
        return
    from bitsandbytes.functional import QuantState

    blocks = -(-rows * columns // NF4_BLOCK)
    shared = {"shape": torch.Size((rows, columns)), "dtype": layer.compute_dtype, "blocksize": NF4_BLOCK}
    if nested:
        outer = QuantState(
            absmax=torch.empty(-(-blocks // NESTED_BLOCK)),
            code=torch.empty(256),
            blocksize=NESTED_BLOCK,
            dtype=torch.float32,
        )
        layer.weight.quant_state = QuantState(
            absmax=torch.empty(blocks, dtype=torch.uint8),
            code=torch.empty(16),
            quant_type="nf4",
            offset=torch.empty(()),
            state2=outer,
            **shared,
        )
    else:
        layer.weight.quant_state = QuantState(
            absmax=torch.empty(blocks), code=torch.empty(16), quant_type="nf4", **shared
        )
    layer.quant_state = layer.weight.quant_state
