"""Folding adapters into their base, and models for other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GgufConfig

from lowmem.config.load import load_run
from lowmem.errors import ConfigError, FormatError, QualityGateError
from lowmem.events import Event, Notice
from lowmem.jobs import merge as merging
from lowmem.jobs.export import export
from lowmem.jobs.merge import merge
from lowmem.jobs.target import open_target
from lowmem.jobs.train import train
from lowmem.models.gguf_export import write_gguf
from lowmem.models.shapes import random_model
from tests.jobs.test_train import write_config
from tests.models.tiny import save_tiny, tiny_config, tiny_model, tiny_tokenizer

IDS = torch.tensor([[10, 11, 12, 13, 14, 15, 16]])


def trained(folder: Path, **changes: Any) -> Path:
    """A run of a few steps; returns its folder."""
    model = save_tiny(folder / "base")
    settings: dict[str, Any] = {"max_steps": 4, "save_steps": None, "eval_steps": None, "learning_rate": 5e-2}
    path = write_config(folder, model, **(settings | changes))
    train(load_run(path).config, sink=lambda event: None)
    return folder / "run"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("lora"), method={"kind": "lora", "lora_r": 4})


def test_the_merged_model_says_what_the_run_says(run: Path, tmp_path: Path) -> None:
    report = merge(str(run), tmp_path / "merged", sink=lambda event: None)
    expected = logits(open_target(str(run), sink=lambda event: None).loaded.model)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert report.loss_after == pytest.approx(report.loss_before, rel=1e-4)
    assert abs(report.divergence) < 1e-5
    base = AutoModelForCausalLM.from_pretrained(run.parent / "base")
    assert not torch.allclose(logits(base), expected, atol=1e-3), "the adapter does something"


def test_an_adapter_on_nf4_is_merged_into_the_full_base_and_measured(tmp_path: Path) -> None:
    run = trained(tmp_path, method={"kind": "lora", "lora_r": 4}, quantization={"kind": "nf4"})
    report = merge(str(run), tmp_path / "merged", force=True, sink=lambda event: None)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(tensor.is_floating_point() for tensor in merged.values())
    assert report.divergence > 1e-6, "the quantized base was another model"


def test_a_merge_that_loses_what_was_learned_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = merging.load_model

    def damaged(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        with torch.no_grad():
            loaded.model.get_input_embeddings().weight.neg_()
        return loaded

    monkeypatch.setattr(merging, "load_model", damaged)
    with pytest.raises(QualityGateError, match=r"the merged model's loss .* more than 2% was lost .* --force"):
        merge(str(run), tmp_path / "merged", sink=lambda event: None)
    assert not (tmp_path / "merged").exists()
    events: list[Event] = []
    merge(str(run), tmp_path / "merged", force=True, sink=events.append)
    assert any(isinstance(event, Notice) and "more than 2%" in event.message for event in events)
    assert (tmp_path / "merged" / "config.json").is_file()


def test_nothing_is_merged_where_there_is_no_adapter_or_no_room(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run folder with an adapter"):
        merge(str(run.parent / "base"), tmp_path / "merged", sink=lambda event: None)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    with pytest.raises(ConfigError, match="exists already; nothing is overwritten"):
        merge(str(run), tmp_path / "used", sink=lambda event: None)
    assert (tmp_path / "used" / "file").read_text() == "mine"


def test_an_exported_run_is_a_whole_transformers_model(run: Path, tmp_path: Path) -> None:
    export(str(run), tmp_path / "hf", sink=lambda event: None)
    expected = logits(open_target(str(run), sink=lambda event: None).loaded.model)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "hf")), expected, rtol=1e-4, atol=1e-4
    )


def test_a_run_on_a_quantized_base_is_to_be_merged_first(tmp_path: Path) -> None:
    run = trained(tmp_path, method={"kind": "lora", "lora_r": 4}, quantization={"kind": "nf4"})
    with pytest.raises(ConfigError, match=r"was trained on a nf4 base; `lowmem merge` folds it"):
        export(str(run), tmp_path / "hf", sink=lambda event: None)


def test_a_checkpoint_of_a_zeroth_order_run_is_rebuilt_from_its_log(tmp_path: Path) -> None:
    run = trained(
        tmp_path,
        method={"kind": "zo", "algorithm": "mezo", "snapshot_steps": 100},
        learning_rate=1e-4,
        save_steps=2,
        save_total_limit=3,
    )
    checkpoints = sorted((run / "checkpoints").iterdir())
    export(str(run), tmp_path / "last", checkpoint=checkpoints[-1], sink=lambda event: None)
    expected = load_file(run / "model" / "model.safetensors")
    found = load_file(tmp_path / "last" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(ConfigError, match="--checkpoint belongs to a run folder and to --to hf"):
        export(str(run), tmp_path / "x.gguf", to="gguf", checkpoint=checkpoints[-1], sink=lambda event: None)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gguf_file_reads_back_as_the_same_model(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    if family == "qwen3":  # transformers reads no head size of Qwen3 from a GGUF file: it expects its default of 128
        shape = tiny_config("qwen3")
        shape.head_dim = 128
        model = random_model(shape, dtype=dtype)
    else:
        model = tiny_model(family, dtype=dtype)
    write_gguf(model, tiny_tokenizer(chat=True), tmp_path / "tiny.gguf")
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="tiny.gguf",
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    torch.testing.assert_close(logits(again), logits(model.float()), rtol=1e-3, atol=1e-3)


def test_the_gguf_file_names_its_tokens(tmp_path: Path) -> None:
    import gguf

    tokenizer = tiny_tokenizer(chat=True)
    write_gguf(tiny_model("llama"), tokenizer, tmp_path / "tiny.gguf")
    fields = gguf.GGUFReader(tmp_path / "tiny.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    vocabulary = tokenizer.get_vocab()
    assert all(tokens[index] == token for token, index in vocabulary.items())
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template


@pytest.mark.parametrize(("family", "said"), [("opt", r"\(opt\) is not exported to GGUF"), ("mistral", "mistral")])
def test_other_architectures_are_refused_by_name(family: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=said):
        write_gguf(tiny_model(family), tiny_tokenizer(), tmp_path / "tiny.gguf")
    assert not list(tmp_path.iterdir())


def test_other_tokenizers_rope_scalings_and_windows_are_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(FormatError, match="the tokenizer is WordLevel, not byte-level BPE"):
        write_gguf(tiny_model("llama"), words, tmp_path / "tiny.gguf")
    model = tiny_model("llama")
    model.config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4}
    with pytest.raises(FormatError, match="rope scaling of type 'yarn'"):
        write_gguf(model, tiny_tokenizer(), tmp_path / "tiny.gguf")
    windowed = tiny_model("qwen3")
    windowed.config.sliding_window = 8
    with pytest.raises(FormatError, match="a sliding window of 8 tokens"):
        write_gguf(windowed, tiny_tokenizer(), tmp_path / "tiny.gguf")


def test_a_weight_beyond_fp16_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    with pytest.raises(FormatError, match="too large for fp16"):
        write_gguf(model, tiny_tokenizer(), tmp_path / "tiny.gguf")


def test_the_verbs_say_what_they_did(run: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from lowmem.cli.app import app

    done = CliRunner().invoke(app, ["merge", str(run), "-o", str(tmp_path / "m"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["samples"] == 16
    done = CliRunner().invoke(app, ["export", str(tmp_path / "m"), "--to", "gguf", "-o", str(tmp_path / "m.gguf")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "m.gguf").stat().st_size > 1000
    assert CliRunner().invoke(app, ["export", "x", "--to", "onnx", "-o", "y"]).exit_code == 2
    assert CliRunner().invoke(app, ["merge", "x", "-o", "y", "--dtype", "int3"]).exit_code == 2
