"""GGUF files as ordinary transformers folders: dequantized once, kept as bf16 safetensors."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from lowmem.errors import FormatError
from lowmem.models.quiet import quiet_transformers


def convert_gguf(file: Path, target: Path) -> Path:
    """`target` is a transformers folder with the weights and tokenizer of the GGUF `file`; returns `target`.

    Does nothing when `target` is there. Everything is written beside it and renamed at the end, so a folder
    of that name is always whole; of two processes that convert at once the second keeps the first one's work.
    """
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        _write(file, Path(scratch))
        try:
            Path(scratch).rename(target)
        except OSError:
            if not (target / "config.json").is_file():
                raise
    return target


def _write(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with quiet_transformers():
        try:
            # By default weights stay packed and cannot be saved; dequantized ones are ordinary.
            model = AutoModelForCausalLM.from_pretrained(
                **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
            )
            tokenizer = AutoTokenizer.from_pretrained(**where)
        except (ValueError, OSError) as error:
            raise FormatError(f"{file} cannot be read as a GGUF model: {error}") from error
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
