"""The candidates: every way of training a model, from the best expected quality down, and what each costs in time.

    1  all weights by back-propagation
    2  all weights, matrices through a low-rank view of their gradients (GUM, GaLore)
    3  LoRA on the base in the run's dtype, by any of its update rules
    4  LoRA on an int8 base; all weights by plain SGD
    5  LoRA on an nf4 base
    6  zeroth order on all weights
    7  zeroth order on an adapter over an nf4 base

"LoRA without regret" and the QLoRA paper (arXiv 2305.14314) find tiers 1, 3 and 5 close on small finetuning sets; MeZO
(arXiv 2305.17333) comes within a few points of 1 on prompted tasks only, after ten to a hundred times as many steps.
Tier 2 stands between because it can move every weight in the end; this project has not shown that it is better than 3.
Plain SGD follows LoRA because it needs a tuned rate and still pays for every gradient. Fewer bits lose quality, so a
base is quantized only where the config allows it; recomputing activations and smaller micro-batches lose nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lowmem.config.method import AdapterMethod, AutoMethod, FullMethod, LoraMethod, Method, ProjectedMethod, ZoMethod
from lowmem.config.quantization import NoQuantization
from lowmem.config.run import RunConfig
from lowmem.methods.zo.build import zo_forwards

RIDGE_TOKENS = 156
"""Tokens at which a bf16 matmul on an A100 is half bound by reading weights: 312 TFLOP/s over 2.0 TB/s, 1 token = 1
FLOP per byte of weights."""


ADAPTERS = ("lora", "lorsum", "lora_muon")
"""Kinds of methods that train an adapter by back-propagation."""
PROJECTED = ("gum", "galore")
"""Kinds of methods that train all weights through low-rank views."""


@dataclass(frozen=True)
class Rung:
    """One way of training: `changes` are config keys by section."""

    name: str
    tier: int
    changes: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    clips: bool = True
    """Whether the run clips gradients."""

    @property
    def kind(self) -> str:
        return str(self.changes["method"]["kind"])

    @property
    def base(self) -> str:
        """How the base is stored: none, int8 or nf4."""
        return str(self.changes["quantization"]["kind"])

    @property
    def adapts(self) -> bool:
        """Whether an adapter is trained, and not the weights."""
        return self.kind in ADAPTERS or self.changes["method"].get("train_adapter") is not None

    @property
    def clips_in_backward(self) -> bool:
        """Whether weights move inside backward and the global norm is asked for, which takes a second pass."""
        method = self.changes["method"]
        return method.get("update") == "in_backward" and method.get("clipping", "exact") == "exact" and self.clips

    @property
    def back_propagates(self) -> bool:
        return self.kind != "zo"


def rungs(config: RunConfig) -> tuple[Rung, ...]:
    """All ways of training `config`'s model, best first; the config's own settings of a method are kept."""
    method = config.method
    lora: dict[str, Any] = method.model_dump(mode="json") if isinstance(method, LoraMethod) else {"kind": "lora"}
    if isinstance(method, AutoMethod):
        lora["lora_r"] = method.lora_r
    zo = method.model_dump(mode="json") if isinstance(method, ZoMethod) else {"kind": "zo"}
    if config.effective_batch_size == 1 and zo.get("algorithm", "adanaged") == "adanaged":
        zo["step_rule"] = "parameter_free"  # one example shows no noise
    on_adapter = zo | {"train": "weights", "train_adapter": zo.get("train_adapter") or lora}
    whole = zo | {"train": "weights", "train_adapter": None}
    own_base = config.quantization.model_dump(mode="json")
    scaled = [own_base] if zo.get("train") == "scales" and own_base["kind"] != "none" else []  # only where asked for
    plain, int8 = {"kind": "none"}, {"kind": "int8"}
    nf4 = config.quantization.model_dump(mode="json") if config.quantization.kind == "nf4" else {"kind": "nf4"}
    optimizer = config.optimizer.model_dump(mode="json")
    others = [name for name in ("adamw", "sgd") if name != optimizer["kind"]]
    prompted = "for prompted tasks; ten to a hundred times as many steps"
    adamw = {"kind": "adamw"}
    bases = {"": (3, plain), " on int8": (4, int8), " on nf4": (5, nf4)}
    ladder = [
        *(Rung(f"full, {name}", 1, _keys(full, plain, optimizer)) for name, full in _full(method, optimizer["kind"])),
        *(Rung(f"{full['kind']}", 2, _keys(full, plain, optimizer)) for full in _projected(method)),
        *(Rung(f"full, {name}", 4, _keys({"kind": "full"}, plain, {"kind": name})) for name in others),
        *(Rung(f"lora{name}", tier, _keys(lora, base, optimizer)) for name, (tier, base) in bases.items()),
        *(
            Rung(f"{kind}{name}", tier, _keys(_adapter(method, kind), base, adamw))
            for kind in _paired(method)
            for name, (tier, base) in bases.items()
        ),
        Rung("zo", 6, _keys(whole, plain, optimizer), prompted),
        Rung("zo on lora", 6, _keys(on_adapter, plain, optimizer), prompted),
        Rung("zo on lora on nf4", 7, _keys(on_adapter, nf4, optimizer), prompted),
        *(Rung(f"zo on the scales of {base['kind']}", 7, _keys(zo, base, optimizer), prompted) for base in scaled),
    ]
    clips = config.max_grad_norm is not None
    return tuple(sorted((replace(rung, clips=clips) for rung in ladder), key=lambda rung: rung.tier))


def over_packed(ladder: tuple[Rung, ...], method: Method) -> tuple[Rung, ...]:
    """The rungs that a base of packed weights can stand on: adapters, and its scales where they are asked for."""
    kept = tuple(rung for rung in ladder if rung.adapts and rung.base == "none")
    if isinstance(method, ZoMethod) and method.train == "scales":
        (whole,) = (rung for rung in ladder if rung.name == "zo")
        section = method.model_dump(mode="json")
        kept += (replace(whole, name="zo on the scales", tier=7, changes=whole.changes | {"method": section}),)
    return kept


def _full(method: Method, rule: str) -> list[tuple[str, dict[str, Any]]]:
    """With the update after backward, and inside it: lossless, since with clipping it runs backward twice.

    A config that asks for the update inside backward, perhaps with another kind of clipping, gets nothing else.
    """
    inside = {"kind": "full", "update": "in_backward"}
    if isinstance(method, FullMethod) and method.update == "in_backward":
        return [(f"{rule} in backward", method.model_dump(mode="json"))]
    return [(rule, {"kind": "full"}), (f"{rule} in backward", inside)]


def _projected(method: Method) -> list[dict[str, Any]]:
    """Shown where they are asked for."""
    asked = method.allow if isinstance(method, AutoMethod) else ()
    own = [method.model_dump(mode="json")] if isinstance(method, ProjectedMethod) else []
    return own + [{"kind": kind} for kind in PROJECTED if kind in asked]


def _paired(method: Method) -> tuple[str, ...]:
    """Adapter methods with an update rule of their own: shown where they are asked for, since they cost a row each."""
    asked = method.allow if isinstance(method, AutoMethod) else (method.kind,)
    return tuple(kind for kind in ADAPTERS[1:] if kind in asked)


def _adapter(method: Method, kind: str) -> dict[str, Any]:
    if method.kind == kind:
        return method.model_dump(mode="json")
    return {"kind": kind, "lora_r": method.lora_r} if isinstance(method, AutoMethod | AdapterMethod) else {"kind": kind}


def allowed(config: RunConfig, rung: Rung) -> bool:
    """Whether `config` permits `rung`: its own method and base, or for `method: auto` what that section lists."""
    method = config.method
    if not isinstance(method, AutoMethod):
        asked = Rung(
            "", 0, _keys(*(s.model_dump(mode="json") for s in (method, config.quantization, config.optimizer)))
        )
        adapter = isinstance(method, ZoMethod) and method.train_adapter is not None
        same = (rung.kind, rung.base) == (asked.kind, asked.base) and (rung.kind != "zo" or rung.adapts == adapter)
        return same and (rung.kind == "zo" or rung.changes["optimizer"]["kind"] == config.optimizer.kind)
    if rung.kind not in method.allow or rung.changes["optimizer"]["kind"] != config.optimizer.kind:
        return False
    if not isinstance(config.quantization, NoQuantization):
        return rung.base == config.quantization.kind
    return rung.base == "none" or rung.base in method.allow_quantization


def apply(config: RunConfig, rung: Rung, *, examples: int, checkpointing: bool) -> RunConfig:
    """`config` trained by `rung` in micro-batches of `examples`, with the same effective batch.

    Keys that belong to another method fall back to their defaults.
    """
    effective = config.per_device_train_batch_size * config.gradient_accumulation_steps
    plain = config.model_dump(mode="json")
    if plain["method"]["kind"] != rung.kind:
        plain["learning_rate"] = None
    if not rung.back_propagates and rung.changes["method"].get("algorithm", "adanaged") == "adanaged":
        plain["learning_rate"] = None
    plain |= rung.changes | {
        "auto": [],
        "per_device_train_batch_size": examples,
        "gradient_accumulation_steps": -(-effective // examples),
        "gradient_checkpointing": checkpointing,
    }
    return RunConfig.model_validate(plain)


def micro_batches(examples: int) -> tuple[int, ...]:
    """Sizes to try, largest first: halves, as long as they divide."""
    sizes = [examples]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return tuple(sizes if sizes[-1] == 1 else [*sizes, 1])


def forwards_per_step(rung: Rung, *, checkpointing: bool) -> float:
    """Time of a step in forward passes: a backward is two, or one where the base is frozen; recomputing adds one.

    Not counted: dequantizing a base, perturbing weights, the update itself.
    """
    if rung.kind == "zo":
        return zo_forwards(ZoMethod.model_validate(rung.changes["method"]))
    backward = 2.0 if rung.kind in ("full", *PROJECTED) else 1.0
    passes = 2 if rung.kind == "full" and rung.clips_in_backward else 1
    return passes * (1.0 + backward + (1.0 if checkpointing else 0.0))


def relative_speed(rung: Rung, *, checkpointing: bool, tokens: int) -> float:
    """Estimated tokens per second of a step; 1 = full finetuning in large micro-batches without checkpointing."""
    return 3.0 / forwards_per_step(rung, checkpointing=checkpointing) * tokens / (tokens + RIDGE_TOKENS)


def _keys(method: dict[str, Any], quantization: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
    return {"method": method, "quantization": quantization, "optimizer": optimizer}
