"""What `lowmem quantize` may be asked: how weights are coded, on which text, and what the result must still do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from lowmem.config.base import Section
from lowmem.config.dataset import Dataset
from lowmem.errors import ConfigError
from lowmem.units import parse_bytes

Codec = Literal["s2", "s3", "s4", "e8", "e8r", "nested"]
CODEC_BITS: dict[Codec, int] = {"s2": 2, "e8": 2, "s3": 3, "e8r": 3, "s4": 4, "nested": 4}
DEFAULT_CODEC: dict[int, Codec] = {2: "e8", 3: "s3", 4: "s4"}
DEFAULT_BITS = 4


class Calibration(Section):
    """The text on which second moments of the layers' inputs are taken."""

    tokens: PositiveInt = 16384
    """At least this many are read, where the dataset has them. More = better at 2 bits, slower, and memory grows by
    the model's width for each."""
    max_length: PositiveInt | None = None
    """Longest row. Default: the run's, or 512."""
    batch_size: PositiveInt = 4
    """Rows of one length that are read at a time."""
    sensitivity_tokens: PositiveInt = 1024
    """Tokens on which every layer's sensitivity is measured; used with `size` and `average_bits` only."""


class Gate(Section):
    """What the quantized model, read back from its files, must still do on text it was not calibrated on.

    The defaults are choices, not measurements: a good 2-bit model of several billion weights passes them, a broken one
    does not.
    """

    tokens: PositiveInt = 2048
    """Tokens that are compared; the original's log-probabilities wait on the disk, 4 bytes x vocabulary a token."""
    max_divergence: PositiveFloat = 0.5
    """Mean KL divergence from the original, nats per token."""
    max_perplexity_ratio: PositiveFloat = 1.5
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.65
    """Share of tokens where the original's first choice is still the first."""
    prompts: tuple[str, ...] = ()
    """Answered by both models. Default: beginnings of the held-out text."""
    prompt_count: NonNegativeInt = 8
    """How many beginnings are taken when `prompts` is empty; 0 = no answers are compared."""
    max_new_tokens: PositiveInt = 128
    max_broken: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of prompts where the answer is empty, loops or is one token over and over, and the original's is not."""


class Recovery(Section):
    """Training on top of the quantized weights, on the calibration dataset."""

    steps: NonNegativeInt = 0
    """0 = none."""
    method: Literal["lora", "lorsum", "zo"] = "lora"
    """lora and lorsum train an adapter; zo trains one by zeroth order, with the memory of inference."""
    lora_r: PositiveInt = 16
    learning_rate: PositiveFloat | None = None
    """Default: the method's."""
    per_device_train_batch_size: PositiveInt = 4
    gradient_accumulation_steps: PositiveInt = 1


class QuantizeConfig(Section):
    """Everything that `lowmem quantize` needs; written to the result as quantize.json."""

    model: Annotated[str, Field(min_length=1)]
    """A run folder, a model folder, a hub id or an embedded name."""
    output: str | None = None
    """The new folder. Default: beside the run or model folder, or here, with the bits in its name."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """What the model computes in while it is quantized. Default: bf16 on a GPU, fp32 on a CPU."""
    trust_remote_code: bool = False

    bits: Literal[2, 3, 4] | None = None
    """Bits per weight of the linear layers; 4 unless something else decides."""
    codec: Codec | None = None
    """s2 s3 s4: scalar levels. e8 e8r nested: the lattice at 2, 3, 4 bits (nested holds a 2-bit model in its first
    half). Default: e8 for 2 bits, s3 for 3, s4 for 4."""
    size: str | None = None
    """The whole file at most, for example 2.5GiB: bits are then chosen per layer by measured sensitivity."""
    average_bits: PositiveFloat | None = None
    """Bits per weight of the linear layers together, everything counted; chosen per layer as with `size`."""
    mixed_codecs: tuple[Codec, ...] = ("e8", "s3", "s4")
    """What `size` and `average_bits` choose from."""
    rotation: Literal["auto", "none", "rht", "harp"] = "auto"
    """Of each layer before it is coded. harp is fitted to the layer and kept where it loses less than rht.
    auto: harp where s2 may be used, else rht, which takes a fraction of the time and 0.16 bits less, and with e8 had
    the lower perplexity on the one real model that was measured (docs/results.md)."""
    rotation_steps: PositiveInt = 200
    """Of the fit of harp."""
    feedback: Literal["ldlq", "nearest"] = "ldlq"
    """ldlq: later columns make up for the errors of earlier ones. nearest: plain rounding."""
    sweeps: NonNegativeInt = 2
    """Passes of coordinate descent after ldlq."""
    group_size: NonNegativeInt = 0
    """Weights of a row that share a scale, a multiple of 64; 0 = the whole row."""
    embeddings: Literal[4, 8, 16] = 8
    """Bits of the token embeddings and of the head; 16 = as they are."""
    skip: tuple[str, ...] = ()
    """Linear layers that stay as they are, by name; * stands for anything."""
    workers: PositiveInt = 1
    """Layers coded at a time, each with the memory of one."""

    dataset: tuple[Dataset, ...] = ()
    """Calibration text. Default: the run's training data."""
    eval_dataset: tuple[Dataset, ...] = ()
    """Text for the gate. Default: the run's, else rows of `dataset` that were not read for calibration."""
    calibration: Calibration = Calibration()
    gate: Gate = Gate()
    recover: Recovery = Recovery()

    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: PositiveInt | None = None
    memory_budget: str | None = None
    """For example 24GiB; quantizing is refused where its plan needs more."""

    @field_validator("size", "memory_budget")
    @classmethod
    def _is_a_size(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                parse_bytes(text)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return text

    @field_validator("group_size")
    @classmethod
    def _whole_blocks(cls, size: int) -> int:
        if size % 64:
            raise ValueError(f"{size} is no multiple of 64, the weights of a block; use 64, 128, 256 or 0")
        return size

    @model_validator(mode="after")
    def _coherent(self) -> QuantizeConfig:
        if self.codec is not None and self.bits is not None and CODEC_BITS[self.codec] != self.bits:
            fitting = ", ".join(codec for codec, bits in CODEC_BITS.items() if bits == self.bits)
            raise ValueError(
                f"codec: {self.codec} has {CODEC_BITS[self.codec]} bits and bits: {self.bits} was asked for; "
                f"{self.bits} bits are {fitting}; give one of the two keys"
            )
        if self.size is not None and self.average_bits is not None:
            raise ValueError("size and average_bits both say how large the result may be; give one of them")
        fixed = "bits" if self.bits is not None else "codec" if self.codec is not None else None
        if self.is_mixed and fixed is not None:
            raise ValueError(f"{fixed}: every layer would get the same; size and average_bits choose per layer")
        if self.is_mixed and not self.mixed_codecs:
            raise ValueError("mixed_codecs: is empty, so there is nothing to choose from; name two or more")
        return self

    @property
    def is_mixed(self) -> bool:
        """Whether bits differ from layer to layer."""
        return self.size is not None or self.average_bits is not None

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """Everything that a layer may be coded with."""
        if self.is_mixed:
            return self.mixed_codecs
        return (self.codec or DEFAULT_CODEC[self.bits or DEFAULT_BITS],)

    @property
    def candidates(self) -> tuple[Literal["none", "rht", "harp", "harp-conditional"], ...]:
        """Rotations that are tried on every layer."""
        match self.rotation:
            case "none":
                return ("none",)
            case "auto" if "s2" not in self.codecs:
                return ("rht",)
            case "rht":
                return ("rht",)
            case _:
                return ("rht", "harp", "harp-conditional")

    @property
    def label(self) -> str:
        """What the bits are called in a name: 4bit, 2.5bit, 2.5GiB."""
        if self.size is not None:
            return self.size.replace(" ", "")
        return f"{self.average_bits or CODEC_BITS[self.codecs[0]]:g}bit"
