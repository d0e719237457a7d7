"""`lowmem demo`: the main job on what comes with the package, without network or GPU."""

from __future__ import annotations

from pathlib import Path

from lowmem.config.load import load_run
from lowmem.config.presets import preset_path
from lowmem.events import Sink
from lowmem.jobs.train import TrainReport, train

PRESET = "tiny-demo"


def demo(output_dir: Path, *, overwrite: bool, sink: Sink) -> TrainReport:
    """The embedded reasoner is taught a task it has never seen; the run folder with its report is `output_dir`."""
    config = load_run(preset_path(PRESET)).config.model_copy(update={"output_dir": str(output_dir)})
    return train(config, sink=sink, overwrite=overwrite)
