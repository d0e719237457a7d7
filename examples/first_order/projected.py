"""GaLore and GUM: this project's steps against `galore-torch` from PyPI, updated layer by layer inside backward too.

Their time is amortised over a refresh period of `PERIOD` steps: a step without SVD, timed in turn with ours, and the
extra cost of a step with the SVDs of all matrices, timed alone, once per period. Ours takes its turns at refreshing
within the timed steps. Neither clips. Needs `pip install 'lowmem[bench]'`.
"""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import torch
from torch import Tensor

from first_order.lora import LR, Contestant
from first_order.setting import Comparison, Setting, peak_bytes, timed_in_turn
from lowmem.methods.build import build_method
from lowmem.models.loss import ModelLoss

PERIOD = 200
RANK = 32


def ours(setting: Setting, kind: str) -> Contestant:
    """`kind` of this project, one micro-batch, updated inside backward."""
    model, batch = setting.model(), setting.batch()
    method: dict[str, Any] = {"kind": kind, "rank": RANK, "period": PERIOD, "clipping": "none"}
    config = setting.config(method | ({"gamma": 1} if kind == "gum" else {}))
    built, loss = build_method(config, model), ModelLoss(model, chunk_tokens=config.loss_chunk_tokens)

    def state() -> list[Tensor]:
        return [tensor for name, tensor in built.state().tensors.items() if name.startswith("state/")]

    return Contestant(model, lambda: built.step(loss, [batch], lr=LR, step=0), state)


def galore_torch(setting: Setting) -> Contestant:
    """Their per-layer recipe: one `GaLoreAdamW` per parameter, stepped by a hook that then frees the gradient."""
    from galore_torch import GaLoreAdamW

    model, batch = setting.model(), setting.batch()
    model.train()
    projected = {"rank": RANK, "update_proj_gap": PERIOD, "scale": 0.25, "proj_type": "std"}
    optimizers = {}
    for name, p in model.named_parameters():
        group = {"params": [p]} | (projected if p.dim() == 2 and "embed" not in name else {})
        optimizers[p] = GaLoreAdamW([group], lr=LR, no_deprecation_warning=True)

    def update(p: Any) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad(set_to_none=True)

    for p in optimizers:
        p.register_post_accumulate_grad_hook(update)

    def step() -> float:
        loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
        loss.backward()
        return float(loss.detach())

    def state() -> list[Tensor]:
        slots = [slot for optimizer in optimizers.values() for slot in optimizer.state.values()]
        tensors = [value for slot in slots for value in slot.values() if torch.is_tensor(value)]
        return tensors + [slot["projector"].ortho_matrix for slot in slots if "projector" in slot]

    return Contestant(model, step, state)


def compare(setting: Setting) -> Comparison:
    """galore and gum against galore-torch: seconds per step over a period, peak and state bytes."""
    if importlib.util.find_spec("galore_torch") is None:
        return Comparison({}, [["galore / galore-torch: pip install 'lowmem[bench]'", "-", "-", "-"]])
    theirs, galore, gum = galore_torch(setting), ours(setting, "galore"), ours(setting, "gum")
    refresh = _seconds(theirs) - min(_seconds(theirs) for _ in range(3))
    matrices = 7 * setting.layers
    calls = -(-PERIOD // matrices)  # in so many steps one of our matrices has its turn
    keys: dict[str, float] = {}
    rows: list[list[str]] = []
    bytes_ = peak_bytes(theirs.step, theirs.model, theirs.state(), vocabulary=setting.vocabulary)
    for name, contestant in (("galore", galore), ("gum", gum)):
        rounds = max(3, setting.rounds // 3)
        mine, plain, ratio = timed_in_turn(contestant.step, theirs.step, rounds=rounds, calls=calls)
        amortised = plain + refresh / PERIOD
        peak = peak_bytes(contestant.step, contestant.model, contestant.state(), vocabulary=setting.vocabulary)
        keys |= {
            f"{name}_step_ratio": ratio * plain / amortised,
            f"{name}_peak_ratio": peak / bytes_,
            f"{name}_state_ratio": contestant.nbytes() / theirs.nbytes(),
        }
        rows += [
            _row(f"{name} / galore-torch, ms a step", mine * 1e3, amortised * 1e3, keys[f"{name}_step_ratio"]),
            _row(f"{name} / galore-torch, peak MiB", peak / 2**20, bytes_ / 2**20, keys[f"{name}_peak_ratio"]),
            _row(
                f"{name} / galore-torch, state MiB",
                contestant.nbytes() / 2**20,
                theirs.nbytes() / 2**20,
                keys[f"{name}_state_ratio"],
            ),
        ]
    return Comparison(keys, rows)


def _row(what: str, mine: float, theirs: float, ratio: float) -> list[str]:
    return [what, f"{mine:.2f}", f"{theirs:.2f}", f"{ratio:.3f}"]


def _seconds(contestant: Contestant) -> float:
    """CPU time of one step."""
    start = time.process_time()
    contestant.step()
    return time.process_time() - start
