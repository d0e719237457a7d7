"""Metrics of a whole dataset, against a model asked directly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from lowmem.data.samples import EvalItem, Example, TokenRow
from lowmem.evaluate.evaluate import chosen_indices, evaluate_dataset
from lowmem.models.loss import ModelLoss
from tests.models.tiny import tiny_model

MODEL = tiny_model("llama")
CPU = torch.device("cpu")


def answer(ids: tuple[int, ...], trained: int, evaluation: EvalItem | None = None) -> Example:
    """A row whose last `trained` tokens carry loss."""
    labels = (*[-100] * (len(ids) - trained), *ids[len(ids) - trained :])
    return Example(rows=(TokenRow(ids, labels),), where="here", evaluation=evaluation)


def choice(prompt: tuple[int, ...], options: Sequence[tuple[int, ...]], gold: int) -> Example:
    rows = tuple(TokenRow((*prompt, *o), (*[-100] * len(prompt), *o)) for o in options)
    return Example(rows=rows, where="here", gold=gold, options=len(options))


def log_likelihood(prompt: tuple[int, ...], continuation: tuple[int, ...]) -> float:
    """Sum of log-probabilities of `continuation`, by one plain forward of one sequence."""
    ids = torch.tensor([[*prompt, *continuation]])
    with torch.no_grad():
        logs = MODEL(input_ids=ids).logits[0].log_softmax(-1)
    start = len(prompt)
    return sum(float(logs[start + n - 1, token]) for n, token in enumerate(continuation))


def measure(
    dataset: Sequence[Example], *, batch_size: int = 2, limit: int | None = None, generate: object = None
) -> dict[str, float]:
    return evaluate_dataset(
        ModelLoss(MODEL),
        dataset,
        batch_size=batch_size,
        limit=limit,
        pad_id=0,
        device=CPU,
        generate=generate,  # type: ignore[arg-type]
    )


def test_loss_and_perplexity_are_means_over_trained_tokens() -> None:
    dataset = [answer((5, 6, 7, 8), 2), answer((9, 10, 11, 12, 13, 14, 15), 6), answer((20, 21), 1)]
    total = log_likelihood((5, 6), (7, 8)) + log_likelihood((9,), (10, 11, 12, 13, 14, 15))
    expected = -(total + log_likelihood((20,), (21,))) / 9
    for size in (1, 2, 3):
        found = measure(dataset, batch_size=size)
        assert found["loss"] == pytest.approx(expected, rel=1e-4)
        assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-3)
        assert set(found) == {"loss", "perplexity"}


def test_options_are_judged_by_their_mean_log_probability() -> None:
    options = [(30, 31), (40,)]
    prompts = [(5, 6, 7), (8,), (9, 10), (11, 12), (60, 61, 62)]
    scores = [[log_likelihood(p, o) / len(o) for o in options] for p in prompts]
    gold = [0, 1, 1, 0, 1]
    found = measure([choice(p, options, g) for p, g in zip(prompts, gold, strict=True)])
    right = [max((0, 1), key=lambda o: row[o]) == g for row, g in zip(scores, gold, strict=True)]
    assert found["accuracy"] == pytest.approx(sum(right) / 5)
    losses = [-torch.tensor(row).log_softmax(0)[g].item() for row, g in zip(scores, gold, strict=True)]
    assert found["loss"] == pytest.approx(sum(losses) / 5, rel=1e-4)
    leads = [row[1] - row[0] for row in scores]
    middle = sorted(leads)[2]
    at_median = [int(lead > middle) == g for lead, g in zip(leads, gold, strict=True)]
    assert found["accuracy_median_threshold"] == pytest.approx(sum(at_median) / 5)
    assert "perplexity" not in found


def test_exact_match_is_measured_where_examples_bring_a_verifier() -> None:
    items = [EvalItem((n,), "", (str(n),), "number" if n != 3 else None) for n in (1, 2, 3, 4)]
    dataset = [answer((n, 50), 1, item) for n, item in zip((1, 2, 3, 4), items, strict=True)]
    asked: list[int] = []

    def generate(prompts: Sequence[Sequence[int]]) -> list[str]:
        asked.extend(prompt[0] for prompt in prompts)
        return ["2" for _ in prompts]

    assert measure(dataset, generate=generate)["exact_match"] == pytest.approx(1 / 3)
    assert asked == [1, 2, 4]
    assert "exact_match" not in measure(dataset)


def test_a_limit_takes_examples_from_the_whole_dataset() -> None:
    assert chosen_indices(10, 3) == [0, 3, 6]
    assert chosen_indices(3, 10) == chosen_indices(3, None) == [0, 1, 2]
    assert len(set(chosen_indices(1000, 64))) == 64
    dataset = [answer((5, 6), 1), answer((7, 8), 1)]
    assert measure(dataset, limit=1)["loss"] == pytest.approx(-log_likelihood((5,), (6,)), rel=1e-4)


def test_packed_and_padded_rows_of_one_dataset_count_alike() -> None:
    packed = Example(rows=(TokenRow((5, 6, 7, 8), (5, 6, -100, 8), (0, 1, 0, 1)),), where="here")
    dataset = [answer((9, 10), 1), packed, answer((11, 12), 1)]
    total = sum(log_likelihood((a,), (b,)) for a, b in ((9, 10), (5, 6), (7, 8), (11, 12)))
    assert measure(dataset)["loss"] == pytest.approx(-total / 4, rel=1e-4)


def test_measuring_builds_no_graph() -> None:
    seen: list[bool] = []

    class Loss(ModelLoss):
        def _hidden(self, batch: object) -> torch.Tensor:
            seen.append(torch.is_grad_enabled())
            return super()._hidden(batch)  # type: ignore[arg-type]

    evaluate_dataset(Loss(MODEL), [answer((5, 6), 1)], batch_size=1, limit=None, pad_id=0, device=CPU, generate=None)
    assert seen == [False]
