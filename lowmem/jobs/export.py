"""`lowmem export`: a run or a model as other tools read it, from its result or from any of its checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from lowmem.config.quantization import NoQuantization
from lowmem.errors import ConfigError
from lowmem.events import Notice, Sink
from lowmem.jobs.merge import refuse_used, save_model
from lowmem.jobs.rebuild import export_checkpoint
from lowmem.jobs.target import DtypeName
from lowmem.models.gguf_export import write_gguf
from lowmem.models.load import LoadedModel, load_model
from lowmem.models.packed_folder import is_packed
from lowmem.models.resolve import RunFolder, resolve
from lowmem.models.source import ModelSource, pick_device

ExportFormat = Literal["hf", "gguf"]


def export(
    target: str,
    output: Path,
    *,
    to: ExportFormat = "hf",
    dtype: DtypeName | None = None,
    checkpoint: Path | None = None,
    sink: Sink,
) -> Path:
    """`output` holds the model: a transformers folder with every weight, or a 16-bit GGUF file.

    `checkpoint` (of a run, hf only) exports the weights or the adapter of that moment; a zeroth-order run that kept its
    replay log alone is rebuilt, exactly. Raises `ConfigError` when `output` is in use or the two do not go together.
    """
    refuse_used(output)
    if checkpoint is not None:
        if to != "hf" or not isinstance(resolve(target), RunFolder):
            raise ConfigError("--checkpoint belongs to a run folder and to --to hf; export that first, then --to gguf")
        export_checkpoint(Path(target), output, sink=sink, checkpoint=checkpoint)
        return output
    loaded = _load(target, dtype, sink)
    output.parent.mkdir(parents=True, exist_ok=True)
    if to == "gguf":
        write_gguf(loaded.model, loaded.tokenizer, output)
    else:
        save_model(loaded, output)
    return output


def _load(target: str, dtype: DtypeName | None, sink: Sink) -> LoadedModel:
    """The model in 16 or 32 bits, an adapter folded in."""
    location = resolve(target)
    run = location.config if isinstance(location, RunFolder) else None
    if run is not None and not isinstance(run.quantization, NoQuantization):
        raise ConfigError(
            f"{target} was trained on a {run.quantization.kind} base; `lowmem merge` folds it into the full base and "
            "checks that nothing was lost, then export the result"
        )
    source = ModelSource(target) if run is None else dataclasses.replace(ModelSource.from_config(run), model=target)
    if dtype is not None:
        source = dataclasses.replace(source, dtype=dtype)
    loaded = load_model(source, device=pick_device("cpu"), adapter="merge", sink=sink)
    if is_packed(loaded.model):
        sink(Notice(f"{target} is quantized: the export holds what its codes stand for, at full size"))
        loaded.model.dequantize(dtype=source.torch_dtype)
    return loaded
