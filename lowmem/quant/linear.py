"""Layers whose weights are packed: `QuantLinear` and `QuantEmbedding`, plain modules with buffers that nest.

A `QuantLinear` computes `((x V) W~^T) U^T + bias` with the rotations V (inputs) and U (outputs) and the packed W~.
Nothing in it trains; gradients flow to its input, so adapters can sit on top. Memory beside the file's bytes: the
matrices of learned rotations are expanded to fp32 (sum of the radices times 4 bytes per column); those of the RHT are
a few kilobytes. The backward pass unpacks the weight once and frees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowmem.kernels.dispatch import KernelChoice
from lowmem.kernels.packed_layer import NativeLayer
from lowmem.quant.codec import BLOCK, PLANE_BYTES, Kind, PackedWeight, group_count, padded, unpack
from lowmem.quant.product import choose, product, reference, tables
from lowmem.quant.rotation import Rotation, apply, apply_inverse, pack_signs, unpack_signs
from lowmem.quant.transform import Transform, transform

Precision = Literal["full", "base"]


class PackedModule(nn.Module):
    """A module whose buffers are a file's bytes: they may move, and keep their dtypes whatever dtype is asked."""

    def _apply(self, fn: Any, recurse: bool = True) -> PackedModule:
        kept = {name: buffer for name, buffer in self.named_buffers(recurse=False) if buffer.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self


class QuantLinear(PackedModule):
    """`y = x W^T + bias` for a rotated, packed W. `weight` parts are buffers; the bias is one too.

    `precision` "base" reads only the first plane of `nested` and `e8r` weights: the 2-bit model of the same file.
    """

    planes0: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self,
        packed: PackedWeight,
        rotation_in: Rotation,
        rotation_out: Rotation,
        *,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        if (rotation_in.order, rotation_out.order) != (self.in_features, self.out_features):
            raise ValueError(
                f"rotations of orders {rotation_in.order} (inputs) and {rotation_out.order} (outputs) do not fit a"
                f" weight of shape {packed.shape}; the orders are its columns and its rows"
            )
        self.kind: Kind = packed.kind
        self.gain, self.residual_scale = packed.gain, packed.residual_scale
        self.group_size = packed.group_size
        self.precision: Precision = "full"
        for index, plane in enumerate(packed.planes):
            self.register_buffer(f"planes{index}", plane)
        self.register_buffer("scales", packed.scales)
        self.register_buffer("bias", bias)
        for side, rotation in (("in", rotation_in), ("out", rotation_out)):
            self._keep_rotation(side, rotation)
        self._forget()

    def _forget(self) -> None:
        """What was made from the buffers is made anew when it is needed."""
        self._transforms: dict[str, Transform | None] = {}
        self._natives: dict[Precision, NativeLayer] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_transforms": {}, "_natives": {}}

    def _keep_rotation(self, side: str, rotation: Rotation) -> None:
        setattr(self, f"mode_{side}", rotation.mode)
        setattr(self, f"schedule_{side}", rotation.schedule)
        self.register_buffer(f"signs_{side}", None if rotation.signs is None else pack_signs(rotation.signs))
        for t, (angles, scales) in enumerate(zip(rotation.angles, rotation.angle_scales, strict=True)):
            self.register_buffer(f"angles_{side}{t}", angles)
            self.register_buffer(f"angle_scales_{side}{t}", scales)

    def rotation(self, side: Literal["in", "out"]) -> Rotation:
        """The rotation of inputs or outputs; its angles share the buffers."""
        schedule = getattr(self, f"schedule_{side}")
        stages = range(len(schedule.radices)) if getattr(self, f"mode_{side}") == "harp" else range(0)
        order = self.in_features if side == "in" else self.out_features
        signs = getattr(self, f"signs_{side}")
        return Rotation(
            order,
            getattr(self, f"mode_{side}"),
            None if signs is None else unpack_signs(signs, order),
            schedule,
            tuple(getattr(self, f"angles_{side}{t}") for t in stages),
            tuple(getattr(self, f"angle_scales_{side}{t}") for t in stages),
        )

    @property
    def packed(self) -> PackedWeight:
        """The packed weight at the present precision, sharing the buffers."""
        planes = tuple(getattr(self, f"planes{k}") for k in range(2) if hasattr(self, f"planes{k}"))
        shape = (self.out_features, self.in_features)
        weight = PackedWeight(self.kind, shape, planes, self.scales, self.gain, self.residual_scale, self.group_size)
        return weight.base_plane() if self.precision == "base" else weight

    @property
    def qweight(self) -> Tensor:
        """The first plane under the name by which peft finds a layer's device."""
        return self.planes0

    def dequantized(self) -> Tensor:
        """The weight of the layer that this one stands for: fp32 (m, n), newly allocated."""
        rotated = apply_inverse(unpack(self.packed), self.rotation("in"))
        return apply_inverse(rotated.T.contiguous(), self.rotation("out")).T.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        y, bias = _forward(x, self), self._buffers["bias"]
        return y if bias is None else y + bias.to(y.dtype)

    def inner(self, x: Tensor, *, exact: bool = False) -> Tensor:
        """`((x V) W~^T) U^T`, fp32 rows; `exact`: x is not rounded, as training wants it for few rows too."""
        if exact:
            return self.rotated_out(reference(self.rotated_in(x), self.packed))
        whole = self._inner_at_once(x) if type(x) is Tensor and x.device.type == "cpu" else None
        return whole if whole is not None else self._inner_by_parts(x)

    def _inner_at_once(self, x: Tensor) -> Tensor | None:
        """By one native call, or None where another implementation was chosen or a plan is being made."""
        choice = choose(x.device, self.kind, x.shape[0])
        if choice.kernel is not KernelChoice.NATIVE:
            return None
        out = torch.empty(x.shape[0], self.out_features)
        if type(out) is not Tensor:
            return None
        ready = self._natives.get(self.precision)
        if ready is None or ready.stale(self._buffers):
            ready = self._natives[self.precision] = self._native_layer()
        ready(x.contiguous(), out, exact=choice.activations == "exact")
        return out

    def _native_layer(self) -> NativeLayer:
        packed = self.packed
        return NativeLayer(
            packed.planes,
            packed.scales,
            columns=self.in_features,
            kind=packed.kind,
            group_size=packed.group_size,
            gain=packed.gain,
            residual_scale=packed.residual_scale,
            tables=tables(packed.kind),
            into=self._transform("in", inverse=False),
            out_of=self._transform("out", inverse=True),
        )

    def _inner_by_parts(self, x: Tensor) -> Tensor:
        return self.rotated_out(product(self.rotated_in(x), self.packed))

    def rotated_in(self, x: Tensor) -> Tensor:
        """`x V`: layers that share a rotation can share this."""
        return self._rotated(x, "in", inverse=False)

    def rotated_out(self, x: Tensor) -> Tensor:
        return self._rotated(x, "out", inverse=True)

    def input_gradient(self, grad: Tensor) -> Tensor:
        """What `inner` passes back: fp32 rows (tokens, m) to (tokens, n). The weight is unpacked for it and freed."""
        rotated = apply(grad, self.rotation("out")) @ unpack(self.packed)
        return apply_inverse(rotated, self.rotation("in"))

    def _rotated(self, x: Tensor, side: Literal["in", "out"], *, inverse: bool) -> Tensor:
        if getattr(self, f"mode_{side}") == "none":
            return x
        if choose(x.device, self.kind, 1).kernel is not KernelChoice.NATIVE:
            return (apply_inverse if inverse else apply)(x, self.rotation(side))
        ready = self._transform(side, inverse=inverse)
        return x if ready is None else ready(x)

    def _transform(self, side: Literal["in", "out"], *, inverse: bool) -> Transform | None:
        key = f"{side}{inverse}"
        if key not in self._transforms:
            self._transforms[key] = transform(self.rotation(side), inverse=inverse)
        return self._transforms[key]

    def _apply(self, fn: Any, recurse: bool = True) -> PackedModule:
        self._forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*arguments)

    def extra_repr(self) -> str:
        rotations = f"{self.__dict__['mode_in']}/{self.__dict__['mode_out']}"
        return f"{self.in_features}, {self.out_features}, kind={self.kind}, rotations={rotations}"


def _forward(x: Tensor, layer: QuantLinear | TiedHead) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _Product.apply(x, layer)  # type: ignore[no-untyped-call]
        return y
    return _rows(x, layer, exact=torch.is_grad_enabled())


def _rows(x: Tensor, layer: QuantLinear | TiedHead, *, exact: bool) -> Tensor:
    rows = layer.inner(x.reshape(-1, layer.in_features).float(), exact=exact)
    return rows.to(x.dtype).view(*x.shape[:-1], layer.out_features)


class _Product(torch.autograd.Function):
    """The layer's product; backward gives the gradient of the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantLinear | TiedHead) -> Tensor:
        ctx.layer, ctx.precision = layer, layer.precision
        return _rows(x, layer, exact=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        layer: QuantLinear | TiedHead = ctx.layer
        with at_precision([layer], ctx.precision):
            rows = layer.input_gradient(grad.reshape(-1, layer.out_features).float())
        return rows.to(grad.dtype).reshape(*grad.shape[:-1], layer.in_features), None


@contextmanager
def at_precision(layers: Sequence[nn.Module] | nn.Module, precision: Precision) -> Iterator[None]:
    """Within, every `QuantLinear` that has two planes (of a model, or of `layers`) computes at `precision`."""
    found = list(layers.modules()) if isinstance(layers, nn.Module) else list(layers)
    nested = [layer for layer in found if isinstance(layer, QuantLinear) and layer.kind in ("e8r", "nested")]
    before = [layer.precision for layer in nested]
    for layer in nested:
        layer.precision = precision
    try:
        yield
    finally:
        for layer, old in zip(nested, before, strict=True):
            layer.precision = old


class QuantEmbedding(PackedModule):
    """Rows of a packed table, `int8` or `int4`, without a rotation: a token reads its own row and nothing else."""

    planes0: Tensor
    scales: Tensor

    def __init__(
        self, packed: PackedWeight, *, padding_idx: int | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if packed.kind not in ("int4", "int8", "s4"):
            raise ValueError(f"an embedding of kind {packed.kind!r}: rows are read one by one; use int8, int4 or s4")
        self.num_embeddings, self.embedding_dim = packed.shape
        self.kind: Kind = packed.kind
        self.gain, self.group_size, self.padding_idx = packed.gain, packed.group_size, padding_idx
        self.dtype = dtype or torch.float32
        self.register_buffer("planes0", packed.planes[0])
        self.register_buffer("scales", packed.scales)

    @property
    def packed(self) -> PackedWeight:
        """The whole table, sharing the buffers."""
        shape = (self.num_embeddings, self.embedding_dim)
        return PackedWeight(self.kind, shape, (self.planes0,), self.scales, self.gain, 0.0, self.group_size)

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        rows = PackedWeight(
            self.kind,
            (flat.shape[0], self.embedding_dim),
            (self.planes0[flat],),
            self.scales[flat],
            self.gain,
            0.0,
            self.group_size,
        )
        return unpack(rows).to(self.dtype).reshape(*ids.shape, self.embedding_dim)


class TiedHead(nn.Module):
    """The output head that reads the table of a `QuantEmbedding`, which it does not own: `y = x W^T`."""

    def __init__(self, embedding: QuantEmbedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, it is not a child: its bytes are counted and saved once
        self.in_features, self.out_features = embedding.embedding_dim, embedding.num_embeddings
        self.precision: Precision = "full"

    @property
    def embedding(self) -> QuantEmbedding:
        return self._embedding[0]

    def forward(self, x: Tensor) -> Tensor:
        return _forward(x, self)

    def inner(self, x: Tensor, *, exact: bool = False) -> Tensor:
        return (reference if exact else product)(x, self.embedding.packed)

    def input_gradient(self, grad: Tensor) -> Tensor:
        return grad @ unpack(self.embedding.packed)


def empty_packed(
    kind: Kind, shape: tuple[int, int], *, group_size: int = 0, residual_scale: float = 0.0, gain: float = 1.0
) -> PackedWeight:
    """A packed weight of zero bytes and scales: what a loader fills."""
    m, n = shape
    planes = tuple(torch.zeros(m, padded(n) // BLOCK * size, dtype=torch.uint8) for size in PLANE_BYTES[kind])
    scales = torch.zeros(m, group_count(n, group_size), dtype=torch.float16)
    return PackedWeight(kind, shape, planes, scales, gain, residual_scale, group_size)
