"""The plan of generation against the bytes of real decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowmem.data.batch import Batch
from lowmem.methods.build import build_method
from lowmem.models.loss import LossSums
from lowmem.models.modes import eval_mode
from lowmem.models.slots import Slots
from lowmem.plan.fakes import BatchShape, fake_run
from lowmem.plan.generation import PHASE, GenerationShape, cache_bytes
from lowmem.plan.simulate import Work, measure_run, simulate
from lowmem.plan.tracker import KV_CACHE, LiveBytes, Peak
from tests.tiny import run_config, tiny_config, tiny_model

SHAPE = GenerationShape(rows=3, prompt=20, new=12)


def planned(architecture: str, shape: GenerationShape = SHAPE) -> Peak:
    places = simulate(run_config(), tiny_config(architecture), Work(BatchShape(2, 8), generation=shape)).places
    return max((peak for (phase, _), peak in places.items() if phase == PHASE), key=lambda peak: peak.nbytes)


def decoded(architecture: str) -> int:
    """Largest number of live bytes beyond weights and adapter while three prompts are answered."""
    model: Any = tiny_model(architecture)
    build_method(run_config(), model)
    tracker = LiveBytes()
    tracker.track_module(model)
    weights = tracker.current
    with eval_mode(model), tracker:
        slots = Slots(model, slots=SHAPE.rows, context=SHAPE.context, pad_id=0)
        for slot in range(SHAPE.rows):
            slots.extend(slot, [5 + slot] * SHAPE.prompt)
        for _ in range(SHAPE.new):
            slots.step({0: 5, 1: 6, 2: 7})
    return max(tracker.peaks.values()) - weights


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_the_plan_of_an_answer_is_what_decoding_takes(architecture: str) -> None:
    resident = simulate(run_config(), tiny_config(architecture), Work(BatchShape(2, 8))).resident
    assert planned(architecture).nbytes - resident == pytest.approx(decoded(architecture), rel=0.02)


def test_the_cache_has_the_bytes_that_the_config_says() -> None:
    shape = tiny_config("llama")
    heads, width = shape.num_key_value_heads, shape.hidden_size // shape.num_attention_heads
    vectors = 2 * shape.num_hidden_layers * heads * 3 * 64  # 32 tokens of context are 64 positions
    per_vector = {"model": 4 * width, "int8": width + 4, "int4": width // 2 + 4}
    for kv_dtype, nbytes in per_vector.items():
        asked = GenerationShape(3, 20, 12, kv_dtype)
        run = fake_run(run_config(), shape, LiveBytes())
        with run.mode:
            assert cache_bytes(run.model, asked) == vectors * nbytes
        places = simulate(run_config(), shape, Work(BatchShape(2, 8), generation=asked)).places
        assert places[PHASE, "decode"].components[KV_CACHE] == vectors * nbytes


def test_evaluation_with_a_verifier_plans_its_answers() -> None:
    from lowmem.plan.plan import work_of

    data = {"format": "procedural", "family": "add"}
    asked = run_config(eval_dataset=[data], max_length=64)
    work = work_of(asked, 4)
    assert work.generation == GenerationShape(asked.per_device_eval_batch_size, 64, asked.generation.max_new_tokens)
    assert work_of(run_config(eval_dataset=[data], eval_generate=False), 4).generation is None


def answered_step() -> int:
    """Largest number of live bytes of a zeroth-order step whose loss answers three prompts."""
    config = run_config(method={"kind": "zo", "algorithm": "mezo"})
    model: Any = tiny_model("llama")
    method = build_method(config, model)
    tracker = LiveBytes()

    def loss(batch: Batch) -> LossSums:
        slots = Slots(model, slots=SHAPE.rows, context=SHAPE.context, pad_id=0)
        for slot in range(SHAPE.rows):
            slots.extend(slot, [5 + slot] * SHAPE.prompt)
        for _ in range(SHAPE.new):
            slots.step({0: 5, 1: 6, 2: 7})
        return LossSums(torch.arange(3.0).double() + len(tracker.peaks), torch.ones(3).double())

    with eval_mode(model), tracker:
        measure_run(method, model, loss, [BatchShape(3, 20).batch()], tracker=tracker)
    return tracker.peaks["forward"]


def test_a_step_on_scores_plans_the_answers_that_its_loss_generates() -> None:
    config = run_config(method={"kind": "zo", "algorithm": "mezo"})
    places = simulate(config, tiny_config("llama"), Work(BatchShape(3, 20), scored=SHAPE)).places
    forwards = [peak for (phase, _), peak in places.items() if phase == "forward"]
    assert max(peak.nbytes for peak in forwards) == pytest.approx(answered_step(), rel=0.02)
    assert any(KV_CACHE in peak.components for peak in forwards)


def test_a_loss_by_score_asks_for_answers_and_accuracy_for_none() -> None:
    from lowmem.plan.plan import work_of

    def scored(function: str) -> GenerationShape | None:
        loss = {"kind": "score", "function": function, "max_new_tokens": 7}
        return work_of(run_config(loss=loss, method={"kind": "zo"}, max_length=64), 4).scored

    assert scored("f1") == GenerationShape(4, 64, 7)
    assert scored("accuracy") is None
