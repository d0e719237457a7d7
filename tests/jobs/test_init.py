from __future__ import annotations

from pathlib import Path

import pytest

from lowmem.config.dataset import AutoData, ProceduralData
from lowmem.config.load import LoadedRun, load_run
from lowmem.config.method import FullMethod, LoraMethod, ZoMethod
from lowmem.config.quantization import Nf4, NoQuantization
from lowmem.errors import ConfigError
from lowmem.jobs.init import METHODS, init_yaml


def load(text: str, folder: Path) -> LoadedRun:
    (folder / "run.yaml").write_text(text)
    return load_run(folder / "run.yaml")


@pytest.mark.parametrize("method", METHODS)
def test_every_template_loads_without_notices(method: str, tmp_path: Path) -> None:
    loaded = load(init_yaml(method=method), tmp_path)
    assert loaded.notices == ()
    assert loaded.config.model == "tiny-reasoner"
    assert loaded.config.output_dir == f"runs/{method}"


def test_the_methods_are_what_they_are_called(tmp_path: Path) -> None:
    configs = {method: load(init_yaml(method=method), tmp_path).config for method in METHODS}
    assert configs["lora"].method == configs["qlora"].method == LoraMethod()
    assert configs["qlora"].quantization == Nf4()
    assert configs["lora"].quantization == NoQuantization()
    assert configs["full"].method == FullMethod()
    assert configs["adanaged"].method == ZoMethod()
    assert configs["mezo"].method == ZoMethod(algorithm="mezo", zo_eps=1e-3)


def test_evaluation_problems_are_not_those_of_training(tmp_path: Path) -> None:
    config = load(init_yaml(dataset="sort"), tmp_path).config
    train, dev = config.dataset[0], config.eval_dataset[0]
    assert isinstance(train, ProceduralData)
    assert isinstance(dev, ProceduralData)
    assert (train.family, dev.family) == ("sort", "sort")
    assert train.data_seed % 2 != dev.data_seed % 2


@pytest.mark.parametrize("name", ["org/model", "1e-5", "null", "a: b", "#x", "it's", '"q"', "[x]", "long " * 60, "é"])
def test_any_name_of_a_model_or_dataset_is_quoted_as_needed(name: str, tmp_path: Path) -> None:
    config = load(init_yaml(model=name, dataset=name), tmp_path).config
    assert config.model == name
    assert config.dataset == (AutoData(path=name),)


@pytest.mark.parametrize("method", METHODS)
def test_the_commented_keys_exist(method: str, tmp_path: Path) -> None:
    text = init_yaml(method=method).replace("# eval_steps", "eval_steps").replace("# save_steps", "save_steps")
    text = text.replace("# report_to", "report_to").replace("  # lora_", "  lora_")
    config = load(text, tmp_path).config
    assert (config.eval_steps, config.save_steps, config.report_to) == (100, 100, ("tensorboard",))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--method lroa: is not one of lora, .*; did you mean lora\?"):
        init_yaml(method="lroa")
