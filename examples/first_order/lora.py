"""LoRA: this project's step against peft with `torch.optim.AdamW`, and LoRSum's step and state against both."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from first_order.setting import Comparison, Setting, Step, peak_bytes, timed_in_turn
from lowmem.methods.build import build_method
from lowmem.models.loss import ModelLoss

LR = 1e-4


@dataclass(frozen=True)
class Contestant:
    """A model with a step over the setting's batch. `state` lists the optimizer's tensors, once a step was made."""

    model: Any
    step: Step
    state: Any

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.state())


def ours(setting: Setting, method: dict[str, Any]) -> Contestant:
    """`method` of this project."""
    model, batch = setting.model(), setting.batch()
    config = setting.config(method | {"lora_r": setting.rank})
    built, loss = build_method(config, model), ModelLoss(model, chunk_tokens=config.loss_chunk_tokens)

    def state() -> list[Tensor]:
        return [tensor for name, tensor in built.state().tensors.items() if name.startswith("state/")]

    return Contestant(model, lambda: built.step(loss, [batch], lr=LR, step=0), state)


def plain_peft(setting: Setting) -> Contestant:
    """What a short training script does: peft's model, its own loss, clipping, `torch.optim.AdamW`."""
    from peft import LoraConfig, get_peft_model

    model, batch = setting.model(), setting.batch()
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        adapted = get_peft_model(
            model, LoraConfig(r=setting.rank, lora_alpha=2 * setting.rank, target_modules="all-linear")
        )
    adapted.train()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)

    def step() -> float:
        loss = adapted(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def state() -> list[Tensor]:
        return [t for slots in optimizer.state.values() for t in slots.values() if torch.is_tensor(t)]

    return Contestant(model, step, state)


def compare(setting: Setting) -> Comparison:
    """lora against plain peft, lorsum against lora: seconds per step, peak and state bytes."""
    peft, lora, lorsum = plain_peft(setting), ours(setting, {"kind": "lora"}), ours(setting, {"kind": "lorsum"})
    lora_s, peft_s, lora_ratio = timed_in_turn(lora.step, peft.step, rounds=setting.rounds)
    lorsum_s, base_s, lorsum_ratio = timed_in_turn(lorsum.step, lora.step, rounds=setting.rounds)
    peaks = [peak_bytes(c.step, c.model, c.state(), vocabulary=setting.vocabulary) for c in (lora, peft, lorsum)]
    keys = {
        "lora_step_ratio": lora_ratio,
        "lora_peak_ratio": peaks[0] / peaks[1],
        "lora_state_ratio": lora.nbytes() / peft.nbytes(),
        "lorsum_step_ratio": lorsum_ratio,
        "lorsum_peak_ratio": peaks[2] / peaks[0],
        "lorsum_state_ratio": lorsum.nbytes() / lora.nbytes(),
    }
    rows = [
        ["lora / plain peft, ms a step", _ms(lora_s), _ms(peft_s), f"{lora_ratio:.3f}"],
        ["lora / plain peft, peak MiB", _mib(peaks[0]), _mib(peaks[1]), f"{keys['lora_peak_ratio']:.3f}"],
        ["lorsum / lora, ms a step", _ms(lorsum_s), _ms(base_s), f"{lorsum_ratio:.3f}"],
        ["lorsum / lora, peak MiB", _mib(peaks[2]), _mib(peaks[0]), f"{keys['lorsum_peak_ratio']:.3f}"],
        [
            "lorsum / lora, state MiB",
            _mib(lorsum.nbytes()),
            _mib(lora.nbytes()),
            f"{keys['lorsum_state_ratio']:.3f}",
        ],
    ]
    return Comparison(keys, rows)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.2f}"
