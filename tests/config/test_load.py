from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem.config.dataset import AutoData, CompletionData, ProceduralData, TaskData
from lowmem.config.generation import GenerationConfig
from lowmem.config.load import dump_run, load_run
from lowmem.config.method import FullMethod, LoraMethod, ZoMethod
from lowmem.config.optimizer import Sgd
from lowmem.config.quantization import Nf4
from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndataset: d.jsonl\nlearning_rate: 1e-4\nmethod: {kind: lora, lora_r: 4}\n")
    return path


def test_overrides_win_over_the_file_in_their_order(path: Path) -> None:
    config = load_run(path, ["learning_rate=1E-5", "method.lora_r=16", "method.lora_r=32", "seed=7"]).config
    assert (config.learning_rate, config.method, config.seed) == (1e-5, LoraMethod(lora_r=32), 7)


def test_the_file_wins_over_the_base(path: Path) -> None:
    base = {"learning_rate": 1.0, "max_length": 64, "method": {"kind": "lora", "lora_alpha": 3}}
    config = load_run(path, base=base).config
    assert (config.learning_rate, config.max_length) == (1e-4, 64)
    assert config.method == LoraMethod(lora_r=4, lora_alpha=3)


def test_a_config_needs_no_file() -> None:
    loaded = load_run(None, ["model=m", "dataset=d.jsonl"])
    assert loaded.config == RunConfig(model="m", dataset=(AutoData(path="d.jsonl"),))
    assert loaded.source is None


def test_another_kind_drops_the_keys_of_the_old_one(path: Path) -> None:
    config = load_run(path, ["method=zo", "method.algorithm=mezo", "optimizer=sgd", "optimizer.momentum=0.9"]).config
    assert config.method == ZoMethod(algorithm="mezo")
    assert config.optimizer == Sgd(momentum=0.9)


def test_the_same_kind_keeps_the_other_keys(path: Path) -> None:
    assert load_run(path, ["method=lora"]).config.method == LoraMethod(lora_r=4)


def test_dash_and_underscore_are_the_same_in_overrides(path: Path) -> None:
    assert load_run(path, ["learning-rate=1e-5"]).config.learning_rate == 1e-5


def test_null_on_the_command_line_unsets_a_key(path: Path) -> None:
    assert load_run(path, ["learning_rate=None"]).config.learning_rate is None


def test_one_dataset_of_several_can_be_changed(path: Path) -> None:
    path.write_text("model: m\ndataset: [a.jsonl, b.jsonl]\n")
    limits = [d.limit for d in load_run(path, ["dataset.1.limit=10"]).config.dataset if isinstance(d, AutoData)]
    assert limits == [None, 10]
    limits = [d.limit for d in load_run(path, ["dataset.limit=10"]).config.dataset if isinstance(d, AutoData)]
    assert limits == [10, 10]


def test_a_dataset_can_be_replaced_by_a_path(path: Path) -> None:
    assert load_run(path, ["dataset=x.csv"]).config.dataset == (AutoData(path="x.csv"),)


def test_a_dataset_beside_the_file_is_found_but_the_current_folder_comes_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path.parent / "d.jsonl").write_text("{}\n")
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_run(path).config.dataset == (AutoData(path=str(path.parent / "d.jsonl")),)
    (elsewhere / "d.jsonl").write_text("{}\n")
    assert load_run(path).config.dataset == (AutoData(path="d.jsonl"),)


def test_a_hub_id_is_left_as_it_is(path: Path) -> None:
    assert load_run(path, ["dataset=org/name"]).config.dataset == (AutoData(path="org/name"),)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "'seed' is not an override; write key=value"),
        ("=1", "'=1' is not an override"),
        ("seed=[1", "command line: seed: not valid YAML"),
        ("sed=1", r"command line: sed: is not a key; did you mean seed\?"),
        ("seed=one", "command line: seed: is 'one', must be a whole number"),
        ("seed=-1", "command line: seed: is -1, must be at least 0"),
        ("dataset.3.limit=1", "command line: dataset.3: there are 1 entries, numbered from 0 to 0"),
        ("dataset.0.limt=1", r"dataset.0.limt: is not a key; did you mean limit\?"),
        ("hf_token=abc", "command line: hf_token: secrets"),
        ("method.train_adapter.rnk=1", "command line: method.train_adapter: is not a key of kind: lora"),
    ],
)
def test_a_bad_override_says_that_it_is_on_the_command_line(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run(path, [override])


def test_all_problems_are_listed_at_once_in_the_order_of_the_file(path: Path) -> None:
    path.write_text("model: 3\ndataset: d.jsonl\nseed: x\nsed: 1\nhf_token: t\ndtype: bf17\n")
    with pytest.raises(ConfigError) as refused:
        load_run(path, ["max_length=0"])
    lines = str(refused.value).replace(f"{path.parent}/", "").splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["run.yaml:1", "model"],
        ["run.yaml:3", "seed"],
        ["run.yaml:4", "sed"],
        ["run.yaml:5", "hf_token"],
        ["run.yaml:6", "dtype"],
        ["command line", "max_length"],
    ]


CONFIGS = [
    RunConfig(model="1e-5", dataset=(AutoData(path="null"),), output_dir="on", run_name="2026-01-31"),
    RunConfig(
        model="m: #x",
        dataset=(CompletionData(path="a b", separator="\n\t: ", limit=3), TaskData(path="p", task="sst2", weight=0.5)),
        eval_dataset=(ProceduralData(family="sub"),),
        method=LoraMethod(lora_target_modules=("q_proj", "true")),
        quantization=Nf4(double_quant=False),
        learning_rate=1e-7,
        chat_template="{% for m in messages %}\n{{ m }}\n{% endfor %}",
        generation=GenerationConfig(stop=("\n", "é")),
        report_to=("tensorboard",),
        memory_budget="24GiB",
    ),
    RunConfig(model="m", dataset=(AutoData(path="d"),), method=FullMethod(), max_grad_norm=None),
    RunConfig(model="m", dataset=(AutoData(path="d"),), method=ZoMethod(train_adapter=LoraMethod(lora_r=2))),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_dumped_config_loads_to_an_equal_one(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_run(config))
    loaded = load_run(tmp_path / "config.yaml")
    assert loaded.config == config
    assert loaded.notices == ()


@settings(deadline=None)
@given(
    model=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    rate=st.floats(1e-12, 1e3),
    stop=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
)
def test_any_text_and_number_survives_the_dump(model: str, rate: float, stop: list[str]) -> None:
    config = RunConfig(
        model=model,
        dataset=(AutoData(path="d"),),
        learning_rate=rate,
        generation=GenerationConfig(stop=tuple(stop)),
    )
    from lowmem.config.yaml_source import parse_yaml, to_plain

    base = to_plain(parse_yaml(dump_run(config), "config.yaml"))
    assert load_run(None, base=base).config == config


def test_loading_a_config_does_not_import_torch() -> None:
    code = "import sys, lowmem.config.load, lowmem.config.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("text", ["\x85", "a\x85b", "\u2028", "x\u2029", "\ufeff", "on", "1e-5", " a", "a\nb", "\x0b"])
def test_awkward_text_survives_the_dump(text: str) -> None:
    from lowmem.config.yaml_source import parse_yaml, to_plain

    config = RunConfig(model="m", dataset=(AutoData(path="d"),), generation=GenerationConfig(stop=(text,)))
    base = to_plain(parse_yaml(dump_run(config), "config.yaml"))
    assert load_run(None, base=base).config.generation.stop == (text,)
