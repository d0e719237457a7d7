"""A folder of coded weights, one safetensors file per block, so that quantizing can stop and go on.

A file appears whole or not at all, names the run it belongs to, and carries a digest of each tensor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lowmem.errors import CheckpointError
from lowmem.quant.format import digest, read_weight, weight_header, weight_tensors
from lowmem.quant.quantize import QuantizedWeight


class WeightStore:
    """Coded weights of one run, by part (`block-000`, `embeddings`). `fingerprint` says which model and options."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, part: str) -> Path:
        return self.folder / f"{part}.safetensors"

    def save(self, part: str, weights: Mapping[str, QuantizedWeight]) -> None:
        """Write one part; an older file of that part is replaced."""
        from safetensors.torch import save_file

        tensors = {f"{name}.{key}": t for name, weight in weights.items() for key, t in weight_tensors(weight).items()}
        metadata = {
            "fingerprint": self.fingerprint,
            "weights": json.dumps({name: weight_header(weight) for name, weight in weights.items()}),
            "digests": json.dumps({key: digest(tensor) for key, tensor in tensors.items()}),
        }
        unfinished = self.path(part).with_suffix(".writing")
        save_file(tensors, str(unfinished), metadata=metadata)
        os.replace(unfinished, self.path(part))

    def load(self, part: str) -> dict[str, QuantizedWeight] | None:
        """The weights of a part, or None where it was not written yet.

        Raises `CheckpointError` for a file of another run, an unreadable file, and a tensor whose digest differs.
        """
        from safetensors import SafetensorError, safe_open

        path = self.path(part)
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{path} cannot be read ({error}); delete it to code that part again") from error
        if metadata.get("fingerprint") != self.fingerprint:
            raise CheckpointError(f"{path} belongs to another model or other options; use another folder")
        for key, wanted in json.loads(metadata["digests"]).items():
            if key not in tensors or digest(tensors[key]) != wanted:
                raise CheckpointError(f"{path}: tensor {key!r} is damaged; delete the file to code that part again")
        headers = json.loads(metadata["weights"])
        return {
            name: read_weight(
                name, header, {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}
            )
            for name, header in headers.items()
        }
