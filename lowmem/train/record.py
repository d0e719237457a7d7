"""The written record of a run: metrics.jsonl always, and the trackers named in `report_to`.

One JSON object a line, flushed as it happens. On resume, lines after the checkpoint's step are dropped first, so the
file of a killed and resumed run equals that of an uninterrupted one in everything but the clock and one `RunStarted`
for each start.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lowmem.errors import ConfigError, FormatError
from lowmem.events import EvalDone, Event, Notice, RunFinished, RunStarted, StepDone, TextDelta, as_record

Log = Callable[[dict[str, float], int], None]


class MetricsFile:
    """A `Sink` that appends records to `path`."""

    def __init__(self, path: Path, *, keep_through_step: int | None = None) -> None:
        """Starts a new file, or keeps the records up to and including `keep_through_step` updates."""
        kept = [] if keep_through_step is None else [r for r in read_metrics(path) if _belongs(r, keep_through_step)]
        partial = path.with_name(f".partial-{path.name}")
        partial.write_text("".join(f"{json.dumps(record)}\n" for record in kept))
        os.replace(partial, path)
        self._file = path.open("a")
        self._notices = {record["message"] for record in kept if record["event"] == Notice.__name__}

    def __call__(self, event: Event) -> None:
        if isinstance(event, TextDelta) or (isinstance(event, Notice) and event.message in self._notices):
            return
        self._file.write(json.dumps(_finite(as_record(event))) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Everything is on disk. Closing again does nothing."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl; a last line cut short by a crash is dropped. Raises `FormatError` on other damage."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise FormatError(f"{path}:{number}: not a JSON record of an event; the file is damaged")
    return records


def _parse(line: str) -> dict[str, Any] | None:
    """The record in `line`, None when there is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "event" in record else None


def trackers(
    names: Sequence[str], *, folder: Path, run_name: str, config: dict[str, Any], start_step: int = 0
) -> list[Log]:
    """Loggers of `report_to`. Raises `ConfigError` with the command that installs a missing one."""
    return [_tracker(name, folder=folder, run_name=run_name, config=config, start_step=start_step) for name in names]


def track(logs: Sequence[Log], event: Event) -> None:
    """Numbers of a step or an evaluation go to every tracker."""
    match event:
        case StepDone():
            values = {
                "train/loss": event.loss,
                "train/lr": event.lr,
                "train/tokens_per_second": event.tokens_per_second,
            }
            values |= {f"train/{name}": value for name, value in event.details.items()}
        case EvalDone():
            values = {f"eval/{event.split}/{name}": value for name, value in event.metrics.items()}
        case _:
            return
    for log in logs:
        log(values, event.step)


def _tracker(name: str, *, folder: Path, run_name: str, config: dict[str, Any], start_step: int) -> Log:
    try:
        match name:
            case "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None)

                def to_tensorboard(values: dict[str, float], step: int) -> None:
                    for key, value in values.items():
                        writer.add_scalar(key, value, step)
                    writer.flush()

                return to_tensorboard
            case "wandb":
                import wandb

                run = wandb.init(project="lowmem", name=run_name, dir=str(folder), config=config)
                return lambda values, step: run.log(values, step=step)
            case _:
                import trackio

                trackio.init(project="lowmem", name=run_name, config=config)
                return lambda values, step: trackio.log(values, step=step)
    except ImportError as error:
        raise ConfigError(
            f"report_to: {name} is not installed; run `pip install 'lowmem[{name}]'` or remove it"
        ) from error


def _belongs(record: dict[str, Any], step: int) -> bool:
    """Whether an uninterrupted run would hold this record `step` updates in: not a later step, and nothing of an end,
    which the resumed run reaches again."""
    if record["event"] == RunFinished.__name__ or record.get("reason") in ("interrupted", "final"):
        return False
    if str(record.get("split", "")).startswith("after:"):
        return False
    if record["event"] in (RunStarted.__name__, Notice.__name__):
        return True
    return int(record["step"]) <= step


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite is written as its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
