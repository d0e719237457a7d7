"""One coded weight as named tensors and a header, and back; digests that find a damaged tensor by name.

Tensors of a weight, all under its name: `plane0`, `plane1`, `scales`, and for each side (`left`, `right`) `signs` (one
bit each, little end first), `angles0..`, `angle_scales0..`. The header says the rest in JSON. Version 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lowmem.errors import FormatError
from lowmem.quant.codec import FORMAT_VERSION, PackedWeight
from lowmem.quant.quantize import CandidateReport, QuantizedWeight
from lowmem.quant.rotation import Rotation, Schedule, pack_signs, unpack_signs


def weight_tensors(weight: QuantizedWeight) -> dict[str, Tensor]:
    """Everything of `weight` that is a tensor, contiguous, sharing memory where it can."""
    tensors = {f"plane{k}": plane.contiguous() for k, plane in enumerate(weight.packed.planes)}
    tensors["scales"] = weight.packed.scales.contiguous()
    for side, rotation in (("left", weight.left), ("right", weight.right)):
        if rotation.signs is not None:
            tensors[f"{side}.signs"] = pack_signs(rotation.signs)
        for t, (angles, scales) in enumerate(zip(rotation.angles, rotation.angle_scales, strict=True)):
            tensors[f"{side}.angles{t}"], tensors[f"{side}.angle_scales{t}"] = angles, scales
    return tensors


def weight_header(weight: QuantizedWeight) -> dict[str, Any]:
    """Everything else, as JSON takes it."""
    packed = weight.packed
    return {
        "version": FORMAT_VERSION,
        "kind": packed.kind,
        "shape": list(packed.shape),
        "gain": packed.gain,
        "residual_scale": packed.residual_scale,
        "group_size": packed.group_size,
        "left": side_header(weight.left),
        "right": side_header(weight.right),
        "chosen": weight.chosen,
        "reports": [asdict(report) for report in weight.reports],
    }


def read_weight(name: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
    """The inverse of the two above. Raises `FormatError` naming `name` for another version or missing parts."""
    if header.get("version") != FORMAT_VERSION:
        raise FormatError(
            f"{name} is of format version {header.get('version')}; this release reads version {FORMAT_VERSION}: "
            "quantize the model again"
        )
    try:
        planes = tuple(tensors[f"plane{k}"] for k in range(1 + (header["kind"] in ("s3", "e8r", "nested"))))
        packed = PackedWeight(
            header["kind"],
            (header["shape"][0], header["shape"][1]),
            planes,
            tensors["scales"],
            header["gain"],
            header["residual_scale"],
            header["group_size"],
        )
        left, right = (_read_side(header[side], side, tensors) for side in ("left", "right"))
        reports = tuple(CandidateReport(**report) for report in header["reports"])
    except KeyError as missing:
        raise FormatError(f"{name} has no {missing.args[0]!r}: the file is incomplete; quantize again") from missing
    return QuantizedWeight(packed, left, right, reports, header["chosen"])


def digest(tensor: Tensor) -> str:
    """sha256 of the bytes, type and shape of a tensor."""
    data = tensor.detach().cpu().contiguous()
    text = f"{data.dtype}{tuple(data.shape)}".encode()
    return hashlib.sha256(text + data.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def side_header(rotation: Rotation) -> dict[str, Any]:
    """What a rotation is beside its tensors, as JSON takes it."""
    schedule = rotation.schedule
    return {"order": rotation.order, "mode": rotation.mode, "fixed": schedule.fixed, "radices": list(schedule.radices)}


def _read_side(header: Mapping[str, Any], side: str, tensors: Mapping[str, Tensor]) -> Rotation:
    order, mode = header["order"], header["mode"]
    schedule = Schedule(header["fixed"], tuple(header["radices"]))
    if mode == "none":
        return Rotation(order, "none", schedule=schedule)
    stages = range(len(schedule.radices) if mode == "harp" else 0)
    return Rotation(
        order,
        mode,
        unpack_signs(tensors[f"{side}.signs"], order),
        schedule,
        tuple(tensors[f"{side}.angles{t}"] for t in stages),
        tuple(tensors[f"{side}.angle_scales{t}"] for t in stages),
    )
