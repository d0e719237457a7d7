"""The frozen base in 4 or 8 bits: what transformers and bitsandbytes are asked for."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, assert_never

import torch

from lowmem.config.quantization import Int8, Nf4, NoQuantization, Quantization
from lowmem.errors import ConfigError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


def quantization_request(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How to quantize while loading, computing in `dtype`; None for a base that keeps its dtype.

    Raises `ConfigError` with the command that helps when bitsandbytes is not installed.
    """
    if isinstance(quantization, NoQuantization):
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"quantization.kind: {quantization.kind} needs bitsandbytes, which is not installed; "
            "get it with: pip install 'lowmem[bnb]', or use quantization: none"
        )
    from transformers import BitsAndBytesConfig

    match quantization:
        case Nf4(double_quant=double_quant):
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=double_quant,
                bnb_4bit_compute_dtype=dtype,
            )
        case Int8():
            # int8 products are always fp16 inside; bitsandbytes says so for every layer of every forward.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
            return BitsAndBytesConfig(load_in_8bit=True)
        case _:
            assert_never(quantization)
