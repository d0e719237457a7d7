"""The bytes of the packed weight, against a reading of the format written one weight at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem.errors import FormatError
from lowmem.quant import lattice
from lowmem.quant.codec import (
    KINDS,
    LATTICE,
    LEVELS,
    PLANE_BYTES,
    Kind,
    PackedWeight,
    decode_vectors,
    join_vectors,
    pack_codes,
    padded,
    split_vectors,
    unpack,
    unpack_codes,
)

SCALAR = [kind for kind in KINDS if kind not in LATTICE]


def random_packed(kind: Kind, m: int, n: int, *, group_size: int = 0, seed: int = 0) -> PackedWeight:
    generator = torch.Generator().manual_seed(seed)
    blocks = padded(n) // 64
    planes = tuple(
        torch.randint(0, 256, (m, blocks * size), generator=generator).to(torch.uint8) for size in PLANE_BYTES[kind]
    )
    groups = -(-n // group_size) if group_size else 1
    scales = (torch.rand(m, groups, generator=generator) + 0.5).half()
    return PackedWeight(kind, (m, n), planes, scales, 0.25, 0.5 if kind in ("e8r", "nested") else 0.0, group_size)


def lattice_level(plane: torch.Tensor, row: int, column: int) -> int:
    block, j = divmod(column, 64)
    data = plane[row, 16 * block : 16 * block + 16].tolist()
    index, sign, entry = data[j // 8], data[8 + j // 8], j % 8
    bits = [sign >> e & 1 for e in range(7)]
    negative = bits[entry] if entry < 7 else sum(bits) % 2
    value = int(lattice.patterns()[index, entry])
    return (-value if negative else value) + (-1 if sign >> 7 else 1)


def level(packed: PackedWeight, row: int, column: int) -> float:
    block, j = divmod(column, 64)
    first = packed.planes[0][row]
    match packed.kind:
        case "s2" | "s3":
            code = int(first[16 * block + j % 16]) >> (2 * (j // 16)) & 3
            if packed.kind == "s3":
                code |= (int(packed.planes[1][row, 8 * block + j % 8]) >> (j // 8) & 1) << 2
        case "s4" | "int4":
            code = int(first[32 * block + j % 32]) >> (4 * (j // 32)) & 15
        case "int8":
            code = int(first[64 * block + j])
        case _:
            base = lattice_level(packed.planes[0], row, column)
            if packed.kind == "nested":
                return base + packed.residual_scale * lattice_level(packed.planes[1], row, column)
            if packed.kind == "e8r":
                index = int(packed.planes[1][row, 8 * block + j // 8])
                return base + packed.residual_scale * int(lattice.residual_patterns()[index, j % 8])
            return base
    return LEVELS[packed.kind][code]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "group_size"), [(1, 0), (72, 0), (200, 64)])
def test_unpack_agrees_with_the_format_read_weight_by_weight(kind: Kind, n: int, group_size: int) -> None:
    packed = random_packed(kind, 3, n, group_size=group_size)
    weight = unpack(packed)
    for row in range(3):
        for column in range(n):
            scale = float(packed.scales[row, column // group_size if group_size else 0]) * 0.25
            assert float(weight[row, column]) == pytest.approx(level(packed, row, column) * scale, rel=1e-6)


@given(kind=st.sampled_from(SCALAR), m=st.integers(1, 4), n=st.integers(1, 150), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_codes_survive_packing(kind: Kind, m: int, n: int, seed: int) -> None:
    codes = torch.randint(0, len(LEVELS[kind]), (m, n), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(unpack_codes(kind, pack_codes(kind, codes), n).long(), codes)


def test_vectors_survive_packing() -> None:
    index, sign = torch.randint(0, 256, (2, 3, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert all(torch.equal(a, b) for a, b in zip(split_vectors(join_vectors(index, sign)), (index, sign), strict=True))


def test_true_bytes_count_padding_and_scales() -> None:
    packed = random_packed("s2", 4, 70)
    assert packed.nbytes == 4 * 2 * 16 + 4 * 2 + 8
    assert packed.bits_per_weight == 8 * packed.nbytes / 280


def test_the_first_plane_of_a_nested_weight_is_a_2_bit_weight() -> None:
    packed = random_packed("nested", 2, 64)
    base = packed.base_plane()
    assert base.kind == "e8"
    rest = unpack(packed) - unpack(base)
    residual = decode_vectors(*split_vectors(packed.planes[1])).flatten(1).float()
    torch.testing.assert_close(rest, residual * 0.5 * packed.scales.float() * 0.25)
    with pytest.raises(ValueError, match="no base plane"):
        base.base_plane()


def test_what_does_not_fit_is_refused() -> None:
    plane, scales = torch.zeros(2, 16, dtype=torch.uint8), torch.ones(2, 1).half()
    with pytest.raises(FormatError, match="unknown kind"):
        PackedWeight("s5", (2, 64), (plane,), scales)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="planes are"):
        PackedWeight("s2", (2, 65), (plane,), scales)
    with pytest.raises(FormatError, match="scales are"):
        PackedWeight("s2", (2, 64), (plane,), scales.float())
    with pytest.raises(FormatError, match="power of two"):
        PackedWeight("s2", (2, 64), (plane,), scales, gain=3.0)
    with pytest.raises(FormatError, match="residual_scale"):
        PackedWeight("s2", (2, 64), (plane,), scales, residual_scale=1.0)
    with pytest.raises(FormatError, match="multiple of 64"):
        PackedWeight("s2", (2, 64), (plane,), scales, group_size=32)
    with pytest.raises(ValueError, match="use join_vectors"):
        pack_codes("e8", torch.zeros(1, 8))
    with pytest.raises(ValueError, match="use split_vectors"):
        unpack_codes("e8", (plane,), 64)
    with pytest.raises(ValueError, match=r"must be in 0\.\.3"):
        pack_codes("s2", torch.full((1, 8), 4))
