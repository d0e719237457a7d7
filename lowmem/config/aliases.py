"""Words of other tools that are accepted for ours, keys that have no counterpart, and names of secrets."""

from __future__ import annotations

import re

TOP_LEVEL = {
    "model_name_or_path": "model",
    "base_model": "model",
    "checkpoint_dir": "model",
    "model_revision": "revision",
    "attn_impl": "attn_implementation",
    "dataset_name": "dataset",
    "datasets": "dataset",
    "data": "dataset",
    "train_file": "dataset",
    "validation_file": "eval_dataset",
    "val_dataset": "eval_dataset",
    "test_datasets": "eval_dataset",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
    "max_seq_length": "max_length",
    "train_on_inputs": "train_on_prompt",
    "micro_batch_size": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
    "grad_accumulation_steps": "gradient_accumulation_steps",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "gradient_clipping": "max_grad_norm",
    "num_epochs": "num_train_epochs",
    "epochs": "num_train_epochs",
    "iters": "max_steps",
    "random_seed": "seed",
    "max_samples": "dataset.limit",
    "budget": "memory_budget",
    "finetuning_type": "method",
    "training_type": "method",
    "tuner_type": "method",
    "adapter": "method",
    "optim": "optimizer",
    "weight_decay": "optimizer.weight_decay",
    "adam_epsilon": "optimizer.eps",
    "momentum": "optimizer.momentum",
    "lora_r": "method.lora_r",
    "lora_rank": "method.lora_r",
    "rank": "method.lora_r",
    "lora_alpha": "method.lora_alpha",
    "lora_dropout": "method.lora_dropout",
    "lora_target": "method.lora_target_modules",
    "lora_target_modules": "method.lora_target_modules",
    "target_modules": "method.lora_target_modules",
    "use_rslora": "method.use_rslora",
    "use_dora": "method.use_dora",
    "zo_eps": "method.zo_eps",
    "zo_algorithm": "method.algorithm",
    "max_new_tokens": "generation.max_new_tokens",
    "temperature": "generation.temperature",
    "top_p": "generation.top_p",
    "top_k": "generation.top_k",
    "torch_dtype": "dtype",
    "precision": "dtype",
    "quantization_bit": "quantization",
}
"""Alias -> canonical key."""

IN_SECTION = {
    "method": {
        "r": "lora_r",
        "rank": "lora_r",
        "lora_rank": "lora_r",
        "alpha": "lora_alpha",
        "target_modules": "lora_target_modules",
        "lora_target": "lora_target_modules",
        "type": "kind",
        "name": "kind",
        "eps": "zo_eps",
    },
    "optimizer": {"name": "kind", "type": "kind", "adam_epsilon": "eps"},
    "quantization": {"type": "kind", "method": "kind"},
    "dataset": {
        "type": "format",
        "name": "subset",
        "max_samples": "limit",
        "num_samples": "limit",
        "seed": "shuffle_seed",
    },
    "generation": {"max_tokens": "max_new_tokens"},
}
IN_SECTION["eval_dataset"] = IN_SECTION["dataset"]

OWN_KEYS = {("method", "gum"): ("rank",), ("method", "galore"): ("rank",), ("method", "zo"): ("rank",)}
"""By section and kind: keys that mean themselves there and are aliases elsewhere."""

_DTYPES = {
    "bfloat16": "bf16",
    "bf16-true": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
    "torch.float32": "fp32",
}
_SCHEDULERS = {"constant_with_warmup": "constant", "cosine_with_warmup": "cosine"}
_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_8bit": "adamw8bit",
    "adamw_bnb_8bit": "adamw8bit",
}
METHODS: dict[str, dict[str, str]] = {
    "mezo": {"kind": "zo", "algorithm": "mezo"},
    "adanaged": {"kind": "zo", "algorithm": "adanaged"},
    "full-finetuning": {"kind": "full"},
}
_FORMATS = {
    "sharegpt": "messages",
    "chat_template": "messages",
    "chat": "messages",
    "instruction": "alpaca",
    "jsonl": "auto",
    "json": "auto",
    "squad": "qa",
}
QUANTIZATION_BITS = {4: "nf4", 8: "int8", 16: "none", 32: "none"}
VALUES: dict[str, dict[str, str]] = {
    "dtype": _DTYPES,
    "lr_scheduler_type": _SCHEDULERS,
    "optimizer": _OPTIMIZERS,
    "dataset.format": _FORMATS,
}

ELSEWHERE = {
    "resume_from_checkpoint": "remove it and resume with `lowmem train CONFIG --resume`",
    "auto_resume_from_checkpoints": "remove it and resume with `lowmem train CONFIG --resume`",
    "overwrite_output_dir": "remove it and overwrite with `lowmem train CONFIG --overwrite`",
    "do_train": "what is done is said by the verb, `lowmem train CONFIG`; remove it",
    "do_eval": "name an eval_dataset: it is evaluated before the first and after the last step; remove it",
    "stage": "supervised finetuning is the only stage; remove it",
    "template": "the tokenizer's own chat template is used; remove it, or give a Jinja text as chat_template",
    "packing": "plain text (`format: text`) is always packed, other formats never; remove it",
    "sample_packing": "plain text (`format: text`) is always packed, other formats never; remove it",
    "flash_attn": "use attn_implementation: sdpa, which picks the fastest kernel there is",
    "flash_attention": "use attn_implementation: sdpa, which picks the fastest kernel there is",
    "eval_strategy": "set eval_steps, or leave both out to evaluate before and after",
    "evaluation_strategy": "set eval_steps, or leave both out to evaluate before and after",
    "save_strategy": "set save_steps, or leave both out to save at the end",
    "val_size": "name an eval_dataset",
    "val_set_size": "name an eval_dataset",
    "dataset_dir": "write the path into dataset",
    "deepspeed": "sharding is not supported; quantization: nf4 or method: zo need less memory",
}
"""Keys of other tools that have no counterpart: what to do instead."""

_SECRET = re.compile(r"(?:^|_)(?:token|api_?key|access_key|password|passwd|secret|credentials?)$", re.IGNORECASE)
_NOT_SECRET = re.compile(r"(?:pad|eos|bos|unk|mask|sep|cls|stop|end)_token$", re.IGNORECASE)


def is_secret(key: str) -> bool:
    """Whether a key of this name holds something that must not be in a file."""
    return bool(_SECRET.search(key)) and not _NOT_SECRET.search(key)


def secret_advice(key: str) -> str:
    """What to do instead of writing the secret down."""
    variable = "WANDB_API_KEY" if "wandb" in key.lower() else "HF_TOKEN"
    return f"secrets belong neither into a config nor on a command line; set the environment variable {variable}"
