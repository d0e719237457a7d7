from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowmem.config.method import ZoMethod
from lowmem.errors import CheckpointError, FormatError
from lowmem.kernels.reference import direction as draw
from lowmem.kernels.reference import stream_key
from lowmem.methods.base import MethodState
from lowmem.methods.build import build_method
from lowmem.methods.zo.build import direction_kind
from lowmem.methods.zo.perturb import Direction, Perturber
from lowmem.models.loss import ModelLoss
from lowmem.models.names import trainable_parameters
from tests.tiny import lm_batch, run_config, tiny_model

KINDS = ("rademacher", "gaussian")


def perturber(model: nn.Module, kind: Any = "rademacher") -> Perturber:
    return Perturber(model, trainable_parameters(model), seed=7, kind=kind)


def perturbed_copy(model: Any, p: Perturber, at: Direction, eps: float, kind: Any) -> dict[str, torch.Tensor]:
    """The slow twin: every weight written out as W + eps z."""
    return {
        name: w.detach() + eps * draw(w.shape, stream_key(7, at.step, at.probe, name), kind)
        for name, w in p.parameters.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2", "gemma3"])
def test_forward_at_a_direction_equals_a_model_with_written_out_weights(architecture: str, kind: Any) -> None:
    model, batch = tiny_model(architecture), lm_batch()
    p = perturber(model, kind)
    with torch.no_grad(), p.at(Direction(3), 0.05):
        actual = ModelLoss(model)(batch).per_example
    twin = tiny_model(architecture)
    with torch.no_grad():
        for name, weight in perturbed_copy(model, p, Direction(3), 0.05, kind).items():
            dict(twin.named_parameters())[name].copy_(weight)
        expected = ModelLoss(twin)(batch).per_example
        plain = ModelLoss(model)(batch).per_example
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain, expected, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_bit_identical_after_any_number_of_probes(dtype: torch.dtype) -> None:
    model, batch = tiny_model(dtype=dtype), lm_batch()
    p, loss = perturber(model), ModelLoss(model)
    before = {name: w.detach().clone() for name, w in p.parameters.items()}
    identity = {name: w.data_ptr() for name, w in p.parameters.items()}
    with torch.no_grad():
        for probe in range(20):
            for eps in (1e-3, -1e-3):
                with p.at(Direction(0, probe), eps):
                    loss(batch)
    for name, weight in trainable_parameters(model).items():
        assert torch.equal(weight, before[name])
        assert weight.data_ptr() == identity[name]


def test_weights_are_restored_when_the_forward_fails() -> None:
    model, batch = tiny_model(), lm_batch()
    p = perturber(model)
    before = {name: w.detach().clone() for name, w in p.parameters.items()}

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    model.model.layers[1].mlp.act_fn.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"), torch.no_grad(), p.at(Direction(0), 1.0):
        ModelLoss(model)(batch)
    after = trainable_parameters(model)
    assert all(isinstance(weight, nn.Parameter) and torch.equal(weight, before[name]) for name, weight in after.items())


def test_projected_gradient_is_the_directional_derivative() -> None:
    model, batch = tiny_model(), lm_batch()
    p, loss = perturber(model), ModelLoss(model)
    (loss(batch).total / batch.weight).backward()
    z = Direction(5)
    exact = sum(
        float((w.grad.double() * draw(w.shape, stream_key(7, 5, 0, name), "rademacher").double()).sum())
        for name, w in p.parameters.items()
        if w.grad is not None
    )
    losses = []
    with torch.no_grad():
        for eps in (1e-3, -1e-3):
            with p.at(z, eps):
                losses.append(float(loss(batch).total) / batch.weight)
    # Central difference at eps = 1e-3: the error was 3 % at 1e-2 and falls with eps^2; fp32 rounding is 5e-7 / 2e-3.
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(exact, rel=2e-3)


def test_tied_weights_are_perturbed_once_with_one_direction() -> None:
    model = tiny_model(tie_word_embeddings=True)
    p = perturber(model)
    assert "lm_head.weight" not in p.parameters
    seen, weight, eye = {}, model.lm_head.weight, torch.eye(32)
    model.model.embed_tokens.register_forward_hook(lambda m, a, out: seen.update({"in": out[0]}))
    with torch.no_grad(), p.at(Direction(0), 0.1):
        model(input_ids=torch.arange(96)[None, :])
        seen["out"] = model.lm_head(eye).T
    assert torch.equal(seen["in"], seen["out"])
    assert not torch.equal(seen["in"], weight)


def test_a_product_in_pieces_of_the_vocabulary_equals_the_product_with_the_whole_matrix() -> None:
    head = nn.Linear(32, 5_000)
    p = Perturber(Head(head), dict(head.named_parameters()), seed=7, kind="gaussian")
    hidden = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    weight = head.weight.detach() + 0.1 * draw(head.weight.shape, stream_key(7, 1, 0, "weight"), "gaussian")
    bias = head.bias.detach() + 0.1 * draw(head.bias.shape, stream_key(7, 1, 0, "bias"), "gaussian")
    with torch.no_grad(), p.at(Direction(1), 0.1):
        pieces = head(hidden)
    torch.testing.assert_close(pieces, F.linear(hidden, weight, bias), rtol=1e-5, atol=1e-5)


class Head(nn.Module):
    """A language model that is nothing but its output head."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def test_what_is_neither_lookup_nor_product_sees_the_whole_perturbed_matrix() -> None:
    class Positions(nn.Embedding):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.weight) + self.weight[0] + F.embedding(x, self.weight, max_norm=100.0)

    table = Positions(6, 4)
    p = perturber(nn.ModuleDict({"table": table}))
    w = table.weight.detach() + 0.1 * draw((6, 4), stream_key(7, 2, 0, "table.weight"), "rademacher")
    with torch.no_grad(), p.at(Direction(2), 0.1):
        seen = table(torch.arange(6))
    torch.testing.assert_close(seen, torch.relu(w) + w[0] + w)


def test_order_of_parameters_does_not_matter() -> None:
    model, other = tiny_model(), tiny_model()
    forward = Perturber(model, trainable_parameters(model), seed=7, kind="rademacher")
    backward = Perturber(other, dict(reversed(trainable_parameters(other).items())), seed=7, kind="rademacher")
    terms = [(Direction(0), 0.01), (Direction(0, 1), -0.02)]
    forward.move_(terms, step=0)
    backward.move_(terms, step=0)
    for name, weight in trainable_parameters(model).items():
        assert torch.equal(weight, trainable_parameters(other)[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "method",
    [
        {"algorithm": "mezo"},
        {"algorithm": "meazo"},
        {"algorithm": "fzoo"},
        {"algorithm": "zo_sign", "history": 3},
        {"algorithm": "zo_muon", "history": 3, "top_k": 2},
        {"algorithm": "lozo", "history": 3},
        {"step_rule": "parameter_free"},
        {"step_rule": "snr"},
    ],
)
def test_replay_log_rebuilds_the_final_weights_exactly(method: dict[str, Any], dtype: torch.dtype) -> None:
    config = run_config(method={"kind": "zo"} | method)
    assert isinstance(config.method, ZoMethod)
    kind = direction_kind(config.method)
    model = tiny_model(dtype=dtype)
    trained: Any = build_method(config, model)
    for step in range(15):
        trained.step(ModelLoss(model), [lm_batch(seed=step)], lr=1e-3 if "algorithm" in method else 1.0, step=step)
    rebuilt = tiny_model(dtype=dtype)
    start = {name: w.detach().clone() for name, w in trainable_parameters(rebuilt).items()}
    trained.log.replay(Perturber(rebuilt, trainable_parameters(rebuilt), seed=config.seed, kind=kind))
    assert len(trained.log) >= 11
    assert any(not torch.equal(start[name], w) for name, w in trainable_parameters(rebuilt).items())
    for name, weight in trainable_parameters(rebuilt).items():
        assert torch.equal(weight, trained.trainable[name]), name


def test_bf16_updates_survive_in_the_mean() -> None:
    weight = nn.Parameter(torch.full((400, 500), 0.02, dtype=torch.bfloat16))
    p = Perturber(nn.Module(), {"w": weight}, seed=1, kind="rademacher")
    z = draw(weight.shape, stream_key(1, 0, 0, "w"), "rademacher")
    p.move_([(Direction(0), 1e-6)], step=0)  # a hundredth of the spacing of bf16 at 0.02
    moved = (weight.detach().float() - torch.tensor(0.02, dtype=torch.bfloat16).float()) * z
    # Mean -1e-6, standard error sqrt(1e-6 * 1.2e-4 / 2e5) = 2.5e-8: four of them.
    assert float(moved.mean()) == pytest.approx(-1e-6, abs=1e-7)


class Detour(nn.Module):
    """Reads another module's weight directly, as some architectures do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.inner.weight


def test_a_weight_read_outside_its_module_is_refused_by_name() -> None:
    with pytest.raises(FormatError, match=r"'inner\.weight' is read outside the module that owns it"):
        perturber(detour := Detour()).check(lambda: detour(torch.ones(2, 4)))


def test_a_weight_that_nothing_reads_is_refused_by_name() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4)})
    with pytest.raises(FormatError, match=r"'idle\.bias' \(2 in all\) is never read"):
        perturber(model).check(lambda: model["used"](torch.ones(2, 4)))


def test_a_first_order_checkpoint_is_refused() -> None:
    method = build_method(run_config(method={"kind": "zo"}), tiny_model())
    with pytest.raises(CheckpointError, match="not of a zo run"):
        method.load_state(MethodState({}, {"skips": 0}))
