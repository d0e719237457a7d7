from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowmem.kernels import noise as noise_module
from lowmem.kernels.noise import MAX_RANK, Kind, LowRank, direction, fp32, matrix_shape, stream_key
from tests.oracles import noise as twin

KEY = stream_key(1, 2, 0, "layers.0.weight")
KINDS: list[Kind] = ["rademacher", "gaussian", LowRank(3), LowRank(70)]
PINNED = (0x75C6163CCE5FCE32, 0x63CA10523A8CB0DF)


def slow(kind: Kind, row: int, col: int) -> float:
    if isinstance(kind, LowRank):
        return twin.low_rank(KEY, row, col, kind.rank)
    if kind == "rademacher":
        return twin.rademacher(KEY, row, col)
    return twin.whole_gaussian(KEY, row, col) / 8


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_direction_equals_the_slow_twin(kind: Kind) -> None:
    drawn = direction((3, 263), KEY, kind)
    expected = torch.tensor([[slow(kind, row, col) for col in range(263)] for row in range(3)], dtype=torch.float32)
    torch.testing.assert_close(drawn, expected, rtol=1e-6 if isinstance(kind, LowRank) else 0, atol=0)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("rows", [slice(1, None, 3), slice(4, 2), torch.tensor([[9, 0], [9, 3]])], ids=str)
def test_rows_drawn_alone_are_the_rows_of_the_whole(kind: Kind, rows: torch.Tensor | slice) -> None:
    assert torch.equal(direction((10, 5, 30), KEY, kind, rows=rows), direction((10, 5, 30), KEY, kind)[rows])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_tiles_do_not_show(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = direction((9, 1000), KEY, kind), direction((9000,), KEY, kind)
    monkeypatch.setattr(noise_module, "TILE", 256)
    assert torch.equal(direction((9, 1000), KEY, kind), whole[0])
    assert torch.equal(direction((9000,), KEY, kind), whole[1])


def test_shapes_are_seen_as_matrices() -> None:
    shapes = {(): (1, 1), (7,): (1, 7), (3, 4): (3, 4), (3, 4, 5): (3, 20), (0, 4): (0, 4)}
    assert {shape: matrix_shape(shape) for shape in shapes} == shapes
    assert torch.equal(direction((6,), KEY, "gaussian"), direction((1, 6), KEY, "gaussian")[0])
    assert torch.equal(direction((3, 4, 5), KEY, "gaussian").flatten(1), direction((3, 20), KEY, "gaussian"))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_fake_and_meta_tensors_get_the_shape(kind: Kind) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert direction((5, 6), KEY, kind, device=torch.device("meta")).shape == (5, 6)
    with FakeTensorMode():
        assert direction((5, 6), KEY, kind, rows=torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 3, 6)


@given(
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3), st.text(max_size=5), st.text(max_size=5)),
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3), st.text(max_size=5), st.text(max_size=5)),
)
def test_keys_differ_where_their_origins_do(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    assert (stream_key(*a) == stream_key(*b)) == (a == b)  # type: ignore[arg-type]


def test_keys_are_pinned() -> None:
    """A change of these numbers breaks every checkpoint of a zeroth-order run."""
    assert stream_key(0, 0, 0, "w") == PINNED[0]
    assert stream_key(7, 11, 1, "h.0.weight", "rounding") == PINNED[1]


def test_gaussian_has_variance_one_and_the_kurtosis_it_claims() -> None:
    law = gaussian_law()
    moments = [sum(Fraction(t, 8) ** power * p for t, p in law.items()) for power in range(1, 5)]
    assert moments[:3] == [0, 1, 0]
    assert float(moments[3]) - 3 == pytest.approx(-2 * (28 * 81 + 4) / 256**2, rel=1e-12)
    assert max(law) / 8 == 5.5


def gaussian_law() -> dict[int, Fraction]:
    """Exact probabilities of 8 z, by convolving 32 coins."""
    law = {-44: Fraction(1)}
    for weight in [3] * 28 + [1] * 4:
        parts: Counter[int] = Counter()
        for (value, p), step in product(law.items(), (0, weight)):
            parts[value + step] += p / 2  # type: ignore[assignment]
        law = dict(parts)  # type: ignore[arg-type]
    return law


def test_gaussian_draws_follow_the_law() -> None:
    """Chi-square over the bins expecting 50 or more of 2^20 draws: k - 1 +- 6 sqrt(2 (k - 1))."""
    n = 2**20
    drawn = Counter((direction((256, 4096), KEY, "gaussian") * 8).int().flatten().tolist())
    bins = {t: float(p) * n for t, p in gaussian_law().items() if p * n >= 50}
    chi = sum((drawn[t] - expected) ** 2 / expected for t, expected in bins.items())
    assert abs(chi - len(bins)) < 6 * (2 * len(bins)) ** 0.5


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_weights_rows_columns_and_steps_are_uncorrelated(kind: Kind) -> None:
    """Means of n products of unit-variance draws stay within 6 / sqrt(n): at most 5e-9 per comparison, 30 000 made."""
    z = direction((128, 1024), KEY, kind).double()
    other_step = direction((128, 1024), stream_key(1, 3, 0, "layers.0.weight"), kind).double()
    other_probe = direction((128, 1024), stream_key(1, 2, 1, "layers.0.weight"), kind).double()
    limit = 6 / (128 * 1024) ** 0.5
    assert z.mean().abs() < limit
    assert (z * other_step).mean().abs() < limit
    assert (z * other_probe).mean().abs() < limit
    for lag in (1, 16, 32, 64, 128):
        assert (z[:, lag:] * z[:, :-lag]).mean().abs() < limit * (1024 / (1024 - lag)) ** 0.5
    rows = (z @ z.T) / 1024
    assert (rows - torch.diag(rows.diag())).abs().max() < 6 / 1024**0.5
    columns = (z[:, :256].T @ z[:, :256]) / 128
    assert (columns - torch.diag(columns.diag())).abs().max() < 6.5 / 128**0.5


def test_low_rank_direction_has_its_rank_and_unit_variance() -> None:
    """The mean of the squares is tr(U'U V'V) / (8 m n): each Gram matrix is within 5 / sqrt(300) of the identity."""
    kind = LowRank(8)
    z = direction((400, 300), KEY, kind).double()
    assert torch.linalg.matrix_rank((z / kind.unit).round()) == 8
    assert z.square().mean().item() == pytest.approx(1, abs=5 / 300**0.5)


def test_a_vector_has_no_rows_to_choose() -> None:
    with pytest.raises(ValueError, match=r"rows was given for shape \(5,\), which is one row: leave it out"):
        direction((5,), KEY, "gaussian", rows=slice(0, 1))


def test_row_numbers_must_be_int64() -> None:
    with pytest.raises(ValueError, match=r"rows is torch.int32; row numbers are int64"):
        direction((5, 2), KEY, "gaussian", rows=torch.zeros(1, dtype=torch.int32))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind='cauchy' is no direction"):
        direction((5, 2), KEY, "cauchy")  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", [0, MAX_RANK + 1])
def test_a_rank_beyond_exact_sums_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"LowRank\({rank}\): rank must be between 1 and {MAX_RANK}"):
        LowRank(rank)


def test_fp32_rounds_once() -> None:
    assert fp32(0.1) == torch.tensor(0.1, dtype=torch.float32).item()
    assert fp32(0.1) != 0.1
