"""From a model to a folder of codes: what it holds, what stops it, and going on after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lowmem.config.load_quantize import load_quantize
from lowmem.errors import BudgetError, ConfigError, DataError, Interrupted, QualityGateError
from lowmem.events import BlockCoded, Event
from lowmem.jobs.export import export
from lowmem.jobs.quantize import plan_quantize, quantize
from lowmem.jobs.quantize_result import QuantizeReport
from lowmem.jobs.target import open_target
from lowmem.quant.format import digest
from tests.jobs.run_folder import make_run
from tests.models.tiny import save_tiny

WORDS = ["the cat sat on the mat", "one two three four five", "what a day; the dog ran after it", "naive cafe"]
CHEAP = {
    "rotation": "rht",
    "feedback": "nearest",
    "calibration": {"tokens": 64, "max_length": 16, "sensitivity_tokens": 16},
    "gate": {"tokens": 32, "prompt_count": 2, "max_new_tokens": 4},
}
LOOSE = {"max_divergence": 50.0, "max_perplexity_ratio": 1e9, "min_agreement": 0.0, "max_broken": 1.0}


def ignore(_: Event) -> None:
    pass


def text_file(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("\n".join(f"{number} {WORDS[number % 4]} {number * 7}" for number in range(60)))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "base")


Run = Callable[..., QuantizeReport]


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Run:
    """Quantizes the tiny model into tmp_path/out with cheap settings; keyword arguments are config keys."""
    text = text_file(tmp_path)

    def go(force: bool = False, overwrite: bool = False, sink: Any = ignore, **keys: Any) -> QuantizeReport:
        gate = CHEAP["gate"] | LOOSE | keys.pop("gate", {})  # type: ignore[operator]
        given = {"model": str(base), "output": str(tmp_path / "out"), "dataset": str(text), **CHEAP, "gate": gate}
        return quantize(load_quantize({**given, **keys}), sink=sink, force=force, overwrite=overwrite)

    return go


def scales_and_codes(report: QuantizeReport) -> list[float]:
    return [
        layer.bits_per_weight * layer.shape[0] * layer.shape[1] / 8 for layer in report.layers if layer.loss is not None
    ]


def weights_of(report: QuantizeReport) -> int:
    return sum(layer.shape[0] * layer.shape[1] for layer in report.layers if layer.loss is not None)


def test_the_folder_loads_answers_and_says_what_it_is(run: Run, tmp_path: Path) -> None:
    events: list[Event] = []
    report = run(sink=events.append)
    assert report.folder == tmp_path / "out"
    record = json.loads((report.folder / "quantize.json").read_text())
    assert record["gate"]["passed"]
    assert not record["forced"]
    assert "Layers by error" in (report.folder / "report.html").read_text()
    assert report.file_bytes == sum(file.stat().st_size for file in report.folder.glob("*.safetensors"))
    assert report.linear_bits == pytest.approx(8 * sum(scales_and_codes(report)) / weights_of(report), rel=0.05)
    assert report.linear_bits > 4, "scales and signs count"
    assert [event.block for event in events if isinstance(event, BlockCoded)] == [1, 2]
    model = open_target(str(report.folder), sink=ignore, dtype="fp32").loaded.model
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    assert not list(tmp_path.glob(".quantizing-*")), "no working folder is left"


def test_the_gate_judges_what_was_written(run: Run, base: Path, tmp_path: Path) -> None:
    """KL and losses equal those of the two models loaded again and compared directly."""
    report = run()
    after = open_target(str(report.folder), sink=ignore, dtype="fp32").loaded
    before = open_target(str(base), sink=ignore, dtype="fp32").loaded.model
    ids = torch.tensor([after.tokenizer("the cat sat on the mat and the dog").input_ids])
    with torch.no_grad():
        p, q = (model(input_ids=ids).logits.double().log_softmax(-1) for model in (before, after.model))
    assert float((p.exp() * (p - q)).sum(-1).mean()) == pytest.approx(report.gate.closeness.divergence, rel=3)
    assert report.gate.closeness.divergence > 0


def test_a_broken_model_gets_no_name_and_force_writes_it_without_coding_again(run: Run, tmp_path: Path) -> None:
    with pytest.raises(QualityGateError, match=r"KL divergence .* at most 1e-09 is allowed.*--force"):
        run(gate={"max_divergence": 1e-9})
    assert not (tmp_path / "out").exists()
    events: list[Event] = []
    report = run(gate={"max_divergence": 1e-9}, force=True, sink=events.append)
    assert not any(isinstance(event, BlockCoded) for event in events), "nothing was coded again"
    assert report.layers
    assert json.loads((report.folder / "quantize.json").read_text())["forced"]
    assert "FAILED" in (report.folder / "report.html").read_text()


def test_other_limits_finish_a_failed_request(run: Run) -> None:
    with pytest.raises(QualityGateError):
        run(gate={"min_agreement": 1.0, "max_divergence": 1e-9})
    assert run().gate.passed


class Killed(BaseException):
    """Ends the process where it stands, as far as the code under it can tell."""


def after_block(number: int, error: type[BaseException]) -> Callable[[Event], None]:
    def sink(event: Event) -> None:
        if isinstance(event, BlockCoded) and event.block == number:
            raise error

    return sink


def tensors_of(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of the file; safetensors writes the entries of its metadata in any order."""
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def test_a_killed_run_goes_on_at_its_block_and_ends_with_the_same_bytes(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(sink=after_block(1, Killed))
    assert not (tmp_path / "out").exists()
    events: list[Event] = []
    resumed = run(sink=events.append)
    assert [event.seconds == 0 for event in events if isinstance(event, BlockCoded)] == [True, False]
    whole = run(output=str(tmp_path / "whole"))
    assert tensors_of(resumed.folder) == tensors_of(whole.folder)


def test_an_interrupt_says_what_is_kept(run: Run) -> None:
    with pytest.raises(Interrupted, match=r"interrupted: 1 coded blocks are kept in .*; the same command goes on"):
        run(sink=after_block(1, KeyboardInterrupt))


def test_other_options_do_not_meet_the_blocks_of_a_killed_run(run: Run) -> None:
    with pytest.raises(Killed):
        run(sink=after_block(1, Killed))
    assert {layer.kind for layer in run(codec="s3").layers if layer.loss is not None} == {"s3"}


def test_nothing_is_replaced_unless_asked_and_then_by_a_whole_folder(run: Run, tmp_path: Path) -> None:
    first = run()
    with pytest.raises(ConfigError, match="holds a quantized model; replace it with --overwrite"):
        run(codec="s3")
    assert run(codec="s3", overwrite=True).linear_bits < first.linear_bits
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"is no quantized model .* so it is not replaced"):
        run(output=str(tmp_path / "mine"), overwrite=True)
    assert (tmp_path / "mine" / "file").read_text() == "mine"


def test_two_processes_do_not_write_the_same(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(sink=after_block(1, Killed))
    import fcntl

    work = next(tmp_path.glob(".quantizing-out-*"))
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is quantizing the same"):
            run()


def test_only_what_nobody_works_on_is_cleared_away(run: Run, tmp_path: Path) -> None:
    import fcntl

    busy, done = tmp_path / ".quantizing-out-0123456789ab", tmp_path / ".quantizing-out-ba9876543210"
    other = tmp_path / ".quantizing-out-3bit-0123456789ab"
    for folder in (busy, done, other):
        (folder / "parts").mkdir(parents=True)
    with (busy / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run()
    assert busy.is_dir(), "another process is at work there"
    assert not done.exists()
    assert other.is_dir(), "it belongs to the output of another name"


def test_a_size_is_kept_and_sensitive_layers_get_more(run: Run) -> None:
    largest = run(output=None, average_bits=20.0, mixed_codecs=["s2", "s4"])
    report = run(size=str(largest.file_bytes - 2500), mixed_codecs=["s2", "s4"])
    assert report.file_bytes <= largest.file_bytes - 2500
    assert {layer.kind for layer in report.layers if layer.loss is not None} == {"s2", "s4"}


def test_an_impossible_size_names_the_nearest_one(run: Run) -> None:
    with pytest.raises(BudgetError, match=r"size: 1.00 KiB cannot be met: .* at least .* bytes\)") as impossible:
        run(size="1KiB")
    least = int(str(impossible.value).split("(")[1].split(" ")[0])
    assert run(size=str(least), mixed_codecs=["e8", "s3", "s4"]).file_bytes <= least
    with pytest.raises(BudgetError, match=r"average_bits: 1 cannot be met: .* the nearest is \d\.\d\d bits"):
        run(average_bits=1.0, output=None)


def test_layers_that_are_skipped_stay_as_they_are(run: Run, base: Path) -> None:
    report = run(skip=["down_proj"], embeddings=16)
    assert not any("down_proj" in layer.name or "embed" in layer.name for layer in report.layers)
    before = open_target(str(base), sink=ignore, dtype="fp32").loaded.model
    after = open_target(str(report.folder), sink=ignore, dtype="fp32").loaded.model
    name = "model.layers.0.mlp.down_proj.weight"
    assert digest(after.get_parameter(name)) == digest(before.get_parameter(name))
    with pytest.raises(ConfigError, match="skip: 'nothing' is no layer of this model; they are called like model"):
        run(skip=["nothing"], output=None)
    with pytest.raises(ConfigError, match="every linear layer is left out"):
        run(skip=["proj"], output=None)


def test_a_run_is_calibrated_on_its_own_data(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    make_run(tmp_path, dataset=[{"format": "text", "path": str(text)}], max_length=16)
    given = {"model": str(tmp_path / "run"), **CHEAP, "gate": {**LOOSE, "tokens": 32, "prompt_count": 0}}
    report = quantize(load_quantize(given), sink=ignore)
    assert report.folder == tmp_path / "run-4bit"
    assert report.gate.after == ()


def test_what_cannot_be_quantized_is_refused_by_its_reason(run: Run, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        run(model=str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="is no run, so calibration text has to be named"):
        quantize(load_quantize({"model": str(base)}), sink=ignore)
    with pytest.raises(ConfigError, match=r"recovery trains on all of dataset, so .* eval_dataset"):
        run(recover={"steps": 1})
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError):
        run(dataset=str(tmp_path / "empty.txt"))
    (tmp_path / "one.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(ConfigError, match=r"has 1 row, and the result has to be judged by text that it was not"):
        run(dataset=str(tmp_path / "one.jsonl"))
    report = run()
    with pytest.raises(ConfigError, match=r"is quantized already \(lowmem\)"):
        run(model=str(report.folder), output=None)


def test_a_run_on_a_quantized_base_is_to_be_merged_first(tmp_path: Path) -> None:
    make_run(tmp_path, quantization={"kind": "nf4"})
    with pytest.raises(ConfigError, match=r"was trained on a nf4 base; `lowmem merge` folds it"):
        quantize(load_quantize({"model": str(tmp_path / "run")}), sink=ignore)


def test_experts_in_one_tensor_are_refused_by_name(run: Run, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    from tests.models.tiny import VOCABULARY, tiny_tokenizer

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MixtralConfig(vocab_size=VOCABULARY, intermediate_size=64, num_local_experts=2, **sizes)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    tiny_tokenizer().save_pretrained(tmp_path / "moe")
    with pytest.raises(ConfigError, match=r"experts.* in one tensor \(2, .*mixture of experts would stay as it is"):
        run(model=str(tmp_path / "moe"))


def test_a_budget_that_is_too_small_stops_before_weights_are_read(run: Run, base: Path, tmp_path: Path) -> None:
    os.remove(base / "model.safetensors")
    with pytest.raises(BudgetError, match=r"quantizing needs .* of 1.00 MiB: weights .* lower calibration.tokens"):
        run(memory_budget="1MiB")
    config = load_quantize({"model": str(base), "dataset": str(tmp_path / "text.txt"), **CHEAP})
    assert plan_quantize(config, sink=ignore).peak > 0


def test_recovery_trains_an_adapter_that_loads_with_its_base(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n".join(WORDS * 4))
    report = run(
        recover={"steps": 3, "learning_rate": 1e-2, "lora_r": 2}, eval_dataset=str(other), codec="s2", embeddings=16
    )
    assert report.unrecovered is not None
    assert report.gate.closeness.loss_after != report.unrecovered.closeness.loss_after
    assert report.recovered == tmp_path / "out" / "recovered"
    open_target(str(report.recovered), sink=ignore, dtype="fp32")
    assert "recovered" in (report.folder / "report.html").read_text()


def test_the_packed_model_is_exported_to_ordinary_weights(run: Run, tmp_path: Path) -> None:
    report = run()
    export(str(report.folder), tmp_path / "plain", dtype="fp32", sink=ignore)
    after, plain = (
        open_target(str(folder), sink=ignore, dtype="fp32").loaded.model
        for folder in (report.folder, tmp_path / "plain")
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        packed, ordinary = (model(input_ids=ids).logits for model in (after, plain))
    assert float((packed - ordinary).norm() / ordinary.norm()) < 0.05, "up to the 8 bits of a kernel's activations"
