"""Constant tensors that are made once and kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

from torch._subclasses.fake_tensor import unset_fake_temporarily

P = ParamSpec("P")
R = TypeVar("R")


def constant(make: Callable[P, R]) -> Callable[P, R]:
    """`functools.cache` for functions of hashable arguments that make tensors: real ones, even during a plan.

    A plan runs on fake tensors; without this the first call within one would keep a fake for the run that follows.
    """
    kept = cache(make)

    @wraps(make)
    def once(*args: P.args, **kwargs: P.kwargs) -> R:
        with unset_fake_temporarily():
            return kept(*args, **kwargs)  # type: ignore[arg-type]

    return once
