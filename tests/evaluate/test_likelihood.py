"""Log-probabilities of continuations against our own loss, row by row, and what is cut."""

from __future__ import annotations

import random

import pytest
import torch

from lowmem.data.batch import IGNORE
from lowmem.data.collate import collate
from lowmem.data.samples import Example, TokenRow
from lowmem.evaluate import likelihood
from lowmem.evaluate.likelihood import likelihoods
from lowmem.models.loss import ModelLoss
from tests.models.tiny import tiny_model


def pairs(count: int) -> list[tuple[list[int], list[int]]]:
    draw = random.Random(0)
    return [
        (
            [draw.randrange(5, 300) for _ in range(draw.randint(1, 30))],
            [draw.randrange(5, 300) for _ in range(n % 7 + 1)],
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_likelihood_is_the_loss_that_training_would_count(family: str) -> None:
    model, asked = tiny_model(family).eval(), pairs(9)
    found = likelihoods(model, asked, limit=None)
    for (context, continuation), (score, _) in zip(asked, found, strict=True):
        row = TokenRow((*context, *continuation), (*([IGNORE] * len(context)), *continuation))
        with torch.no_grad():
            loss = ModelLoss(model)(collate([Example((row,), "here")], pad_id=0))
        assert score == pytest.approx(-float(loss.total), rel=1e-5)


def test_rows_of_a_batch_do_not_touch_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tiny_model("llama").eval(), pairs(8)
    together = likelihoods(model, asked, limit=None)
    monkeypatch.setattr(likelihood, "LOGIT_BYTES", 0)
    alone = likelihoods(model, asked, limit=None)
    assert [score for score, _ in together] == pytest.approx([score for score, _ in alone], rel=1e-5)


def test_what_greedy_decoding_says_is_greedy() -> None:
    model = tiny_model("llama").eval()
    context = [10, 20, 30]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context])).logits[0, -1]
    best, worst = int(logits.argmax()), int(logits.argmin())
    assert [greedy for _, greedy in likelihoods(model, [(context, [best]), (context, [worst])], limit=None)] == [
        True,
        False,
    ]


def test_too_long_a_context_loses_its_beginning() -> None:
    model = tiny_model("llama").eval()
    context, continuation = list(range(5, 105)), [7, 8]
    (cut,) = likelihoods(model, [(context, continuation)], limit=20)
    (short,) = likelihoods(model, [(context[-19:], continuation)], limit=None)
    assert cut == short


def test_nothing_is_certain() -> None:
    assert likelihoods(tiny_model("llama").eval(), [([5, 6], [])], limit=None) == [(0.0, True)]
