"""How the weights are updated: one section per method, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lowmem.config.base import Section


class AdapterMethod(Section):
    """What all methods that train low-rank adapters share; peft attaches and stores them."""

    lora_r: PositiveInt = 8
    """Rank of the adapters. Higher = more capacity, more memory."""
    lora_alpha: PositiveFloat | None = None
    """Scale of the adapters is alpha / r (alpha / sqrt(r) with `use_rslora`). Default: 2 r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the layers that get an adapter, or "all-linear" (all but the head)."""
    use_rslora: bool = False
    init_lora_weights: Literal["default", "pissa"] = "default"
    """`pissa` starts from the largest singular vectors of each weight; needs a base that is not quantized."""

    @property
    def alpha(self) -> float:
        return float(2 * self.lora_r if self.lora_alpha is None else self.lora_alpha)


class LoraMethod(AdapterMethod):
    """Low-rank adapters through peft; the base stays frozen. The safe default for most tasks."""

    kind: Literal["lora"] = "lora"
    use_dora: bool = False
    """Also train the length of every output's weights, apart from their direction. Slower."""


class LorsumMethod(AdapterMethod):
    """Adapters that follow the gradient of the full weight (LoRSum), less sensitive to the learning rate. Its own
    update rule: there is no `optimizer`. State: about half of adamw's."""

    kind: Literal["lorsum"] = "lorsum"
    mode: Literal["jacobi", "alternating", "gauss_seidel"] = "jacobi"
    """Both factors at once, one per step, or one after the other (gauss_seidel: keeps every layer's tokens)."""
    sweeps: PositiveInt = 1
    """gauss_seidel: more = closer to the best low-rank step, slower."""
    metric: Literal["tangent", "kfac", "shampoo", "none"] = "tangent"
    """How inputs and outputs are weighed. shampoo keeps every layer's tokens; none: learning rates of plain descent."""
    metric_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the past in the metric's average."""
    power: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the metric; 0.5 makes the step independent of the loss's scale."""
    metric_floor: Annotated[float, Field(ge=0)] = 1e-3
    """Added to the metric, as a share of its mean: higher = outputs and inputs treated more alike."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the past in the average of gradients; 0 = no momentum, and no state for it."""
    momentum_form: Literal["factors", "lowrank"] = "factors"
    """Averages of the factors' gradients, or of the weight's gradient as a product of rank r."""
    damping: Annotated[float, Field(ge=0)] = 4.0
    """No step is larger than one with learning_rate 1 / damping."""

    @model_validator(mode="after")
    def _sweeps_belong_to_gauss_seidel(self) -> LorsumMethod:
        if self.sweeps > 1 and self.mode != "gauss_seidel":
            raise ValueError(f"sweeps: belongs to mode: gauss_seidel; mode: {self.mode} makes a single one")
        return self


class LoraMuonMethod(AdapterMethod):
    """Adapters that follow the spectral norm's steepest descent (LoRA-Muon, reconstructed). Its own update rule: there
    is no `optimizer`. State: half of adamw's."""

    kind: Literal["lora_muon"] = "lora_muon"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the past in the average of gradients."""
    damping: Annotated[float, Field(gt=0)] = 1e-3
    """Share of the mean eigenvalue added where a factor is divided by: higher = calmer while B is small."""
    scale: Literal["rms", "aspect", "operator"] = "rms"
    """How the step grows with the layer's shape, as for muon."""
    ns_steps: PositiveInt = 5
    """Newton-Schulz iterations: more = singular values more equal, slower."""


Clipping = Literal["exact", "per_layer", "none"]


class FullMethod(Section):
    """Every weight is trained by back-propagation: best quality, most memory."""

    kind: Literal["full"] = "full"
    update: Literal["after_backward", "in_backward"] = "after_backward"
    """in_backward frees every gradient as it is used; saves memory only with gradient_accumulation_steps: 1."""
    clipping: Clipping = "exact"
    """in_backward: exact = global norm, by a second backward; per_layer = each tensor's own norm; none."""

    @model_validator(mode="after")
    def _clipping_belongs_to_in_backward(self) -> FullMethod:
        if self.update == "after_backward" and self.clipping != "exact":
            raise ValueError(
                f"clipping: {self.clipping} belongs to update: in_backward; after_backward clips by the global norm, "
                "or not at all with max_grad_norm: null"
            )
        return self


class ProjectedMethod(Section):
    """What methods share that train whole matrices through a low-rank view of their gradients, inside backward."""

    rank: PositiveInt = 128
    """Rank of the view. Higher = closer to full finetuning, more memory."""
    period: PositiveInt = 200
    """Updates between two looks for a new basis (of each matrix; they take turns)."""
    clipping: Clipping = "exact"
    """By max_grad_norm. exact: global norm, projected gradients wait for it and a failed step can be repeated.
    per_layer: each tensor by its own norm, least memory."""
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of bases and optimizer state; bf16 halves them, rounded stochastically."""


class GaloreMethod(ProjectedMethod):
    """Every weight, matrices through a low-rank view of the gradient (GaLore). Drops what the view does not show;
    gum corrects that. `optimizer` works inside the view."""

    kind: Literal["galore"] = "galore"
    scale: PositiveFloat = 0.25
    """Multiplies the step of projected matrices, as published."""


class GumMethod(ProjectedMethod):
    """Every weight; matrices by a Muon-like rule in a low-rank view, a few layers at a time in what it leaves out
    (GUM). `optimizer` is for vectors and embeddings."""

    kind: Literal["gum"] = "gum"
    gamma: NonNegativeInt = 2
    """Layers drawn per period for the full-rank branch; 0 = never, which is biased."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Weight of the past in the average of gradients."""
    ns_gain: Literal["paper", "unbiased"] = "paper"
    """unbiased also makes the mean step that of Muon, at layers / gamma times the variance."""
    ns_steps: PositiveInt = 5
    """Newton-Schulz iterations: more = singular values more equal, slower."""


ZoAlgorithm = Literal["adanaged", "mezo", "meazo", "fzoo", "zo_sign", "zo_muon", "lozo"]
_ZO_HISTORY: tuple[ZoAlgorithm, ...] = ("zo_sign", "zo_muon", "lozo")
_ZO_KEYS: dict[str, tuple[ZoAlgorithm, ...]] = {
    "probes": ("fzoo", "zo_muon"),
    "rank": ("zo_muon", "lozo"),
    "momentum": _ZO_HISTORY,
    "history": _ZO_HISTORY,
    "top_k": ("zo_muon",),
}
"""Keys that are None where an algorithm has no use for them, and the algorithms that have."""


class ZoMethod(Section):
    """Zeroth order: only forward passes, so the memory of inference. For prompted tasks and short answers."""

    kind: Literal["zo"] = "zo"
    algorithm: ZoAlgorithm = "adanaged"
    """`adanaged` needs no learning rate (AdaNAGED-R, our reconstruction); `mezo` is two-sided SPSA, `lozo` the same
    along low-rank directions with momentum; the others need a step's length per weight: `fzoo` and `meazo` divide by
    the losses' spread or a running slope, `zo_sign` and `zo_muon` take the sign, per weight or per singular value."""
    direction: Literal["rademacher", "gaussian"] = "rademacher"
    zo_eps: PositiveFloat | None = None
    """Probing radius, default 1e-3. `adanaged` adapts it: setting it there is an error."""
    probes: Annotated[int, Field(ge=2)] | None = None
    """`fzoo` (default 8) and `zo_muon` (default 4): probes per step. More = calmer and costlier steps."""
    rank: Annotated[int, Field(ge=1, le=4096)] | None = None
    """`zo_muon` (default 8) and `lozo` (default 4): rank of the directions, instead of `direction`."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """`zo_sign`, `zo_muon`, `lozo`: weight of the past in the average of slopes, default 0.9. It takes no memory."""
    history: PositiveInt | None = None
    """`zo_sign`, `zo_muon`, `lozo`: steps in that average, default 16. More = slower updates."""
    top_k: PositiveInt | None = None
    """`zo_muon`: only this many singular directions move; the rest is mostly noise. Default: all."""
    step_rule: Literal["parameter_free", "snr"] = "snr"
    """Step size of `adanaged`: signal-to-noise over curvature, or distance/curvature as in ALIAS."""
    probe_period: PositiveInt = 10
    """`adanaged` with step_rule: parameter_free: extra probes (curvature, progress) every this many steps."""
    train: Literal["weights", "scales"] = "weights"
    """`scales` (QZO, reconstructed): of a quantized base, train the quantization scales alone; its codes stay."""
    train_adapter: LoraMethod | None = None
    """Perturb only a LoRA adapter instead of all weights."""
    snapshot_steps: PositiveInt | None = None
    """Checkpoints hold 16 bytes a probe instead of the weights, but one in this many steps is full: more = smaller
    checkpoints, longer to resume. Default: every one is full."""

    @model_validator(mode="after")
    def _keys_belong_to_the_algorithm(self) -> ZoMethod:
        if self.algorithm == "adanaged" and self.zo_eps is not None:
            raise ValueError("zo_eps: adanaged adapts its probing radius; remove zo_eps or use algorithm: mezo")
        if self.algorithm != "adanaged" and self.step_rule != "snr":
            raise ValueError(f"step_rule: belongs to algorithm: adanaged; {self.algorithm} takes learning_rate")
        if self.train == "scales" and self.train_adapter is not None:
            raise ValueError("train: scales and train_adapter: each says alone what is trained; remove one of them")
        for key, owners in _ZO_KEYS.items():
            if getattr(self, key) is not None and self.algorithm not in owners:
                raise ValueError(f"{key}: belongs to algorithm: {' or '.join(owners)}; {self.algorithm} has none")
        return self

    @property
    def parameter_free(self) -> bool:
        """True where `learning_rate` must not be set: the schedule is a dimensionless factor."""
        return self.algorithm == "adanaged"

    @property
    def measures_noise(self) -> bool:
        """True where a step needs the spread over at least two examples."""
        return self.algorithm == "adanaged" and self.step_rule == "snr"


class AutoMethod(Section):
    """The planner takes the best method that fits `memory_budget`, or the device where no budget is given."""

    kind: Literal["auto"] = "auto"
    allow: tuple[Literal["full", "gum", "galore", "lora", "lorsum", "lora_muon", "zo"], ...] = ("full", "lora", "zo")
    """Methods that may be chosen."""
    allow_quantization: tuple[Literal["int8", "nf4"], ...] = ()
    """Forms of the frozen base that may be chosen besides the run's dtype; fewer bits = less memory, some loss."""
    lora_r: PositiveInt = 8
    """Rank of the adapters, where a method with adapters is chosen."""


Method = Annotated[
    LoraMethod | LorsumMethod | LoraMuonMethod | FullMethod | GumMethod | GaloreMethod | ZoMethod | AutoMethod,
    Field(discriminator="kind"),
]
