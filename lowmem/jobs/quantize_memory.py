"""What quantizing was planned to take and what it took: the plan before, a count of live tensors while it happens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lowmem.config.run import RunConfig
from lowmem.jobs.folder import write_atomically
from lowmem.jobs.plan import this_device
from lowmem.jobs.quantize_bits import coded_bytes, options_of
from lowmem.jobs.quantize_source import Asked, Material
from lowmem.models.load import load_config, meta_model
from lowmem.plan.fakes import fake_model, with_depth
from lowmem.plan.quantizing import QuantizingBill, predict_quantizing, require_room
from lowmem.plan.tracker import LiveBytes
from lowmem.quant.model import tables_of
from lowmem.units import parse_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEPTH = 2
"""Blocks of the model that is simulated: enough for masks of two kinds of layers."""


def predict(asked: Asked, text: Material) -> QuantizingBill:
    """The bill of the request; no weights are read."""
    config, source = asked.config, asked.source
    model = meta_model(source)
    shape = load_config(source)
    run = RunConfig.model_validate(
        {
            "model": source.model,
            "dtype": source.dtype,
            "attn_implementation": source.attn_implementation,
            "trust_remote_code": source.trust_remote_code,
            "dataset": [section.model_dump() for section in asked.datasets],
        }
    )
    depth = min(DEPTH, shape.get_text_config().num_hidden_layers)
    tables = [] if config.embeddings == 16 else [tuple(table.shape) for _, table in tables_of(model)]
    return predict_quantizing(
        model,
        fake_model(run, with_depth(shape, depth)),
        [batch.inputs for batch in text.calibration],
        [(batch.inputs, len(batch.rows)) for batch in text.gate],
        [options_of(config, kind) for kind in config.codecs],
        tables=[(m, n) for m, n in tables],
        codes=coded_bytes(model, config, asked.stored_dtype),
        workers=config.workers,
    )


def require_memory(asked: Asked, bill: QuantizingBill) -> None:
    """Raises `BudgetError` with the bill when there is a memory budget and the plan exceeds it."""
    if asked.config.memory_budget is not None:
        overhead = this_device(asked.config.device).bill(0)
        require_room(bill, parse_bytes(asked.config.memory_budget), overhead)


class Meter:
    """Counts live tensors in the phases of the plan; of the blocks, until the first one that is coded here.

    Every operation is watched, which costs a fraction of a block's time. What a run before this one measured is kept.
    """

    def __init__(self, file: Path, predicted: Mapping[str, int]) -> None:
        self._file, self._predicted = file, predicted
        self._measured: dict[str, int] = json.loads(file.read_text()) if file.is_file() else {}
        self._open = ExitStack()

    @contextmanager
    def phase(self, name: str, model: PreTrainedModel) -> Iterator[None]:
        """Peaks inside belong to `name`, until `done` is called."""
        tracker = LiveBytes()
        tracker.track_module(model)
        self._open = ExitStack()
        with self._open:
            self._open.enter_context(tracker)
            self._open.enter_context(tracker.phase(name))
            self._open.callback(self._note, name, tracker)
            yield

    def done(self) -> None:
        """The phase that is going on is not watched any further."""
        self._open.close()

    def record(self) -> dict[str, dict[str, int | None]]:
        """Predicted and measured bytes by phase."""
        return {
            phase: {"predicted": nbytes, "measured": self._measured.get(phase)}
            for phase, nbytes in self._predicted.items()
        }

    def _note(self, name: str, tracker: LiveBytes) -> None:
        self._measured.setdefault(name, tracker.peaks[name])
        write_atomically(self._file, json.dumps(self._measured))
