"""LoRSum and LoRA-Muon as methods on real (tiny) models; the conformance suite covers what all methods share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowmem.config.method import AdapterMethod, LoraMethod
from lowmem.errors import ConfigError
from lowmem.methods.build import build_method
from lowmem.methods.lowrank.descent import PairDescent
from lowmem.methods.lowrank.lora import attach_lora
from lowmem.methods.lowrank.lorsum_rule import Lorsum
from lowmem.methods.lowrank.pair import find_pairs
from lowmem.models.checkpointing import set_gradient_checkpointing
from lowmem.models.loss import ModelLoss
from tests.tiny import lm_batch, rows_of, run_config, tiny_model

VARIANTS: dict[str, dict[str, Any]] = {
    "jacobi": {"kind": "lorsum"},
    "lowrank": {"kind": "lorsum", "momentum_form": "lowrank"},
    "alternating": {"kind": "lorsum", "mode": "alternating"},
    "gauss_seidel": {"kind": "lorsum", "mode": "gauss_seidel", "sweeps": 2},
    "shampoo": {"kind": "lorsum", "metric": "shampoo"},
    "plain": {"kind": "lorsum", "metric": "none", "momentum": 0.0},
    "lora_muon": {"kind": "lora_muon"},
}


def build(method: dict[str, Any], *, model: Any = None, **changes: Any) -> tuple[PairDescent, ModelLoss]:
    model = tiny_model() if model is None else model
    built = build_method(run_config(method=method, learning_rate=0.03, **changes), model)
    assert isinstance(built, PairDescent)
    return built, ModelLoss(model, chunk_tokens=16)


def weights(method: PairDescent) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in method.trainable.values()])


@pytest.mark.parametrize("name", VARIANTS)
def test_micro_batches_equal_one_batch_over_several_steps(name: str) -> None:
    (whole, loss), (split, split_loss) = build(VARIANTS[name]), build(VARIANTS[name])
    for step in range(2):
        batch = lm_batch(rows=7, seed=step)
        whole.step(loss, [batch], lr=0.03, step=step)
        split.step(split_loss, [rows_of(batch, 0, 2), rows_of(batch, 2, 7)], lr=0.03, step=step)
        if step == 0:
            torch.testing.assert_close(weights(whole), weights(split), rtol=0, atol=1e-5)
    # Solving with nearly singular Gram matrices enlarges rounding in a few entries while B is small.
    near = (weights(whole) - weights(split)).abs() <= 2e-4
    assert float(near.float().mean()) > 0.98


@pytest.mark.parametrize("name", VARIANTS)
def test_checkpointed_activations_give_the_same_weights(name: str) -> None:
    results = []
    for checkpointing in (False, True):
        model = tiny_model()
        method, loss = build(VARIANTS[name], model=model)
        set_gradient_checkpointing(model, checkpointing)
        for step in range(3):
            method.step(loss, [lm_batch(rows=3, seed=step), lm_batch(rows=2, seed=9 + step)], lr=0.03, step=step)
        results.append(weights(method))
    assert torch.equal(*results)


@pytest.mark.parametrize("rank", [8, 16])
def test_state_is_at_most_six_tenths_of_adamws(rank: int) -> None:
    def nbytes(method: dict[str, Any]) -> int:
        state = build_method(run_config(method=method | {"lora_r": rank}), tiny_model()).state()
        return sum(t.nbytes for name, t in state.tensors.items() if name.startswith("state/"))

    adamw, lorsum = nbytes({"kind": "lora"}), nbytes({"kind": "lorsum"})
    pairs = find_pairs(_adapted(rank))
    width = sum(pair.a.shape[1] + pair.b.shape[0] for pair in pairs)
    assert adamw == 8 * rank * width
    assert lorsum == 4 * (rank + 1) * width
    assert lorsum <= 0.6 * adamw
    assert nbytes({"kind": "lora_muon"}) == 4 * rank * width


def _adapted(rank: int) -> Any:
    model = tiny_model()
    attach_lora(model, LoraMethod(lora_r=rank), seed=0)
    return model


@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_and_r_do_not_change_the_first_step_of_the_weight(rslora: bool) -> None:
    """s B A moves by lr whatever s is: the step divides by s what the forward multiplies by it."""
    changes = []
    for alpha in (4.0, 64.0):
        model = tiny_model()
        keys = {"kind": "lorsum", "lora_alpha": alpha, "use_rslora": rslora}
        method, loss = build(keys, model=model, max_grad_norm=None)
        method.step(loss, [lm_batch()], lr=0.03, step=0)
        changes.append(torch.cat([(pair.scale * pair.b @ pair.a).detach().flatten() for pair in find_pairs(model)]))
    assert float(changes[0].abs().max()) > 1e-4
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-3, atol=1e-6)


def test_the_loss_may_be_rescaled_without_changing_a_step() -> None:
    """The metric with power 1/2 divides the gradient's size out; clipping is off."""
    results = []
    for factor in (1.0, 64.0):
        method, loss = build({"kind": "lorsum"}, max_grad_norm=None)

        def scaled(batch: Any, loss: Any = loss, factor: float = factor) -> Any:
            sums = loss(batch)
            return type(sums)(sums.per_example * factor, sums.counts)

        for step in range(2):
            method.step(scaled, [lm_batch(seed=step)], lr=0.03, step=step)
        results.append(weights(method))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)


def test_a_learning_rate_beyond_the_damping_cannot_do_more() -> None:
    moved = []
    for lr in (1e3, 1e5):
        method, loss = build({"kind": "lorsum", "damping": 2.0})
        before = weights(method)
        method.step(loss, [lm_batch()], lr=lr, step=0)
        moved.append(weights(method) - before)
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-2, atol=2e-3)
    assert float(moved[0].abs().max()) > 0.05


def test_clipping_does_not_see_how_scale_is_shared_between_the_factors() -> None:
    """The norm is that of the weights' gradients: ten times A with a tenth of B is the same adapter."""
    norms = []
    for factor in (1.0, 10.0):
        model = tiny_model()
        method, loss = build({"kind": "lorsum"}, model=model)
        for index, pair in enumerate(find_pairs(model)):
            nn.init.normal_(pair.b, std=0.1 / factor, generator=torch.Generator().manual_seed(index))
            pair.a.data.mul_(factor)
        norms.append(method.step(loss, [lm_batch()], lr=0.0, step=0).details["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_an_adapter_without_gradient_is_refused_by_name() -> None:
    method, loss = build({"kind": "lorsum"})

    def detached(batch: Any) -> Any:
        sums = loss(batch)
        return type(sums)(sums.per_example.detach().requires_grad_(), sums.counts)

    with pytest.raises(ConfigError, match=r"the adapter of .*down_proj received no gradient"):
        method.step(detached, [lm_batch()], lr=0.1, step=0)


def test_a_schedule_keeps_its_shape_beyond_the_damping() -> None:
    """After a peak of 100, a tenth of it moves a tenth as far."""
    moved = []
    for lr in (100.0, 10.0):
        method, loss = build({"kind": "lorsum", "momentum": 0.0})
        method.step(loss, [lm_batch()], lr=0.0, step=0)
        method.load_state(type(method.state())(method.state().tensors, method.state().numbers | {"peak_lr": 100.0}))
        before = weights(method)
        method.step(loss, [lm_batch()], lr=lr, step=1)
        moved.append(weights(method) - before)
    torch.testing.assert_close(moved[0], 10 * moved[1], rtol=1e-3, atol=1e-5)


def test_alternating_moves_b_first_and_then_a() -> None:
    method, loss = build({"kind": "lorsum", "mode": "alternating"})
    for step, moving in enumerate(("lora_B", "lora_A", "lora_B")):
        before = {name: tensor.detach().clone() for name, tensor in method.trainable.items()}
        method.step(loss, [lm_batch(seed=step)], lr=0.03, step=step)
        for name, tensor in method.trainable.items():
            assert torch.equal(tensor, before[name]) == (moving not in name), name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # inside peft 0.21
@pytest.mark.parametrize("name", ["jacobi", "lora_muon"])
def test_adapters_load_in_plain_peft(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = tiny_model()
    method, loss = build(VARIANTS[name], model=model)
    for step in range(3):
        method.step(loss, [lm_batch(seed=step)], lr=0.03, step=step)
    method.export(tmp_path)
    loaded: Any = PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    ids = lm_batch().input_ids
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected)
        assert not torch.allclose(tiny_model()(input_ids=ids).logits, expected)


@pytest.mark.parametrize("kind", ["lorsum", "lora_muon"])
def test_gpt2_and_dropout_and_pissa_train(kind: str) -> None:
    """GPT-2 stores W transposed; with dropout the observer sees what the adapter sees."""
    model = tiny_model("gpt2")
    keys = {"kind": kind, "lora_dropout": 0.1, "init_lora_weights": "pissa"}
    method, loss = build(keys, model=model)
    before = weights(method)
    reports = [method.step(loss, [lm_batch()], lr=0.01, step=step) for step in range(8)]
    assert reports[-1].loss < reports[0].loss
    assert not torch.equal(before, weights(method))


def test_other_trained_parameters_are_refused() -> None:
    model = tiny_model()
    attach_lora(model, AdapterMethod(), seed=0)
    extra = nn.Parameter(torch.zeros(3))
    with pytest.raises(ConfigError, match="two factors of adapters and nothing else"):
        PairDescent({"extra": extra}, find_pairs(model), Lorsum(), title="", seed=0, max_grad_norm=None, exporter=print)


def test_adapters_of_embeddings_and_convolutions_are_refused() -> None:
    from peft import LoraConfig, get_peft_model

    class Convolving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 1)

    wrapped: Any = get_peft_model(Convolving(), LoraConfig(target_modules=["conv"]))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the adapter of conv is a Conv1d"):
        find_pairs(wrapped)
