"""A run folder as training leaves it, around a tiny random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowmem.config.load import dump_run
from lowmem.config.run import RunConfig
from tests.models.tiny import save_tiny, tiny_model, tiny_tokenizer


def make_run(folder: Path, *, chat: bool = False, **keys: Any) -> RunConfig:
    """Base in `folder`/base, the run in `folder`/run with full weights (seed 1) in its model/."""
    base = save_tiny(folder / "base", chat=chat)
    config = RunConfig.model_validate(
        {"model": str(base), "dtype": "fp32", "dataset": [{"format": "text", "path": "a.txt"}], **keys}
    )
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(dump_run(config))
    tiny_model(seed=1).save_pretrained(folder / "run" / "model")
    tiny_tokenizer(chat=chat).save_pretrained(folder / "run" / "model")
    return config
