"""What every method must pass: adding a method is adding a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowmem.errors import CheckpointError, NonFiniteError
from lowmem.methods.base import Method, MethodState
from lowmem.methods.build import build_method
from lowmem.models.loss import LossSums, ModelLoss
from tests.quantized import packed, quantized
from tests.tiny import lm_batch, rows_of, run_config, tiny_model

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": {"kind": "lora"}, "learning_rate": 1e-2},
    "lora-dropout": {"method": {"kind": "lora", "lora_dropout": 0.2}, "learning_rate": 1e-2},
    "lora-rslora-sgd": {
        "method": {"kind": "lora", "use_rslora": True},
        "optimizer": {"kind": "sgd", "momentum": 0.9},
        "learning_rate": 0.3,
    },
    "dora": {"method": {"kind": "lora", "use_dora": True}, "learning_rate": 1e-2},
    "full": {"method": {"kind": "full"}, "learning_rate": 1e-3},
    "full-sgd": {"method": {"kind": "full"}, "optimizer": {"kind": "sgd"}, "learning_rate": 0.3},
    "full-lion": {"method": {"kind": "full"}, "optimizer": {"kind": "lion"}, "learning_rate": 1e-3},
    "full-stosign": {"method": {"kind": "full"}, "optimizer": {"kind": "stosign"}, "learning_rate": 3e-3},
    "full-muon": {"method": {"kind": "full"}, "optimizer": {"kind": "muon"}, "learning_rate": 1e-3},
    "full-rowmax": {"method": {"kind": "full"}, "optimizer": {"kind": "rowmax"}, "learning_rate": 3e-3},
    "full-adafactor": {"method": {"kind": "full"}, "optimizer": {"kind": "adafactor"}, "learning_rate": 1e-3},
    "full-normuon": {"method": {"kind": "full"}, "optimizer": {"kind": "normuon"}, "learning_rate": 1e-3},
    "full-softsignum": {
        "method": {"kind": "full"},
        "optimizer": {"kind": "softsignum", "hard_fraction": 0.2},
        "learning_rate": 1e-3,
        "max_steps": 12,
    },
    "full-softmuon-in-backward": {
        "method": {"kind": "full", "update": "in_backward"},
        "optimizer": {"kind": "softmuon", "hard_fraction": 0.2},
        "learning_rate": 1e-3,
        "max_steps": 12,
    },
    "full-adamw8bit": {"method": {"kind": "full"}, "optimizer": {"kind": "adamw8bit"}, "learning_rate": 1e-3},
    "galore-adamw8bit": {
        "method": {"kind": "galore", "rank": 8, "period": 7, "state_dtype": "bf16"},
        "optimizer": {"kind": "adamw8bit"},
        "learning_rate": 4e-3,
    },
    "lora-muon": {"method": {"kind": "lora"}, "optimizer": {"kind": "muon"}, "learning_rate": 1e-2},
    "lora-pissa": {"method": {"kind": "lora", "init_lora_weights": "pissa"}, "learning_rate": 3e-3},
    "lorsum": {"method": {"kind": "lorsum"}, "learning_rate": 3e-2},
    "lorsum-lowrank": {"method": {"kind": "lorsum", "momentum_form": "lowrank"}, "learning_rate": 3e-2},
    "lorsum-alternating": {"method": {"kind": "lorsum", "mode": "alternating"}, "learning_rate": 0.1},
    "lorsum-gauss-seidel-shampoo": {
        "method": {"kind": "lorsum", "mode": "gauss_seidel", "metric": "shampoo"},
        "learning_rate": 3e-2,
    },
    "lora_muon": {"method": {"kind": "lora_muon"}, "learning_rate": 1e-2},
    "full-in-backward": {"method": {"kind": "full", "update": "in_backward"}, "learning_rate": 1e-3},
    "full-in-backward-per-layer-lion": {
        "method": {"kind": "full", "update": "in_backward", "clipping": "per_layer"},
        "optimizer": {"kind": "lion"},
        "learning_rate": 1e-3,
    },
    "galore": {"method": {"kind": "galore", "rank": 8, "period": 7}, "learning_rate": 4e-3},
    "galore-bf16-per-layer": {
        "method": {"kind": "galore", "rank": 8, "period": 7, "clipping": "per_layer", "state_dtype": "bf16"},
        "learning_rate": 4e-3,
    },
    "gum": {"method": {"kind": "gum", "rank": 8, "period": 3, "gamma": 1}, "learning_rate": 1e-3},
    "gum-unbiased-bf16-none": {
        "method": {
            "kind": "gum",
            "rank": 8,
            "period": 3,
            "gamma": 1,
            "ns_gain": "unbiased",
            "state_dtype": "bf16",
            "clipping": "none",
        },
        "learning_rate": 1e-3,
    },
    "mezo": {"method": {"kind": "zo", "algorithm": "mezo"}, "learning_rate": 1e-3},
    "mezo-gaussian": {
        "method": {"kind": "zo", "algorithm": "mezo", "direction": "gaussian"},
        "learning_rate": 1e-3,
    },
    "meazo": {"method": {"kind": "zo", "algorithm": "meazo"}},
    "fzoo": {"method": {"kind": "zo", "algorithm": "fzoo", "probes": 4}},
    "zo_sign": {"method": {"kind": "zo", "algorithm": "zo_sign", "history": 4}, "learning_rate": 1e-3},
    "zo_muon": {"method": {"kind": "zo", "algorithm": "zo_muon", "history": 4}},
    "zo_muon-top": {"method": {"kind": "zo", "algorithm": "zo_muon", "history": 4, "top_k": 2}},
    "lozo": {"method": {"kind": "zo", "algorithm": "lozo", "history": 4}, "learning_rate": 1e-3},
    "adanaged": {"method": {"kind": "zo"}},
    "adanaged-parameter-free": {"method": {"kind": "zo", "step_rule": "parameter_free"}},
    "qzo": {
        "method": {"kind": "zo", "train": "scales", "algorithm": "mezo"},
        "quantization": {"kind": "nf4", "double_quant": False},
        "learning_rate": 1e-3,
    },
    "adanaged-adapter": {"method": {"kind": "zo", "train_adapter": {"lora_r": 4}}},
    "lora-packed": {"method": {"kind": "lora"}, "learning_rate": 1e-2},
    "lorsum-packed": {"method": {"kind": "lorsum"}, "learning_rate": 3e-2},
    "qzo-packed": {"method": {"kind": "zo", "train": "scales", "algorithm": "mezo"}, "learning_rate": 1e-2},
}
"""`-packed`: on a base whose linear layers hold the project's own 2-bit codes."""
DETERMINISTIC_LOSS = [name for name in METHODS if name != "lora-dropout"]


class Trial:
    """One tiny model with one method attached."""

    def __init__(self, name: str, *, architecture: str = "llama", dtype: torch.dtype = torch.float32) -> None:
        self.config = run_config(**METHODS[name])
        plain = tiny_model(architecture, dtype=dtype)
        self.model = packed(plain) if name.endswith("-packed") else quantized(plain, self.config.quantization)
        self.loss_fn = ModelLoss(self.model, chunk_tokens=16)
        self.method: Method = build_method(self.config, self.model)

    def run(self, start: int, stop: int, *, factor: float = 1.0) -> list[float]:
        """Losses of the steps; every step has its own two micro-batches."""
        losses = []
        for step in range(start, stop):
            batches = [lm_batch(rows=3, seed=2 * step), lm_batch(rows=2, seed=2 * step + 1)]
            rate = self.config.peak_learning_rate * factor
            losses.append(self.method.step(self.loss_fn, batches, lr=rate, step=step).loss)
        return losses

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.method.trainable.items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("length", ["short", pytest.param("long", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", METHODS)
def test_loss_falls_on_one_repeated_batch(name: str, length: str) -> None:
    trial, batch = Trial(name), lm_batch(rows=6)

    def loss() -> float:
        with torch.no_grad():
            sums = trial.loss_fn(batch)
        return float(sums.total / sums.counts.sum())

    before = loss()
    zeroth = METHODS[name]["method"]["kind"] == "zo"
    for step in range(200 if length == "long" else 100 if zeroth else 40):
        trial.method.step(trial.loss_fn, [batch], lr=trial.config.peak_learning_rate, step=step)
    # Zeroth order moves slowly in 20,000 dimensions. The loss itself is deterministic: lr = 0 leaves it exactly.
    assert loss() < before - (0.003 if zeroth else 0.2)


@pytest.mark.parametrize("name", METHODS)
def test_resume_through_safetensors_equals_the_uninterrupted_run(name: str, tmp_path: Path) -> None:
    straight = Trial(name)
    straight.run(0, 12)
    first = Trial(name)
    first.run(0, 5)
    state = first.method.state()
    save_file({key: tensor.contiguous() for key, tensor in state.tensors.items()}, tmp_path / "t.safetensors")
    second = Trial(name)
    second.method.load_state(MethodState(load_file(tmp_path / "t.safetensors"), state.numbers))
    second.run(5, 12)
    assert_same(second.weights(), straight.weights())
    resumed, expected = second.method.state(), straight.method.state()
    assert resumed.numbers == expected.numbers
    assert_same(resumed.tensors, expected.tensors)


@pytest.mark.parametrize("name", METHODS)
def test_learning_rate_zero_changes_nothing(name: str) -> None:
    trial = Trial(name)
    before = trial.weights()
    trial.run(0, 6, factor=0.0)
    assert_same(trial.weights(), before)


@pytest.mark.parametrize("name", METHODS)
def test_a_rehearsal_changes_nothing(name: str) -> None:
    rehearsed, straight = Trial(name), Trial(name)
    rehearsed.run(0, 2)
    straight.run(0, 2)
    before = {key: tensor.clone() for key, tensor in rehearsed.method.state().tensors.items()}
    rehearsed.method.rehearse(rehearsed.loss_fn, [lm_batch(rows=6, seed=9)] * 2)
    assert all(torch.equal(tensor, before[key]) for key, tensor in rehearsed.method.state().tensors.items())
    assert all(getattr(tensor, "grad", None) is None for tensor in rehearsed.method.trainable.values())
    rehearsed.run(2, 4)
    straight.run(2, 4)
    assert_same(rehearsed.weights(), straight.weights())


@pytest.mark.parametrize("name", DETERMINISTIC_LOSS)
def test_micro_batches_equal_one_big_batch(name: str) -> None:
    whole, split = Trial(name), Trial(name)
    batch = lm_batch(rows=7)
    parts = [rows_of(batch, 0, 3), rows_of(batch, 3, 6), rows_of(batch, 6, 7)]
    assert len({part.weight for part in parts}) > 1, "token weighting is only tested by unequal parts"
    rate = whole.config.peak_learning_rate
    one = whole.method.step(whole.loss_fn, [batch], lr=rate, step=0)
    many = split.method.step(split.loss_fn, parts, lr=rate, step=0)
    assert many.loss == pytest.approx(one.loss, rel=1e-5)
    if "grad_norm" in one.details:
        assert many.details["grad_norm"] == pytest.approx(one.details["grad_norm"], rel=1e-5)
        # AdamW's first step is lr * sign(g): where g is rounding noise around 0 the signs may differ.
        left, right = (torch.cat([w.flatten() for w in t.weights().values()]) for t in (whole, split))
        assert float(((left - right).abs() <= 1e-6).float().mean()) > 0.99


def test_projected_gradient_of_micro_batches_equals_that_of_one_batch_in_fp32() -> None:
    METHODS["mezo-wide"] = {
        "method": {"kind": "zo", "algorithm": "mezo", "zo_eps": 0.1},
        "learning_rate": 1e-3,
    }
    try:
        whole, split = Trial("mezo-wide"), Trial("mezo-wide")
    finally:
        del METHODS["mezo-wide"]
    batch = lm_batch(rows=7)
    one = whole.method.step(whole.loss_fn, [batch], lr=1e-3, step=0)
    many = split.method.step(split.loss_fn, [rows_of(batch, 0, 2), rows_of(batch, 2, 7)], lr=1e-3, step=0)
    assert many.details["projected_grad"] == pytest.approx(one.details["projected_grad"], rel=1e-5)
    for name, left in whole.weights().items():
        torch.testing.assert_close(left, split.weights()[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("name", METHODS)
def test_dtype_of_the_weights_is_kept_in_bf16(name: str) -> None:
    trial = Trial(name, dtype=torch.bfloat16)
    dtypes = {key: tensor.dtype for key, tensor in trial.method.trainable.items()}
    before = trial.weights()
    trial.run(0, 3)
    assert {key: tensor.dtype for key, tensor in trial.method.trainable.items()} == dtypes
    adapter = name.startswith(("lora", "lorsum", "dora")) or name.endswith("adapter")
    own = {"qzo": torch.float32, "qzo-packed": torch.float16}.get(name, torch.bfloat16)
    assert set(dtypes.values()) == {torch.float32 if adapter else own}
    if name != "adanaged-snr":  # its first four steps only measure
        assert any(not torch.equal(before[key], value) for key, value in trial.weights().items())


@pytest.mark.parametrize("name", METHODS)
def test_frozen_parameters_are_untouched(name: str) -> None:
    trial = Trial(name)
    frozen = {key: p.detach().clone() for key, p in trial.model.named_parameters() if not p.requires_grad}
    trial.run(0, 3)
    for key, p in trial.model.named_parameters():
        if key in frozen:
            assert torch.equal(p, frozen[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_global_random_state_is_neither_read_nor_written(name: str) -> None:
    left, right = Trial(name), Trial(name)
    torch.manual_seed(1)
    left.run(0, 3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    right.run(0, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(left.weights(), right.weights())


@pytest.mark.parametrize("name", METHODS)
def test_state_of_another_model_is_refused_by_tensor_name(name: str) -> None:
    trial = Trial(name)
    state = trial.method.state()
    victim = sorted(key for key in state.tensors if key.startswith("weights/"))[0]
    missing = {key: tensor for key, tensor in state.tensors.items() if key != victim}
    with pytest.raises(CheckpointError, match=f"lacks the tensor '{victim}'"):
        trial.method.load_state(MethodState(missing, state.numbers))
    with pytest.raises(CheckpointError, match="holds the tensor 'weights/unknown'"):
        trial.method.load_state(MethodState(state.tensors | {"weights/unknown": torch.zeros(1)}, state.numbers))
    with pytest.raises(CheckpointError, match="this run needs"):
        trial.method.load_state(MethodState(state.tensors | {victim: torch.zeros(1)}, state.numbers))


@pytest.mark.parametrize("name", METHODS)
def test_losses_that_stay_nan_are_skipped_and_then_given_up(name: str) -> None:
    trial = Trial(name)
    before = trial.weights()

    def broken(batch: Any) -> LossSums:
        sums = trial.loss_fn(batch)
        return LossSums(sums.per_example * torch.nan, sums.counts)

    for step in range(4):
        assert trial.method.step(broken, [lm_batch()], lr=1e-3, step=step).skipped
    assert_same(trial.weights(), before)
    with pytest.raises(NonFiniteError, match="5 steps in a row"):
        trial.method.step(broken, [lm_batch()], lr=1e-3, step=4)


@pytest.mark.parametrize("name", ["lora", "full", "mezo", "adanaged"])
@pytest.mark.parametrize("architecture", ["opt", "gpt2", "qwen3", "gemma3", "bloom"])
def test_methods_train_every_architecture(name: str, architecture: str) -> None:
    trial = Trial(name, architecture=architecture)
    before = trial.weights()
    losses = trial.run(0, 3)  # adanaged measures for two steps before it moves
    assert all(loss > 0 for loss in losses)
    changed = [key for key, value in trial.weights().items() if not torch.equal(before[key], value)]
    assert len(changed) > len(before) / 3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # inside peft 0.21
def test_export_loads_in_plain_transformers_and_peft(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = lm_batch().input_ids
    for name in ("lora", "adanaged-adapter", "full", "mezo"):
        trial = Trial(name)
        trial.run(0, 3)
        folder = tmp_path / name
        trial.method.export(folder)
        if (folder / "adapter_config.json").exists():
            loaded: Any = PeftModel.from_pretrained(tiny_model(), folder).eval()
        else:
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(input_ids=ids).logits, trial.model(input_ids=ids).logits)
