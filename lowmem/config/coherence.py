"""What the keys of a run may not say together: every rule that looks at more than one section."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lowmem.config.loss import ScoreLoss
from lowmem.config.method import (
    AdapterMethod,
    AutoMethod,
    FullMethod,
    GumMethod,
    LoraMethod,
    LoraMuonMethod,
    LorsumMethod,
    ZoMethod,
)
from lowmem.config.optimizer import AdamW, Lion, OfMatrices, Sgd, Signum, SoftMuon, SoftSignum, StoSign
from lowmem.config.quantization import Nf4, NoQuantization

if TYPE_CHECKING:
    from lowmem.config.run import RunConfig

ELEMENTWISE = (AdamW, Lion, Sgd, Signum, StoSign)
"""Optimizers for which some rows of a matrix are updated as they would be alone."""


def objections(config: RunConfig) -> Iterator[str]:
    """Each contradiction in `config`, with the keys that would resolve it; nothing for a coherent run."""
    method = config.method
    if isinstance(config.loss, ScoreLoss) and not isinstance(method, ZoMethod):
        yield (
            f"loss.kind: score has no gradient, and method.kind: {method.kind} needs one; use method: zo "
            "(with train_adapter to train an adapter), or loss: cross_entropy"
        )
    if isinstance(method, ZoMethod):
        yield from _of_zeroth_order(config, method)
    if not isinstance(config.quantization, NoQuantization):
        beside = isinstance(method, ZoMethod) and (method.train_adapter or method.train == "scales")
        if not (beside or isinstance(method, AdapterMethod | AutoMethod)):
            yield (
                f"quantization.kind: {config.quantization.kind} freezes the base, so method.kind: {method.kind} has "
                "nothing to train; use method: lora, or zo with train_adapter or train: scales, or quantization: "
                "none"
            )
    if isinstance(method, LoraMethod) and method.use_dora and method.init_lora_weights == "pissa":
        yield "method.use_dora: cannot be combined with init_lora_weights: pissa; choose one"
    yield from _of_the_optimizer(config)
    if config.fsdp:
        yield from _of_sharding(config)
    if (config.early_stopping_patience or config.load_best_model_at_end) and not config.eval_dataset:
        yield "eval_dataset: is needed by early_stopping_patience and load_best_model_at_end"


def _of_zeroth_order(config: RunConfig, method: ZoMethod) -> Iterator[str]:
    if method.parameter_free and config.learning_rate is not None:
        yield (
            f"learning_rate: {method.algorithm} is parameter-free and chooses its own step; "
            "remove learning_rate, or use method.algorithm: mezo"
        )
    if method.measures_noise and config.effective_batch_size < 2:
        yield (
            "method.step_rule: snr measures the noise of a batch from its examples and needs two at least; raise "
            "per_device_train_batch_size or gradient_accumulation_steps, or use step_rule: parameter_free"
        )
    nested = isinstance(config.quantization, Nf4) and config.quantization.double_quant
    if method.train == "scales" and nested:
        yield (
            "method.train: scales needs scales that are numbers, and quantization.double_quant: true stores them "
            "as 8-bit codes; set double_quant: false"
        )


def _of_the_optimizer(config: RunConfig) -> Iterator[str]:
    method, optimizer = config.method, config.optimizer
    if isinstance(method, LorsumMethod | LoraMuonMethod) and optimizer != AdamW():
        yield f"optimizer: method.kind: {method.kind} has its own update rule; remove optimizer, or use method: lora"
    if isinstance(method, GumMethod) and isinstance(optimizer, OfMatrices):
        yield (
            f"optimizer: method.kind: gum has its own rule for matrices, and {optimizer.kind} is for nothing "
            "else; use an optimizer that serves vectors and embeddings: adamw, adamw8bit, lion, signum, sgd, …"
        )
    if isinstance(optimizer, SoftSignum | SoftMuon) and config.max_steps is None:
        yield (
            f"optimizer: {optimizer.kind} softens towards the end of the run and must know it beforehand; set max_steps"
        )


def _of_sharding(config: RunConfig) -> Iterator[str]:
    method, optimizer = config.method, config.optimizer
    full = isinstance(method, FullMethod)
    if isinstance(method, FullMethod) and method.update == "in_backward":
        yield (
            "fsdp: sums gradients over processes after a layer's backward, and method.update: in_backward uses them "
            "before; use update: after_backward, where fsdp frees them as well"
        )
    elif not full and not isinstance(method, AdapterMethod):
        yield (
            f"fsdp: method.kind: {method.kind} needs whole weights or gradients in every process; use method: full, "
            "lora, lorsum or lora_muon, or several processes without fsdp"
        )
    if full and not isinstance(optimizer, ELEMENTWISE):
        yield (
            f"fsdp: optimizer.kind: {optimizer.kind} looks at whole matrices, of which each process has some rows; use "
            "adamw, lion, signum, sgd or stosign"
        )
    if not isinstance(config.quantization, NoQuantization):
        yield (
            f"fsdp: quantization.kind: {config.quantization.kind} stores codes that cannot be cut by rows; use "
            "quantization: none, or several processes without fsdp"
        )
