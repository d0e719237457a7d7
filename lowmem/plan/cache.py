"""Predictions kept on disk: the same question to the same code and libraries is answered at once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowmem.config.run import RunConfig
from lowmem.plan.extrapolate import Prediction, predict
from lowmem.plan.simulate import Work
from lowmem.plan.tracker import Peak

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_KEYS = (
    *("dtype", "attn_implementation", "quantization", "method", "optimizer", "max_grad_norm"),
    *("gradient_checkpointing", "loss_chunk_tokens"),
)
"""The keys of a config that a prediction depends on, besides the shape and the batch."""
_PACKAGES = ("torch", "transformers", "peft")
_SOURCES = ("plan", "methods", "models", "kernels", "data")


def cached_predict(
    config: RunConfig, shape: PretrainedConfig, work: Work, *, granularity: int, folder: Path | None
) -> Prediction:
    """`predict`, answered from `folder` where it was asked before; a damaged entry is asked again."""
    if folder is None:
        return predict(config, shape, work, granularity=granularity)
    path = folder / f"{_digest(config, shape, work, granularity)}.json"
    if path.is_file():
        try:
            return _read(path)
        except (ValueError, KeyError, TypeError):
            path.unlink()
    found = predict(config, shape, work, granularity=granularity)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(found)))
    partial.replace(path)
    return found


def _read(path: Path) -> Prediction:
    plain: dict[str, Any] = json.loads(path.read_text())
    phases = {name: Peak(peak["nbytes"], peak["components"]) for name, peak in plain["phases"].items()}
    return Prediction(phases, plain["resident"], plain["parameters"], plain["trainable"])


def _digest(config: RunConfig, shape: PretrainedConfig, work: Work, granularity: int) -> str:
    asked = {
        "config": config.model_dump(mode="json", include=set(_KEYS)),
        "shape": shape.to_json_string(use_diff=False),
        "work": asdict(work),
        "granularity": granularity,
        "code": _code_digest(),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """Changes with every source file that a simulation runs, and with the libraries under it."""
    digest = hashlib.sha256(json.dumps({name: version(name) for name in _PACKAGES}).encode())
    package = Path(__file__).resolve().parent.parent
    for room in _SOURCES:
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
