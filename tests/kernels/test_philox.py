from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowmem.kernels.philox import philox4x32, words_at
from tests.oracles import noise as twin

ONES = 0xFFFFFFFF
WORDS = st.integers(0, ONES)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    """Known-answer vectors of Random123, "philox4x32 10"."""
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    drawn = philox4x32((c0, c1, c2, c3), key[0] | key[1] << 32)
    assert tuple(int(word) for word in drawn) == expected
    assert twin.philox(counter, key[0] | key[1] << 32) == expected


@given(counter=st.tuples(WORDS, WORDS, WORDS, WORDS), key=st.integers(0, 2**64 - 1))
def test_philox_equals_python_integers(counter: tuple[int, int, int, int], key: int) -> None:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    drawn = philox4x32((c0, c1, c2, c3), key)
    assert tuple(int(word) for word in drawn) == twin.philox(counter, key)


def test_words_stand_at_block_row_and_stream() -> None:
    rows = torch.tensor([7, 0, 7])
    words = words_at(rows, 5, 3, stream=2, key=99)
    for i, row in enumerate(rows.tolist()):
        for block in range(3):
            expected = twin.philox((5 + block, row, 2, 0), 99)
            assert tuple(int(word[i, block]) for word in words) == expected
