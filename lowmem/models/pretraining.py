"""Which optimizer a base model was pretrained with, where its makers said so.

Finetuning a model by all its weights with the optimizer that pretrained it forgets less at the same learning
(arXiv 2605.06654, read as an abstract and figures). So that optimizer is the default where it is known, and AdamW where
it is not. The table holds what technical reports state; a model that is missing is not guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowmem.models.resolve import RunFolder, resolve

Known = Literal["adamw", "muon", "lion"]


@dataclass(frozen=True)
class Pretraining:
    """The optimizer's kind as the config names it, and where that is said."""

    optimizer: str
    source: str


_REPORTS: tuple[tuple[str, Known, str], ...] = (
    (r"moonlight", "muon", "Moonlight's report, arXiv 2502.16982: Muon, AdamW off the matrices"),
    (r"kimi-k2", "muon", "Kimi K2's report, arXiv 2507.20534: MuonClip"),
    (r"glm-4\.5", "muon", "GLM-4.5's report, arXiv 2508.06471: Muon off embeddings, biases and norms"),
    (r"nanochat", "muon", "nanochat's training script: Muon for matrices, AdamW for the rest"),
    (r"(?:^|/)opt-\d", "adamw", "OPT's paper, arXiv 2205.01068: AdamW"),
    (r"llama-[23]", "adamw", "Llama 2 and 3 reports, arXiv 2307.09288 and 2407.21783: AdamW"),
    (r"smollm2", "adamw", "SmolLM2's report, arXiv 2502.02737: AdamW"),
    (r"olmo-?2", "adamw", "OLMo 2's report, arXiv 2501.00656: AdamW"),
    (r"pythia", "adamw", "Pythia's paper, arXiv 2304.01373: Adam"),
    (r"mpt-7b", "lion", "MPT-7B's announcement by MosaicML: Lion"),
)


def pretraining_of(model: str) -> Pretraining | None:
    """What is known of `model`, by its name; of a run folder the optimizer that trained every weight last."""
    if Path(model).is_dir():
        location = resolve(model)
        if isinstance(location, RunFolder):
            run = location.config
            if run.method.kind == "full":
                return Pretraining(run.optimizer.kind, f"the run in {location.folder}")
            return pretraining_of(run.model)
    for pattern, optimizer, source in _REPORTS:
        if re.search(pattern, model.lower()):
            return Pretraining(optimizer, source)
    return None
