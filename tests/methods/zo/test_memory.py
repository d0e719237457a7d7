"""A step of zeroth order needs what plain inference needs, and at most two of the largest hidden matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lowmem.config.run import RunConfig
from lowmem.methods.build import build_method
from lowmem.methods.zo.perturb import Direction, Perturber
from lowmem.models.loss import ModelLoss
from lowmem.plan.fakes import BatchShape, fake_run
from lowmem.plan.simulate import PlannedLoss
from lowmem.plan.tracker import LiveBytes
from tests.tiny import lm_batch, run_config, tiny_config

ALGORITHMS = [{"algorithm": "mezo"}, {"algorithm": "mezo", "direction": "gaussian"}, {"algorithm": "adanaged"}]


def largest_hidden_bytes(model: Any) -> int:
    """Of the matrices that are neither a lookup table nor the output head."""
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)] + [model.get_output_embeddings()]
    excluded = {id(m.weight) for m in tables}
    return max(p.nbytes for p in model.parameters() if id(p) not in excluded)


def peaks(method: Any, model: Any, loss: Any, batch: Any, tracker: LiveBytes) -> tuple[int, int]:
    """(plain inference, one step) in bytes; both with the same loss over the same batch."""
    with tracker:
        tracker.track_module(model)
        with tracker.phase("inference"), torch.no_grad():
            loss(batch)
        with tracker.phase("step"):
            method.step(PlannedLoss(loss), [batch], lr=1e-6, step=0)
    return tracker.peaks["inference"], tracker.peaks["step"]


@pytest.mark.parametrize("layers", [2, pytest.param(24, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ALGORITHMS, ids=str)
def test_a_step_on_the_shape_of_opt_1_3b_in_bf16_adds_at_most_two_hidden_matrices(
    method: dict[str, Any], layers: int
) -> None:
    """Fake tensors: the real model's code, shapes and allocations, no values. The head is 206 MB, six hidden matrices
    of 34 MB."""
    import transformers as t

    shape = t.OPTConfig(
        hidden_size=2048, num_hidden_layers=layers, ffn_dim=8192, num_attention_heads=32, word_embed_proj_dim=2048
    )
    config = RunConfig(model="none", dataset=[{"format": "auto", "path": "none"}], method={"kind": "zo"} | method)
    tracker = LiveBytes(vocabulary=shape.vocab_size)
    run = fake_run(config, shape, tracker)
    with run.mode:
        batch = BatchShape(8, 64).batch()
        inference, step = peaks(run.method, run.model, ModelLoss(run.model), batch, tracker)
    hidden = largest_hidden_bytes(run.model)
    assert hidden == 2048 * 8192 * 2
    assert 0 < step - inference <= 2 * hidden


def enlarged(architecture: str, sizes: dict[str, Any]) -> Any:
    """A tiny model with a vocabulary that outweighs everything else."""
    from transformers import AutoModelForCausalLM

    config = tiny_config(architecture)
    for name, value in sizes.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("method", ALGORITHMS, ids=str)
@pytest.mark.parametrize("architecture", ["opt", "gemma3", "bloom"])
def test_a_real_step_adds_at_most_two_hidden_matrices_where_the_vocabulary_is_the_largest(
    architecture: str, method: dict[str, Any]
) -> None:
    sizes = {"vocab_size": 20_000}
    match architecture:
        case "opt":
            sizes |= {"hidden_size": 128, "ffn_dim": 512, "word_embed_proj_dim": 128}
        case "gemma3":
            sizes |= {"hidden_size": 128, "intermediate_size": 512}
        case _:
            sizes |= {"hidden_size": 128}
    model = enlarged(architecture, sizes)
    zo = build_method(run_config(method={"kind": "zo"} | method), model)
    tracker = LiveBytes(vocabulary=20_000)
    inference, step = peaks(zo, model, ModelLoss(model, chunk_tokens=16), lm_batch(4, 16), tracker)
    assert 0 < step - inference <= 2 * largest_hidden_bytes(model)
    assert 20 * largest_hidden_bytes(model) < 20_000 * 128 * 4


@pytest.mark.parametrize("pad", [None, 0, 9_000])
def test_embeddings_build_only_the_rows_they_look_up_whatever_the_padding_token(pad: int | None) -> None:
    table = nn.Embedding(10_000, 64, padding_idx=pad)
    model = nn.ModuleDict({"table": table})
    perturber = Perturber(model, dict(model.named_parameters()), seed=0, kind="rademacher")
    tracker = LiveBytes()
    tracker.track_module(model)
    with tracker, torch.no_grad(), perturber.at(Direction(0), 1e-3):
        rows = table(torch.tensor([[5, 6], [7, 5]]))
    assert rows.shape == (2, 2, 64)
    assert torch.equal(rows[0, 0], rows[1, 1])
    assert tracker.peaks["outside"] - table.weight.nbytes < 4 * 64 * 4 + 1024
