"""Constant tensors that are made once and kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

P = ParamSpec("P")
R = TypeVar("R")


def constant(make: Callable[P, R]) -> Callable[P, R]:
    """`functools.cache` for functions of hashable arguments that make tensors: real, ordinary ones.

    The first caller may be a plan, which runs on fake tensors, or generation in inference mode; what is kept must serve
    the run and the training step that follow. Inference tensors cannot be saved for a backward pass.
    """
    kept = cache(make)

    @wraps(make)
    def once(*args: P.args, **kwargs: P.kwargs) -> R:
        with unset_fake_temporarily(), torch.inference_mode(False):
            return kept(*args, **kwargs)  # type: ignore[arg-type]

    return once
