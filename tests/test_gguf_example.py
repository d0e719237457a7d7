"""What `bench_gguf.py` says of two readings of a model; llama.cpp itself is not needed here."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def compare(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "examples"))
    import gguf_bench.compare

    return gguf_bench.compare


def test_equal_readings_agree_and_shifted_logits_are_equal(compare: ModuleType) -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    found = compare.agreement(
        compare.Reading([1, 2, 3, 4], logits, [5, 6]), compare.Reading([1, 2, 3, 4], logits + 3, [5, 6]), [0.5, 0.5]
    )
    assert (found.same_tokens, found.top, found.answer, found.tie) == (True, 1.0, 2, None)
    assert found.largest == pytest.approx(0, abs=1e-5)
    assert found.kl == pytest.approx(0, abs=1e-6)


def test_the_first_difference_ends_the_answer_and_says_how_close_it_was(compare: ModuleType) -> None:
    ours, theirs = torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.7, 0.0]])
    left, right = compare.Reading([1, 2], ours, [5, 6, 7]), compare.Reading([1, 2], theirs, [5, 8, 7])
    found = compare.agreement(left, right, [0.5, 0.01, 0.5])
    assert (found.answer, found.tie) == (1, 0.01)
    assert found.kl > 0
    assert found.largest > 0.3


def test_other_tokens_leave_nothing_to_compare(compare: ModuleType) -> None:
    logits = torch.zeros(2, 3)
    found = compare.agreement(compare.Reading([1, 2], logits, [5]), compare.Reading([1], logits[:1], [5]), [0.1])
    assert not found.same_tokens
    assert math.isnan(found.kl)
