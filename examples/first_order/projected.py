"""GaLore and GUM: this project's steps against `galore-torch` from PyPI, updated layer by layer inside backward too.

Their time is amortised over a refresh period of `PERIOD` steps: a step without SVD, timed in turn with ours, and the
extra cost of a step with the SVDs of all matrices, timed alone, once per period. Ours takes its turns at refreshing
within the timed steps. Neither clips. galore-torch is an optimizer, so it is given this project's chunked loss: the
ratios are of the methods. Against a plain script, with the model's own loss on their side, `_script_` ratios stand
beside them. Needs `pip install 'lowmem[bench]'`.
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


def galore_torch(setting: Setting, *, own_loss: bool) -> Contestant:
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

    chunked = ModelLoss(model, chunk_tokens=setting.config({"kind": "full"}).loss_chunk_tokens)

    def step() -> float:
        if own_loss:
            loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
        else:
            loss = chunked(batch).total / batch.weight
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
    galore, gum = ours(setting, "galore"), ours(setting, "gum")
    same, script = galore_torch(setting, own_loss=False), galore_torch(setting, own_loss=True)
    looks = {id(theirs): _refresh_seconds(theirs) for theirs in (same, script)}
    pairs = [
        _against(setting, name, mine, theirs, title, refresh=looks[id(theirs)])
        for name, mine, theirs, title in (
            ("galore", galore, same, "galore-torch"),
            ("gum", gum, same, "galore-torch"),
            ("galore_script", galore, script, "its script"),
        )
    ]
    return Comparison({k: v for pair in pairs for k, v in pair.keys.items()}, [row for p in pairs for row in p.rows])


def _against(
    setting: Setting, name: str, mine: Contestant, theirs: Contestant, title: str, *, refresh: float
) -> Comparison:
    calls = -(-PERIOD // (7 * setting.layers))  # in so many steps one of our matrices has its turn
    rounds = max(3, setting.rounds // 3)
    seconds, plain, ratio = timed_in_turn(mine.step, theirs.step, rounds=rounds, calls=calls)
    amortised = plain + refresh / PERIOD
    peaks = [peak_bytes(c.step, c.model, c.state(), vocabulary=setting.vocabulary) for c in (mine, theirs)]
    states = [mine.nbytes(), theirs.nbytes()]
    keys = {
        f"{name}_step_ratio": ratio * plain / amortised,
        f"{name}_peak_ratio": peaks[0] / peaks[1],
        f"{name}_state_ratio": states[0] / states[1],
    }
    kind = name.removesuffix("_script")
    rows = [
        _row(f"{kind} / {title}, ms a step", seconds * 1e3, amortised * 1e3, keys[f"{name}_step_ratio"]),
        _row(f"{kind} / {title}, peak MiB", peaks[0] / 2**20, peaks[1] / 2**20, keys[f"{name}_peak_ratio"]),
        _row(f"{kind} / {title}, state MiB", states[0] / 2**20, states[1] / 2**20, keys[f"{name}_state_ratio"]),
    ]
    return Comparison(keys, rows)


def _refresh_seconds(fresh: Contestant) -> float:
    """What the SVDs of a step cost: that of the very first step, less an ordinary step."""
    first = _seconds(fresh)
    return max(0.0, first - min(_seconds(fresh) for _ in range(2)))


def _row(what: str, mine: float, theirs: float, ratio: float) -> list[str]:
    return [what, f"{mine:.2f}", f"{theirs:.2f}", f"{ratio:.3f}"]


def _seconds(contestant: Contestant) -> float:
    """CPU time of one step."""
    start = time.process_time()
    contestant.step()
    return time.process_time() - start
