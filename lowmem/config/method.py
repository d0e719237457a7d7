"""How the weights are updated: one section per method, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from lowmem.config.base import Section


class LoraMethod(Section):
    """Low-rank adapters through peft; the base stays frozen. The safe default for most tasks."""

    kind: Literal["lora"] = "lora"
    lora_r: PositiveInt = 8
    """Rank of the adapters. Higher = more capacity, more memory."""
    lora_alpha: PositiveFloat | None = None
    """Scale of the adapters is alpha / r (alpha / sqrt(r) with `use_rslora`). Default: 2 r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the layers that get an adapter, or "all-linear" (all but the head)."""
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: Literal["default", "pissa"] = "default"

    @property
    def alpha(self) -> float:
        return float(2 * self.lora_r if self.lora_alpha is None else self.lora_alpha)


class FullMethod(Section):
    """Every weight is trained by back-propagation: best quality, most memory."""

    kind: Literal["full"] = "full"


class ZoMethod(Section):
    """Zeroth order: only forward passes, so the memory of inference. For prompted tasks and short answers."""

    kind: Literal["zo"] = "zo"
    algorithm: Literal["adanaged", "mezo"] = "adanaged"
    """`adanaged` needs no learning rate (AdaNAGED-R, our reconstruction); `mezo` is two-sided SPSA."""
    direction: Literal["rademacher", "gaussian"] = "rademacher"
    zo_eps: PositiveFloat | None = None
    """Probing radius of `mezo` (default 1e-3). `adanaged` adapts it: setting it there is an error."""
    step_rule: Literal["parameter_free", "snr"] = "parameter_free"
    """Step size of `adanaged`: distance/curvature as in ALIAS, or signal-to-noise over curvature."""
    probe_period: PositiveInt = 10
    """`adanaged`: extra probes (curvature, progress of the last step) every this many steps."""
    train_adapter: LoraMethod | None = None
    """Perturb only a LoRA adapter instead of all weights."""

    @model_validator(mode="after")
    def _eps_belongs_to_mezo(self) -> ZoMethod:
        if self.algorithm != "mezo" and self.zo_eps is not None:
            raise ValueError(
                f"zo_eps: {self.algorithm} adapts its probing radius; remove zo_eps or use algorithm: mezo"
            )
        if self.algorithm == "mezo" and self.step_rule != "parameter_free":
            raise ValueError("step_rule: belongs to algorithm: adanaged; mezo takes learning_rate")
        return self

    @property
    def parameter_free(self) -> bool:
        """True where `learning_rate` must not be set: the schedule is a dimensionless factor."""
        return self.algorithm == "adanaged"


class AutoMethod(Section):
    """The planner takes the best method that fits `memory_budget`, or the device where no budget is given."""

    kind: Literal["auto"] = "auto"
    allow: tuple[Literal["full", "lora", "zo"], ...] = ("full", "lora", "zo")
    """Methods that may be chosen."""
    allow_quantization: tuple[Literal["int8", "nf4"], ...] = ()
    """Forms of the frozen base that may be chosen besides the run's dtype; fewer bits = less memory, some loss."""
    lora_r: PositiveInt = 8
    """Rank of the adapters, where a method with adapters is chosen."""


Method = Annotated[LoraMethod | FullMethod | ZoMethod | AutoMethod, Field(discriminator="kind")]
