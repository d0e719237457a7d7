from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowmem.config.aliases import ELSEWHERE, IN_SECTION, OWN_KEYS, TOP_LEVEL, is_secret
from lowmem.config.dataset import AutoData, MessagesData, TaskData
from lowmem.config.explain import VARIANTS
from lowmem.config.generation import GenerationConfig
from lowmem.config.load import LoadedRun, load_run
from lowmem.config.method import FullMethod, LoraMethod, ZoMethod
from lowmem.config.optimizer import AdamW, AdamW8bit
from lowmem.config.quantization import Int8, Nf4, NoQuantization
from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError

MODEL, DATA = "model: m\n", "dataset: d.jsonl\n"


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def run(text: str, *overrides: str) -> LoadedRun:
        (tmp_path / "run.yaml").write_text(text)
        return load_run(tmp_path / "run.yaml", overrides)

    return run


def test_every_alias_leads_to_a_key_that_exists() -> None:
    for alias, target in TOP_LEVEL.items():
        section, _, key = target.partition(".")
        assert section in RunConfig.model_fields, alias
        owners = VARIANTS.get(section, {"": GenerationConfig}).values()
        assert not key or any(key in owner.model_fields for owner in owners), alias
    for section, aliases in IN_SECTION.items():
        owners = VARIANTS.get(section, {"": GenerationConfig}).values()
        assert all(any(key in owner.model_fields for owner in owners) for key in aliases.values()), section


def test_no_alias_hides_a_key() -> None:
    assert not RunConfig.model_fields.keys() & (TOP_LEVEL.keys() | ELSEWHERE.keys())
    for section, aliases in IN_SECTION.items():
        for kind, owner in VARIANTS.get(section, {"": GenerationConfig}).items():
            assert owner.model_fields.keys() & aliases.keys() == set(OWN_KEYS.get((section, kind), ()))


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("model_name_or_path: x\n" + DATA, "model", "x"),
        ("base_model: x\n" + DATA, "model", "x"),
        (MODEL + "datasets: d.jsonl\n", "dataset", (AutoData(path="d.jsonl"),)),
        (MODEL + DATA + "cutoff_len: 64", "max_length", 64),
        (MODEL + DATA + "sequence_len: 64", "max_length", 64),
        (MODEL + DATA + "micro_batch_size: 2", "per_device_train_batch_size", 2),
        (MODEL + DATA + "gradient_accumulation: 2", "gradient_accumulation_steps", 2),
        (MODEL + DATA + "lr: 1e-5", "learning_rate", 1e-5),
        (MODEL + DATA + "epochs: 2", "num_train_epochs", 2.0),
        (MODEL + DATA + "num_epochs: 2", "num_train_epochs", 2.0),
        (MODEL + DATA + "bf16: true", "dtype", "bf16"),
        (MODEL + DATA + "fp16: true\nbf16: false", "dtype", "fp16"),
        (MODEL + DATA + "bf16: false\nfp16: false", "dtype", "fp32"),
        (MODEL + DATA + "torch_dtype: bfloat16", "dtype", "bf16"),
        (MODEL + DATA + "torch_dtype: float32", "dtype", "fp32"),
        (MODEL + DATA + "quantization_bit: 4", "quantization", Nf4()),
        (MODEL + DATA + "quantization_bit: 8", "quantization", Int8()),
        (MODEL + DATA + "quantization_bit: 16", "quantization", NoQuantization()),
        (MODEL + DATA + "load_in_4bit: true", "quantization", Nf4()),
        (MODEL + DATA + "load_in_8bit: true", "quantization", Int8()),
        (MODEL + DATA + "lora_rank: 4\nlora_alpha: 32", "method", LoraMethod(lora_r=4, lora_alpha=32)),
        (MODEL + DATA + "lora_r: 4\nmethod: lora", "method", LoraMethod(lora_r=4)),
        (MODEL + DATA + "finetuning_type: full", "method", FullMethod()),
        (MODEL + DATA + "method: mezo\nzo_eps: 1e-2", "method", ZoMethod(algorithm="mezo", zo_eps=0.01)),
        (MODEL + DATA + "method: {kind: lora, rank: 3}", "method", LoraMethod(lora_r=3)),
        (MODEL + DATA + "lora_target: q_proj, v_proj", "method", LoraMethod(lora_target_modules=("q_proj", "v_proj"))),
        (MODEL + DATA + "lora_target: all", "method", LoraMethod()),
        (MODEL + DATA + "lora_target_linear: true", "method", LoraMethod()),
        (MODEL + DATA + "weight_decay: 0.1", "optimizer", AdamW(weight_decay=0.1)),
        (MODEL + DATA + "optim: adamw_torch\nweight_decay: 0.1", "optimizer", AdamW(weight_decay=0.1)),
        (MODEL + DATA + "optim: adamw_bnb_8bit", "optimizer", AdamW8bit()),
        (MODEL + DATA + "lr_scheduler: constant_with_warmup", "lr_scheduler_type", "constant"),
        (MODEL + DATA + "temperature: 0.5", "generation", GenerationConfig(temperature=0.5)),
        (MODEL + "dataset: {path: a, type: sharegpt}", "dataset", (MessagesData(path="a"),)),
        (MODEL + DATA + "max_samples: 5", "dataset", (AutoData(path="d.jsonl", limit=5),)),
        (MODEL + DATA + "budget: 8GiB", "memory_budget", "8GiB"),
    ],
)
def test_other_tools_names_are_accepted_with_a_notice(load: Any, text: str, key: str, value: object) -> None:
    loaded = load(text)
    assert getattr(loaded.config, key) == value
    assert any("is read as" in notice for notice in loaded.notices) or "lora_target_modules" in text


def test_a_notice_names_the_line_and_both_names(load: Any) -> None:
    notices = load(MODEL + DATA + "lr: 1e-4\nbf16: true").notices
    assert [notice.rpartition("/")[2] for notice in notices] == [
        "run.yaml:4: bf16: true is read as dtype: bf16",
        "run.yaml:3: lr is read as learning_rate",
    ]


def test_qlora_is_lora_on_a_4_bit_base(load: Any) -> None:
    config = load(MODEL + DATA + "adapter: qlora\nload_in_4bit: true\nlora_r: 4").config
    assert config.method == LoraMethod(lora_r=4)
    assert config.quantization == Nf4()


@pytest.mark.parametrize(
    "text",
    [
        MODEL + "base_model: x\n" + DATA,
        "model_name_or_path: x\nbase_model: y\n" + DATA,
        MODEL + DATA + "lr: 1e-4\nlearning_rate: 1e-4",
        MODEL + DATA + "bf16: true\nfp16: true",
        MODEL + DATA + "dtype: fp32\nbf16: true",
        MODEL + DATA + "quantization: nf4\nload_in_8bit: true",
        MODEL + DATA + "lora_r: 4\nmethod: {kind: lora, lora_r: 4}",
        MODEL + DATA + "lora_r: 4\nmethod: {kind: lora, rank: 4}",
        MODEL + DATA + "method: {rank: 4, lora_r: 4}",
        MODEL + DATA + "lora_r: 4\nlora_rank: 4",
    ],
)
def test_a_key_under_two_names_is_an_error(load: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=r"means the same as .*; keep one of them"):
        load(text)


def test_an_alias_on_the_command_line_overrides_the_canonical_key_of_the_file(load: Any) -> None:
    assert load(MODEL + DATA + "learning_rate: 1e-4", "lr=1e-5").config.learning_rate == 1e-5


def test_shorthands_equal_the_written_out_form(load: Any) -> None:
    short = load(MODEL + DATA + "method: full\noptimizer: adamw\nquantization: none\nreport_to: tensorboard")
    long = load(
        MODEL
        + "dataset:\n- {format: auto, path: d.jsonl}\nmethod: {kind: full}\noptimizer: {kind: adamw}\n"
        + "quantization: {kind: none}\nreport_to: [tensorboard]"
    )
    assert short.config == long.config
    assert not short.notices


def test_a_dataset_with_a_task_is_a_task(load: Any) -> None:
    assert load(MODEL + "dataset: {path: d, task: sst2}").config.dataset == (TaskData(path="d", task="sst2"),)


@pytest.mark.parametrize("value", ["none", "null", "[]", "[none]"])
def test_no_trackers_can_be_said_in_any_way(load: Any, value: str) -> None:
    assert load(MODEL + DATA + f"report_to: {value}").config.report_to == ()


@pytest.mark.parametrize(
    ("text", "variable"),
    [
        ("hf_token: hf_abc", "HF_TOKEN"),
        ("wandb_token: abc", "WANDB_API_KEY"),
        ("wandb_api_key: abc", "WANDB_API_KEY"),
        ("password: abc", "HF_TOKEN"),
        ("generation: {token: abc}", "HF_TOKEN"),
        ("eval_dataset: [{path: x, token: abc}]", "HF_TOKEN"),
    ],
)
def test_secrets_are_refused_and_not_repeated(load: Any, text: str, variable: str) -> None:
    with pytest.raises(ConfigError, match=rf"run\.yaml:3: .*environment variable {variable}") as refused:
        load(MODEL + DATA + text)
    assert "abc" not in str(refused.value)


def test_words_with_token_in_them_are_no_secrets() -> None:
    assert not any(map(is_secret, ("max_new_tokens", "loss_chunk_tokens", "pad_token", "eos_token", "monkey")))
