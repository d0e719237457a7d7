from __future__ import annotations

import torch

from lowmem.methods.build import build_method
from lowmem.models.loss import ModelLoss
from lowmem.train.measured import INFERENCE, MeasuredFirstStep
from tests.tiny import lm_batch, run_config, tiny_model

VOCABULARY = 20_000
"""More than a piece of it that a zeroth-order step builds at a time."""


def first_step(architecture: str = "llama", **config: object) -> tuple[MeasuredFirstStep, object]:
    model = tiny_model(architecture, vocab_size=VOCABULARY, hidden_size=64)
    settings = run_config(**config)
    method = MeasuredFirstStep(build_method(settings, model), model, vocabulary=VOCABULARY)
    method.step(ModelLoss(model), [lm_batch(), lm_batch(seed=1)], lr=1e-3, step=0)
    return method, model


def test_a_zeroth_order_step_needs_inference_plus_at_most_the_largest_tensor() -> None:
    for architecture in ("llama", "opt", "gpt2"):
        for algorithm in ("mezo", "adanaged"):
            method, _ = first_step(architecture, method={"kind": "zo", "algorithm": algorithm})
            largest = max(tensor.nbytes for tensor in method.trainable.values())
            extra = max(method.peaks.values()) - method.peaks[INFERENCE]
            assert 0 < extra <= largest, (architecture, algorithm)


def test_full_finetuning_holds_gradients_and_state_besides_the_weights() -> None:
    method, _ = first_step(method={"kind": "full"}, learning_rate=1e-3)
    weights = sum(tensor.nbytes for tensor in method.trainable.values())
    assert method.peaks["update"] >= 4 * weights  # weights, gradients, two moments, all fp32
    assert set(method.peaks) >= {INFERENCE, "forward", "backward", "update"}


def test_measuring_changes_no_weight_and_no_later_step() -> None:
    plain_model = tiny_model()
    plain = build_method(run_config(method={"kind": "full"}), plain_model)
    measured_model = tiny_model()
    measured = MeasuredFirstStep(
        build_method(run_config(method={"kind": "full"}), measured_model), measured_model, vocabulary=96
    )
    for step in range(3):
        plain.step(ModelLoss(plain_model), [lm_batch(seed=step)], lr=1e-3, step=step)
        measured.step(ModelLoss(measured_model), [lm_batch(seed=step)], lr=1e-3, step=step)
    for name, tensor in plain.trainable.items():
        assert torch.equal(tensor, measured.trainable[name])
    assert measured.title == plain.title
