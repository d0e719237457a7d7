"""Updates inside backward: equal to the update after it where that is promised, and what happens when it fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowmem.errors import ConfigError, OutOfMemoryError
from lowmem.methods.base import Method
from lowmem.methods.build import build_method
from lowmem.methods.layerwise import LayerWise
from lowmem.models.checkpointing import set_gradient_checkpointing
from lowmem.models.loss import LossSums, ModelLoss
from lowmem.plan.simulate import measure_run
from lowmem.plan.tracker import GRADIENTS, OPTIMIZER, LiveBytes
from tests.tiny import lm_batch, rows_of, run_config, tiny_model

GUM = {"kind": "gum", "rank": 4, "gamma": 1, "period": 5}
GALORE = {"kind": "galore", "rank": 4, "period": 5}
INSIDE = {"kind": "full", "update": "in_backward"}


def trained(
    method: dict[str, Any], *, steps: int = 3, parts: int = 1, checkpointing: bool = False, **keys: Any
) -> dict[str, torch.Tensor]:
    """Weights after some steps of a tiny model with tied embeddings."""
    config, model = run_config(method=method, **keys), tiny_model("llama")
    attached = build_method(config, model)
    set_gradient_checkpointing(model, checkpointing)
    loss = ModelLoss(model, chunk_tokens=16)
    for step in range(steps):
        batch = lm_batch(rows=6, seed=step)
        micro = [rows_of(batch, i * 6 // parts, (i + 1) * 6 // parts) for i in range(parts)]
        attached.step(loss, micro, lr=1e-3, step=step)
    return {name: tensor.detach().clone() for name, tensor in attached.trainable.items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "stosign"])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("limit", [None, 0.05])
def test_full_finetuning_inside_backward_is_full_finetuning_bit_for_bit(
    optimizer: str, parts: int, limit: float | None
) -> None:
    keys: dict[str, Any] = {"optimizer": {"kind": optimizer}, "max_grad_norm": limit, "parts": parts}
    assert_same(trained(INSIDE, **keys), trained({"kind": "full"}, **keys))


@pytest.mark.parametrize("method", [GUM, GALORE, INSIDE | {"clipping": "per_layer"}])
def test_activation_checkpointing_changes_nothing(method: dict[str, Any]) -> None:
    assert_same(trained(method, checkpointing=True), trained(method))


@pytest.mark.parametrize("method", [GUM, GALORE])
def test_without_a_limit_all_kinds_of_clipping_are_the_same(method: dict[str, Any]) -> None:
    left, right = (trained(method | {"clipping": kind}, max_grad_norm=None) for kind in ("exact", "per_layer"))
    assert_same(left, right)
    assert_same(left, trained(method | {"clipping": "none"}, max_grad_norm=1e-9))


@pytest.mark.parametrize("method", [GUM, GALORE])
@pytest.mark.parametrize("clipping", ["exact", "per_layer", "none"])
def test_micro_batches_equal_one_batch_over_a_refresh(method: dict[str, Any], clipping: str) -> None:
    """Sketches and drawn layers accumulate as coordinates do; SGD and lion-free rules keep rounding small."""
    keys: dict[str, Any] = {"optimizer": {"kind": "sgd"}, "steps": 7}
    one, many = (trained(method | {"clipping": clipping}, parts=parts, **keys) for parts in (1, 3))
    start = {name: tensor.detach() for name, tensor in tiny_model("llama").named_parameters()}
    for name in one:
        moved = float((one[name] - start[name]).norm())
        assert float((one[name] - many[name]).norm()) <= 1e-2 * moved + 1e-6, name


def test_a_layer_is_clipped_by_its_own_norm() -> None:
    method = INSIDE | {"clipping": "per_layer"}
    keys: dict[str, Any] = {"optimizer": {"kind": "sgd"}, "steps": 1}
    start = {name: tensor.detach() for name, tensor in tiny_model("llama").named_parameters()}
    free, clipped = trained(method, max_grad_norm=None, **keys), trained(method, max_grad_norm=0.05, **keys)
    for name, weight in start.items():
        norm, limited = (float((after[name] - weight).norm()) / 1e-3 for after in (free, clipped))
        assert limited == pytest.approx(min(norm, 0.05), rel=0.02), name


def attach(method: dict[str, Any], **keys: Any) -> tuple[LayerWise, Any, ModelLoss]:
    model = tiny_model("llama")
    attached = build_method(run_config(method=method, **keys), model)
    assert isinstance(attached, LayerWise)
    return attached, model, ModelLoss(model, chunk_tokens=16)


def snapshot(method: Method) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in method.state().tensors.items()}


@pytest.mark.parametrize("method", [INSIDE, GUM, GALORE])
def test_gradients_are_gone_as_soon_as_they_are_used(method: dict[str, Any]) -> None:
    attached, model, loss = attach(method)
    attached.step(loss, [lm_batch()], lr=1e-3, step=0)
    assert all(p.grad is None for p in model.parameters())


def poison(model: Any, name: str) -> Any:
    """The gradient of one parameter is NaN from here on; remove() undoes it."""
    return dict(model.named_parameters())[name].register_hook(lambda grad: grad * torch.nan)


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize("method", [INSIDE, GUM, GALORE])
def test_exact_clipping_skips_a_step_whose_gradient_is_not_finite(method: dict[str, Any]) -> None:
    attached, model, loss = attach(method)
    attached.step(loss, [lm_batch()], lr=1e-3, step=0)
    before = snapshot(attached)
    poison(model, NORM)
    assert attached.step(loss, [lm_batch()], lr=1e-3, step=1).skipped
    assert_same(snapshot(attached), before)


def test_without_exact_clipping_the_tensor_concerned_is_left_alone_and_told_of() -> None:
    attached, model, loss = attach(GUM | {"clipping": "per_layer"})
    before = snapshot(attached)
    poison(model, NORM)
    report = attached.step(loss, [lm_batch()], lr=1e-3, step=0)
    after = snapshot(attached)
    assert report.details["skipped_tensors"] == 1
    assert not report.skipped
    assert torch.equal(after[f"weights/{NORM}"], before[f"weights/{NORM}"])
    other = "weights/model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(after[other], before[other])


class Failing:
    """A loss whose backward fails when it reaches the first decoder layer, `times` times."""

    def __init__(self, model: Any, loss: ModelLoss, *, times: int) -> None:
        self._loss, self.left = loss, times
        model.model.layers[0].register_forward_hook(self._watch)

    def __call__(self, batch: Any) -> LossSums:
        return self._loss(batch)

    def _watch(self, module: Any, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(self._fail)

    def _fail(self, grad: torch.Tensor) -> None:
        if self.left:
            self.left -= 1
            raise torch.OutOfMemoryError("no memory")


def test_a_step_that_had_begun_to_write_is_neither_repeated_nor_saved() -> None:
    attached, model, loss = attach(GUM | {"clipping": "per_layer"})
    attached.step(loss, [lm_batch()], lr=1e-3, step=0)
    saved = attached.state()
    tensors = {name: tensor.clone() for name, tensor in saved.tensors.items()}
    failing = Failing(model, loss, times=1)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        attached.step(failing, [lm_batch()], lr=1e-3, step=1)
    for refused in (
        lambda: attached.step(failing, [lm_batch()], lr=1e-3, step=1),
        attached.state,
        lambda: attached.rehearse(failing, [lm_batch()]),
    ):
        with pytest.raises(OutOfMemoryError, match=r"step 1: failed after the update of \d+ tensors had begun"):
            refused()
    attached.load_state(type(saved)(tensors, saved.numbers))
    attached.step(failing, [lm_batch()], lr=1e-3, step=1)
    straight, _, clean = attach(GUM | {"clipping": "per_layer"})
    for step in range(2):
        straight.step(clean, [lm_batch()], lr=1e-3, step=step)
    assert_same(snapshot(attached), snapshot(straight))


@pytest.mark.parametrize("method", [GUM, GALORE, INSIDE])
def test_with_exact_clipping_a_step_that_ran_out_of_memory_is_repeated_in_smaller_parts(method: dict[str, Any]) -> None:
    attached, model, loss = attach(method)
    batch = lm_batch(rows=6)
    failing = Failing(model, loss, times=1)
    before = snapshot(attached)
    with pytest.raises(torch.OutOfMemoryError):
        attached.step(failing, [batch], lr=1e-3, step=0)
    assert_same(snapshot(attached), before)
    parts = [rows_of(batch, 0, 3), rows_of(batch, 3, 6)]
    attached.step(failing, parts, lr=1e-3, step=0)
    straight, _, clean = attach(method)
    straight.step(clean, parts, lr=1e-3, step=0)
    assert_same(snapshot(attached), snapshot(straight))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [GUM, GALORE])
def test_state_takes_the_bytes_of_the_formula(method: dict[str, Any], dtype: str) -> None:
    attached, model, _ = attach(method | {"state_dtype": dtype})
    size, rank = {"fp32": 4, "bf16": 2}[dtype], 4
    averages = {name: t for name, t in attached.state().tensors.items() if name.endswith("proj.weight/exp_avg")}
    drawn = {name for name, t in averages.items() if t.shape[0] > rank}
    expected = 0
    for name, p in model.named_parameters():
        if p.dim() == 2 and "embed" not in name:
            short, long = sorted(p.shape)
            full = f"state/{name}/exp_avg" in drawn and method is GUM
            moments = 2 if method is GALORE else 1
            expected += size * (rank * short + (short * long if full else moments * rank * long))
        else:
            expected += 2 * size * p.numel()
    state = {name: t for name, t in attached.state().tensors.items() if name.startswith("state/")}
    assert sum(t.numel() * t.element_size() for t in state.values()) == expected
    if method is GUM:
        assert len({name.split(".")[2] for name in drawn}) == 1, "one layer is drawn, all of it"


def peaks(method: dict[str, Any], **keys: Any) -> LiveBytes:
    model = tiny_model("llama", hidden_size=64, intermediate_size=256, num_hidden_layers=4)
    attached = build_method(run_config(method=method, optimizer={"kind": "sgd"}, **keys), model)
    set_gradient_checkpointing(model, True)
    tracker = LiveBytes(vocabulary=96)
    with tracker:
        measure_run(attached, model, ModelLoss(model, chunk_tokens=16), [lm_batch(rows=1)], tracker=tracker)
    return tracker


@pytest.mark.parametrize("method", [INSIDE | {"clipping": "none"}, INSIDE, GALORE | {"clipping": "per_layer"}])
def test_the_peak_holds_the_gradients_of_one_layer_and_not_of_all(method: dict[str, Any]) -> None:
    model = tiny_model("llama", hidden_size=64, intermediate_size=256, num_hidden_layers=4)
    every = sum(4 * p.numel() for p in model.parameters())
    layer = sum(4 * p.numel() for p in model.model.layers[0].parameters())
    tied = 4 * model.model.embed_tokens.weight.numel()  # its first use is at the output, its last at the input
    after = peaks({"kind": "full"}).bills["update"].components
    inside = peaks(method)
    assert after[GRADIENTS] == every
    gradients = max(peak.components.get(GRADIENTS, 0) for peak in inside.bills.values())
    assert gradients <= layer + tied
    state = inside.bills["backward"].components.get(OPTIMIZER, 0)
    assert inside.bills["backward"].nbytes - every - state <= 2 * layer + tied + 2**18  # the random words of a sketch


@pytest.mark.parametrize("optimizer", ["adamw8bit", "adafactor", "muon", "lion"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_any_rule_works_inside_the_view(optimizer: str, dtype: str) -> None:
    start = {name: tensor.detach() for name, tensor in tiny_model("llama").named_parameters()}
    after = trained(GALORE | {"state_dtype": dtype}, optimizer={"kind": optimizer}, steps=7)
    assert all(torch.isfinite(weight).all() for weight in after.values())
    assert all(not torch.equal(weight, start[name]) for name, weight in after.items())


def test_nothing_to_train_is_refused() -> None:
    keys: dict[str, Any] = {"title": "", "seed": 0, "clipping": "none", "max_grad_norm": None}
    with pytest.raises(ConfigError, match="nothing to train"):
        LayerWise({}, {}, exporter=lambda folder: None, **keys)


def test_a_loss_without_gradients_is_refused() -> None:
    attached, _, loss = attach(GUM)
    extra = torch.zeros(1, requires_grad=True)

    def detached(batch: Any) -> LossSums:
        sums = loss(batch)
        return LossSums(sums.per_example.detach() + extra, sums.counts)

    with pytest.raises(ConfigError, match="no trained parameter received a gradient"):
        attached.step(detached, [lm_batch()], lr=1e-3, step=0)
