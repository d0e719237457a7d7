"""What `chat`, `generate` and `eval` are pointed at: a model by name, or a run folder, which is enough by itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from lowmem.config.generation import GenerationConfig
from lowmem.config.run import RunConfig
from lowmem.events import Sink
from lowmem.models.load import LoadedModel, load_model
from lowmem.models.resolve import RunFolder, resolve
from lowmem.models.source import ModelSource, pick_device

DtypeName = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Target:
    """A model that is ready to be used."""

    loaded: LoadedModel
    generation: GenerationConfig
    """How its run said that answers are sampled; the defaults for a model that is no run."""
    run: RunConfig | None
    """The config of the run, if it is one."""


def open_target(target: str, *, sink: Sink, device: str = "auto", dtype: DtypeName | None = None) -> Target:
    """The model named `target`, loaded as its run trained it: adapter beside the base, same dtype and quantization.

    `dtype` overrides the run's (default for a model that is no run: bf16). Raises what `load_model` raises.
    """
    location = resolve(target)
    run = location.config if isinstance(location, RunFolder) else None
    source = ModelSource(target) if run is None else dataclasses.replace(ModelSource.from_config(run), model=target)
    if dtype is not None:
        source = dataclasses.replace(source, dtype=dtype)
    loaded = load_model(source, device=pick_device(device), adapter="keep", sink=sink)
    return Target(loaded, GenerationConfig() if run is None else run.generation, run)
