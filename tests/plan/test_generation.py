"""The plan of generation against the bytes of real decoding."""

from __future__ import annotations

from typing import Any

import pytest

from lowmem.generate.decoder import Decoder
from lowmem.methods.build import build_method
from lowmem.models.modes import eval_mode
from lowmem.plan.fakes import BatchShape, fake_run
from lowmem.plan.generation import PHASE, GenerationShape, cache_bytes
from lowmem.plan.simulate import Work, simulate
from lowmem.plan.tracker import KV_CACHE, LiveBytes, Peak
from tests.tiny import run_config, tiny_config, tiny_model

SHAPE = GenerationShape(rows=3, prompt=20, new=12)


def planned(architecture: str, shape: GenerationShape = SHAPE) -> Peak:
    places = simulate(run_config(), tiny_config(architecture), Work(BatchShape(2, 8), generation=shape)).places
    return max((peak for (phase, _), peak in places.items() if phase == PHASE), key=lambda peak: peak.nbytes)


def cached(config: Any, shape: GenerationShape) -> int:
    """Bytes of the KV cache in the plan's decoding step."""
    places = simulate(run_config(), config, Work(BatchShape(2, 8), generation=shape)).places
    return places[PHASE, "decode"].components[KV_CACHE]


def decoded(architecture: str) -> int:
    """Largest number of live bytes beyond weights and adapter while three prompts are answered."""
    model: Any = tiny_model(architecture)
    build_method(run_config(), model)
    tracker = LiveBytes()
    tracker.track_module(model)
    weights = tracker.current
    with eval_mode(model), tracker:
        decoder = Decoder(model, pad_id=0)
        decoder.prefill([[5] * SHAPE.prompt, [6] * (SHAPE.prompt - 3), [7] * SHAPE.prompt])
        for _ in range(SHAPE.new):
            decoder.step([5, 6, 7])
    return max(tracker.peaks.values()) - weights


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_the_plan_of_an_answer_is_what_decoding_takes(architecture: str) -> None:
    resident = simulate(run_config(), tiny_config(architecture), Work(BatchShape(2, 8))).resident
    assert planned(architecture).nbytes - resident == pytest.approx(decoded(architecture), rel=0.02)


def test_the_cache_grows_by_what_the_config_says() -> None:
    shape = tiny_config("llama")
    heads, width = shape.num_key_value_heads, shape.hidden_size // shape.num_attention_heads
    per_token = 2 * shape.num_hidden_layers * heads * width * 4
    short, long = (cached(tiny_config("llama"), GenerationShape(3, 20, new)) for new in (12, 112))
    copied = heads * width * 4  # while one tensor is lengthened, its old form is alive beside the new one
    assert long - short == 3 * 100 * (per_token + copied)
    run = fake_run(run_config(), shape, LiveBytes())
    with run.mode:
        assert cache_bytes(run.model, SHAPE) == 3 * SHAPE.context * per_token


def test_a_sliding_window_bounds_the_cache() -> None:
    from transformers import AutoConfig

    shape = AutoConfig.for_model(
        "gemma3_text",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    run = fake_run(run_config(), shape, LiveBytes())
    with run.mode:
        short, long = (cache_bytes(run.model, GenerationShape(1, 32, new)) for new in (8, 108))
    assert long - short == 100 * 2 * 16 * 4, "only the layer with full attention grows"


def test_evaluation_with_a_verifier_plans_its_answers() -> None:
    from lowmem.plan.plan import work_of

    data = {"format": "procedural", "family": "add"}
    asked = run_config(eval_dataset=[data], max_length=64)
    work = work_of(asked, 4)
    assert work.generation == GenerationShape(asked.per_device_eval_batch_size, 64, asked.generation.max_new_tokens)
    assert work_of(run_config(eval_dataset=[data], eval_generate=False), 4).generation is None
