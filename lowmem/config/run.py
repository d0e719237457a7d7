"""One run: the whole of what a YAML may say. Names are those of Hugging Face where they exist."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from lowmem.config.base import Section
from lowmem.config.coherence import objections
from lowmem.config.dataset import Dataset
from lowmem.config.forgetting import Forgetting
from lowmem.config.generation import GenerationConfig
from lowmem.config.loss import CrossEntropyLoss, Loss
from lowmem.config.method import (
    GaloreMethod,
    LoraMethod,
    LoraMuonMethod,
    LorsumMethod,
    Method,
    ZoMethod,
)
from lowmem.config.optimizer import AdamW, Optimizer
from lowmem.config.quantization import NoQuantization, Quantization
from lowmem.errors import ConfigError
from lowmem.units import parse_bytes

LORA_LEARNING_RATE = 2e-4
LORSUM_LEARNING_RATE = 0.3  # unlike adamw's: relative to a layer's inputs, see methods/lowrank/lorsum_rule.py
LORA_MUON_LEARNING_RATE = 1e-3
FULL_LEARNING_RATE = 2e-5  # a tenth of LoRA's: "LoRA without regret"
GALORE_LEARNING_RATE = 8e-5  # times the default scale of 0.25: full finetuning's
MEZO_LEARNING_RATE = 1e-6  # MeZO's grid for full weights is {1e-6, 1e-7} (arXiv 2305.17333)
MEZO_ADAPTER_LEARNING_RATE = 5e-5
ZO_SIGN_LENGTH = 1e-4  # its steps agree with each other for as long as the history lasts
ZO_STEP_LENGTH = 1e-3  # per weight, of the algorithms that divide by a slope; larger models want less


PLANNED = ("per_device_train_batch_size", "gradient_checkpointing")
"""Keys that accept `auto` in a file or on the command line (`lowmem.config.load` moves them to `auto`)."""


class RunConfig(Section):
    """Everything a run needs; the resolved form is written to the run folder as config.yaml."""

    model: Annotated[str, Field(min_length=1)]
    """A hub id, a local folder, a run folder, or an embedded name: tiny-reasoner, smollm2-135m-instruct."""
    revision: str | None = None
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of the weights."""
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you say so."""
    quantization: Quantization = NoQuantization()

    dataset: tuple[Dataset, ...] = Field(min_length=1)
    eval_dataset: tuple[Dataset, ...] = ()
    max_length: PositiveInt = 512
    """Longer samples are cut (the prompt from the left, never the answer). Lower = less memory."""
    train_on_prompt: bool = False
    """Also train on the prompt's tokens. Default: on completions only."""
    chat_template: str | None = None
    """A Jinja template that replaces the tokenizer's."""

    loss: Loss = CrossEntropyLoss()
    method: Method = LoraMethod()
    optimizer: Optimizer = AdamW()
    learning_rate: PositiveFloat | None = None
    """Peak learning rate. Default: per method. Parameter-free methods refuse it."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] | None = None
    """Default: linear, but constant for zeroth order."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_steps: NonNegativeInt = 0
    """Takes precedence over `warmup_ratio` when both are set."""
    max_grad_norm: PositiveFloat | None = 1.0
    num_train_epochs: PositiveFloat = 3.0
    max_steps: PositiveInt | None = None
    """Takes precedence over `num_train_epochs`."""
    per_device_train_batch_size: PositiveInt = 8
    per_device_eval_batch_size: PositiveInt = 8
    gradient_accumulation_steps: PositiveInt = 1
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, much less memory."""
    loss_chunk_tokens: PositiveInt = 256
    """Tokens whose logits are alive at a time. Lower = less memory, slightly slower."""
    auto: tuple[Literal["per_device_train_batch_size", "gradient_checkpointing"], ...] = ()
    """Keys left to the planner; `gradient_checkpointing: auto` and `per_device_train_batch_size: auto` mean this."""
    seed: NonNegativeInt = 42

    eval_steps: PositiveInt | None = None
    """Evaluate every this many steps; always before the first and after the last."""
    eval_limit: PositiveInt | None = None
    """Evaluate on at most this many samples of each eval dataset."""
    eval_generate: bool = True
    """Also generate answers where the dataset has a verifier (exact match)."""
    metric_for_best_model: str = "loss"
    greater_is_better: bool | None = None
    """Default: False for names ending in loss or perplexity, True otherwise."""
    load_best_model_at_end: bool = False
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many evaluations without improvement."""
    save_steps: PositiveInt | None = None
    """Write a checkpoint every this many steps; one is always written at the end."""
    save_total_limit: PositiveInt = 2
    """Newest checkpoints kept; the best one is kept besides."""
    logging_steps: PositiveInt = 1
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Besides metrics.jsonl and report.html, which are always written."""
    run_name: str | None = None
    output_dir: Annotated[str, Field(min_length=1)] = "runs/default"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    fsdp: bool = False
    """Cut the decoder's layers over the processes of torchrun (FSDP2), for models that one device cannot hold."""
    num_threads: PositiveInt | None = None
    """CPU threads of torch. Default: torch's own choice."""
    memory_budget: str | None = None
    """For example 24GiB."""
    generation: GenerationConfig = GenerationConfig()
    forgetting: Forgetting | None = None
    """The grid of `lowmem diagnose forgetting`; other verbs ignore it."""

    @field_validator("memory_budget")
    @classmethod
    def _budget_is_a_size(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                parse_bytes(text)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return text

    @model_validator(mode="after")
    def _coherent(self) -> RunConfig:
        for objection in objections(self):
            raise ValueError(objection)
        return self

    @property
    def effective_batch_size(self) -> int:
        """Examples of a step in one process."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def peak_learning_rate(self) -> float:
        """The rate that the schedule multiplies; 1.0 for parameter-free methods."""
        match self.method:
            case ZoMethod(parameter_free=True):
                return 1.0
            case ZoMethod(algorithm="mezo" | "lozo", train="weights", train_adapter=None):
                default = MEZO_LEARNING_RATE
            case ZoMethod(algorithm="mezo" | "lozo"):
                default = MEZO_ADAPTER_LEARNING_RATE
            case ZoMethod(algorithm="zo_sign"):
                default = ZO_SIGN_LENGTH
            case ZoMethod():
                default = ZO_STEP_LENGTH
            case LorsumMethod():
                default = LORSUM_LEARNING_RATE
            case LoraMuonMethod():
                default = LORA_MUON_LEARNING_RATE
            case GaloreMethod():
                default = GALORE_LEARNING_RATE
            case LoraMethod():
                default = LORA_LEARNING_RATE
            case _:
                default = FULL_LEARNING_RATE
        return default if self.learning_rate is None else self.learning_rate

    @property
    def schedule(self) -> Literal["constant", "linear", "cosine"]:
        default: Literal["constant", "linear"] = "constant" if isinstance(self.method, ZoMethod) else "linear"
        return self.lr_scheduler_type or default

    @property
    def maximize_metric(self) -> bool:
        if self.greater_is_better is not None:
            return self.greater_is_better
        return not self.metric_for_best_model.endswith(("loss", "perplexity"))
