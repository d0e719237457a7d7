"""Divergence, losses and answers of two models, against their definitions in fp64."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from lowmem.config.quantize import Gate
from lowmem.data.calibration import Text
from lowmem.errors import CheckpointError
from lowmem.evaluate.gate import Closeness, Sample, answer_all, compare, judge, keep_original, trouble_of
from lowmem.generate.generate import Answer
from lowmem.generate.loops.base import Loop
from tests.models.tiny import tiny_model, tiny_tokenizer

FINE = Closeness(tokens=10, divergence=0.01, loss_before=2.0, loss_after=2.01, agreement=0.95)
GOOD, LOOPING = Sample("p", "a", "none"), Sample("p", "a", "loop")


def texts() -> list[Text]:
    ids = torch.arange(5, 29).reshape(2, 12)
    rows = torch.tensor([0, 0, 1])
    return [Text(ids, None, rows, torch.tensor([3, 7, 10])), Text(ids[:1, :6], None, rows[:2], torch.tensor([0, 4]))]


def test_two_models_compare_as_in_fp64(tmp_path: Path) -> None:
    before, after = tiny_model(seed=0), tiny_model(seed=1)
    keep_original(before, texts(), tmp_path / "kept")
    found = compare(after, texts(), tmp_path / "kept")
    divergence, losses, agreed = [], ([], []), []
    for text in texts():
        with torch.no_grad():
            p, q = (
                model(input_ids=text.input_ids).logits[text.rows, text.columns].double().log_softmax(-1)
                for model in (before, after)
            )
        divergence += (p.exp() * (p - q)).sum(1).tolist()
        agreed += (p.argmax(1) == q.argmax(1)).tolist()
        for kept, model in zip(losses, (p, q), strict=True):
            kept.extend((-model.gather(1, text.labels[:, None])[:, 0]).tolist())
    assert found.tokens == 5
    assert found.divergence == pytest.approx(sum(divergence) / 5, rel=1e-4)
    assert found.agreement == sum(agreed) / 5
    assert found.loss_before == pytest.approx(sum(losses[0]) / 5, rel=1e-5)
    assert found.loss_after == pytest.approx(sum(losses[1]) / 5, rel=1e-5)
    assert found.perplexity_after == pytest.approx(math.exp(found.loss_after))


def test_a_model_is_no_distance_from_itself(tmp_path: Path) -> None:
    keep_original(tiny_model(), texts(), tmp_path / "kept")
    found = compare(tiny_model(), texts(), tmp_path / "kept")
    assert (found.divergence, found.agreement) == (0.0, 1.0)
    assert found.loss_after == found.loss_before


def test_readings_of_other_text_are_refused(tmp_path: Path) -> None:
    keep_original(tiny_model(), texts()[1:], tmp_path / "kept")
    with pytest.raises(CheckpointError, match="ends early: it was written for other text or another model"):
        compare(tiny_model(), texts(), tmp_path / "kept")


def test_every_limit_is_kept_or_named() -> None:
    assert judge(FINE, [GOOD], [GOOD], Gate()).passed
    bad = [
        ({"divergence": 0.6}, "KL divergence 0.6000 nats per token, at most 0.5"),
        ({"divergence": math.nan}, "KL divergence nan"),
        ({"loss_after": 3.0}, "perplexity 7.389 -> 20.09, 2.72 times as high, at most 1.5"),
        ({"loss_after": math.inf}, "perplexity 7.389 -> inf"),
        ({"agreement": 0.5}, "the same first choice at 50.0% of tokens, at least 65.0%"),
    ]
    for change, said in bad:
        (failure,) = judge(dataclasses.replace(FINE, **change), [GOOD], [GOOD], Gate()).failures
        assert failure.startswith(said)


def test_only_answers_that_were_good_before_count_as_broken() -> None:
    report = judge(FINE, [GOOD, LOOPING], [LOOPING, LOOPING], Gate(max_broken=0.4))
    assert report.broken == 1
    assert report.failures == (
        "1 of 2 prompts are answered badly (1 loop) that the original answers, at most 40% is allowed",
    )
    assert judge(FINE, [GOOD, LOOPING], [LOOPING, LOOPING], Gate(max_broken=0.5)).passed


def test_what_is_wrong_with_an_answer() -> None:
    def answer(tokens: list[int], text: str, loop: Loop | None = None) -> Answer:
        return Answer(tuple(tokens), text, "length", loop)

    assert trouble_of(answer([1, 2], "ab")) == "none"
    assert trouble_of(answer([1], " \n")) == "empty"
    assert trouble_of(answer([7] * 10 + [1, 2, 3, 4, 5, 6], "x" * 16)) == "one token"
    assert trouble_of(answer([7] * 8 + [1, 2, 3], "x" * 11)) == "none", "too short to say"
    assert trouble_of(answer([1, 2] * 40, "ab" * 40, Loop("tail", 4, 2))) == "loop"


def test_a_model_that_says_one_thing_is_caught_in_its_answers() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    (found,) = answer_all(model, tiny_tokenizer(), ["the cat"], max_new_tokens=80)
    assert found.trouble in ("loop", "empty", "one token")
    assert answer_all(model, tiny_tokenizer(), [], max_new_tokens=4) == ()
