"""Whatever stands in the file: exit code 2, file and line, and a hint. Never a traceback."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lowmem.cli.app import app
from lowmem.config.aliases import TOP_LEVEL
from lowmem.config.load import load_run
from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError

OK = "model: m\ndataset: d.jsonl\n"

# (content, line of the problem, a part of the message that says what to do)
MALFORMED: list[tuple[str | bytes, int, str]] = [
    # Not a YAML mapping at all.
    ("", 1, "lowmem init"),
    ("# only a comment\n", 1, "lowmem init"),
    ("null\n", 1, "lowmem init"),
    ("- model: m\n", 1, "a config is a mapping of `key: value` lines, and this is a list"),
    ("just text\n", 1, "a config is a mapping"),
    ("42\n", 1, "a config is a mapping"),
    (b"model: m\n\xff\xfe\n", 2, "save the file as UTF-8"),
    (b"\x00\x01binary", 1, "is a binary file"),
    (b"PK\x03\x04\x00\x00", 1, "is a binary file"),
    ("model: m\nrun_name: \x07\n", 2, "is not allowed in YAML; remove it"),
    # YAML that cannot be parsed.
    ("model: m\n\tdataset: d\n", 2, "use spaces"),
    ("model: m\nmethod:\n\tkind: lora\n", 3, "use spaces"),
    ("model: m\ndataset: [a, b\nseed: 1\n", 3, "check indentation, quotes and brackets"),
    ("model: 'm\ndataset: d\n", 3, "check indentation, quotes and brackets"),
    ("model: m\n  dataset: d\n", 2, "indent the keys of a section alike"),
    ("model: m: n\n", 1, "quote text that holds"),
    ("model: @m\n", 1, "put the text in quotes"),
    ("model: `m`\n", 1, "put the text in quotes"),
    ("model: *m\n", 1, "check indentation, quotes and brackets"),
    ("model: m\n---\nmodel: n\n", 2, "a config is one document"),
    ("model: m\n}\n", 2, "check indentation, quotes and brackets"),
    ("%YAML: 3\nmodel: m\n", 1, "not valid YAML"),
    ("[" * 3000, 1, "nested too deeply"),
    ("model: " + "[" * 60 + "]" * 60, 1, "nested too deeply"),
    ("a: &a [*a]\n", 1, "write the values out"),
    (
        "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 9)).replace("*a0", "x"),
        1,
        "write the values out",
    ),
    # YAML that means something else than was meant.
    (OK + "seed: 1\nseed: 2\n", 4, "remove one"),
    ("? [a]\n: b\n", 1, "a key must be plain text"),
    (OK + "<<: {seed: 1}\n", 3, "write the keys out"),
    (OK + "seed: !!python/object/apply:os.system [x]\n", 3, "is not allowed in a config; remove it"),
    (OK + "seed: !!int abc\n", 3, "remove the tag"),
    (OK + "seed: !seed 3\n", 3, "remove the tag"),
    (OK + 'run_name: "\\ud800"\n', 3, "it is not valid text"),
    (OK + "1: 2\n", 3, "is not a key"),
    # Keys.
    ("model: m\n", 1, "dataset: is required"),
    ("dataset: d.jsonl\n", 1, "model: is required: A hub id"),
    (OK + "learning_rat: 1e-4\n", 3, "did you mean learning_rate?"),
    (OK + "Learning_rate: 1e-4\n", 3, "did you mean learning_rate?"),
    (OK + "max_seq_lenght: 3\n", 3, "did you mean max_length?"),
    (OK + "xyzzy: 3\n", 3, "`lowmem init` prints the usual keys"),
    (OK + "resume_from_checkpoint: x\n", 3, "lowmem train CONFIG --resume"),
    (OK + "deepspeed: z3.json\n", 3, "sharding is not supported"),
    (OK + "momentum: 0.9\n", 3, "belongs to kind: sgd"),
    (OK + "double_quant: true\n", 3, "write it under quantization (kind: nf4)"),
    (OK + "format: alpaca\n", 3, "write it under dataset"),
    (OK + "method:\n  kind: zo\n  lora_r: 4\n", 5, "belongs to kind: lora"),
    (OK + "method:\n  kind: lora\n  learning_rate: 1e-4\n", 5, "belongs to the top level"),
    (OK + "method:\n  kind: zo\n  train_adapter:\n    lora_rr: 4\n", 6, "did you mean lora_r?"),
    (OK + "optimizer: {kind: adamw, beta: 1}\n", 3, "did you mean betas?"),
    (OK + "hf_token: secret\n", 3, "set the environment variable HF_TOKEN"),
    (OK + "model_name_or_path: x\n", 3, "keep one of them"),
    # Values.
    (OK + "seed: abc\n", 3, "must be a whole number"),
    (OK + "seed: 1.5\n", 3, "must be a whole number"),
    (OK + "seed: '1'\n", 3, "remove the quotes"),
    (OK + "seed: true\n", 3, "must be a whole number"),
    (OK + "seed: -1\n", 3, "must be at least 0"),
    (OK + "seed:\n", 3, "leave the key out for its default"),
    (OK + "max_length: 0\n", 3, "must be greater than 0"),
    (OK + "learning_rate: auto\n", 3, "leave the key out for its default"),
    (OK + "learning_rate: 1e999\n", 3, "must be a finite number"),
    (OK + "learning_rate: .nan\n", 3, "must be"),
    (OK + "learning_rate: 1e-4 # ok\nwarmup_ratio: 2\n", 4, "must be at most 1"),
    (OK + "gradient_checkpointing: yes\n", 3, "write true"),
    (OK + "gradient_checkpointing: off\n", 3, "write false"),
    (OK + "gradient_checkpointing: 1\n", 3, "must be true or false"),
    ("model: 13\ndataset: d\n", 1, "put it in quotes"),
    ("model: ''\ndataset: d\n", 1, "must be text that is not empty"),
    ("model: [m]\ndataset: d\n", 1, "must be text"),
    (OK + "dtype: bf17\n", 3, "did you mean bf16?"),
    (OK + "attn_implementation: flash\n", 3, "must be one of sdpa, eager"),
    (OK + "memory_budget: plenty\n", 3, "write for example 24GiB"),
    (OK + "report_to: mlflow\n", 3, "must be one of tensorboard, wandb, trackio"),
    (OK + "quantization_bit: 3\n", 3, "must be"),
    # Sections.
    (OK + "method: lroa\n", 3, "did you mean lora?"),
    (OK + "method: 3\n", 3, "or a name: lora"),
    (OK + "method: [lora]\n", 3, "or a name: lora"),
    (OK + "method:\n  kind: 3\n", 4, "must be one of lora"),
    (OK + "optimizer: adamw2\n", 3, "did you mean adamw?"),
    (OK + "optimizer: {betas: [0.9]}\n", 3, "the list needs more entries"),
    (OK + "optimizer: {betas: [0.9, 2]}\n", 3, "must be less than 1"),
    (OK + "generation: greedy\n", 3, "must be a mapping of keys"),
    (OK + "generation: {stop: word}\n", 3, "must be a list"),
    ("model: m\ndataset: []\n", 2, "must be a list of at least one"),
    ("model: m\ndataset:\n", 2, "must be a list of at least one"),
    ("model: m\ndataset: 3\n", 2, "must be a mapping of keys"),
    ("model: m\ndataset:\n- a.jsonl\n- 3\n", 4, "must be a mapping of keys"),
    ("model: m\ndataset:\n- path: a\n  format: alpca\n", 4, "did you mean alpaca?"),
    ("model: m\ndataset:\n- limit: 3\n", 3, "path: is required: A local"),
    ("model: m\ndataset:\n- path: a\n  task: sst3\n", 4, "did you mean sst2?"),
    ("model: m\ndataset:\n- path: a\n  family: sub\n", 3, "is not a key of format: procedural"),
    ("model: m\ndataset: {path: a, prompt_column: q}\n", 2, "belongs to format: completion"),
    # Combinations.
    (OK + "method: adanaged\nlearning_rate: 1e-4\n", 4, "remove learning_rate"),
    (OK + "method:\n  kind: zo\n  zo_eps: 1e-3\n", 5, "remove zo_eps or use algorithm: mezo"),
    (OK + "method: full\nquantization: nf4\n", 4, "use method: lora"),
    (OK + "early_stopping_patience: 3\n", 1, "eval_dataset: is needed"),
    (OK + "bf16: true\nfp16: true\n", 4, "keep one of them"),
]


def run(path: Path, *overrides: str) -> Any:
    return CliRunner().invoke(app, ["train", str(path), *overrides, "--dry-run"])


@pytest.mark.parametrize(("content", "line", "hint"), MALFORMED)
def test_a_malformed_config_ends_with_file_line_and_hint(
    content: str | bytes, line: int, hint: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    result = run(path)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert re.match(rf"error: {re.escape(str(path))}:{line}: ", result.stderr), result.stderr
    assert hint in result.stderr
    assert "pydantic" not in result.stderr


def test_the_table_is_large() -> None:
    assert len(MALFORMED) >= 50


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("missing.yaml", "there is no such file; did you mean"),
        ("nowhere/run.yaml", "there is no such file"),
        ("tiny-dmo", "did you mean tiny-demo?"),
        ("qqq", "presets are"),
        ("folder", "is a folder; name the YAML file in it"),
        ("huge.yaml", "too many for a config"),
        ("x" * 300 + ".yaml", "there is no such file"),
    ],
)
def test_a_path_that_is_no_config_ends_with_a_hint(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "missin.yaml").write_text(OK)
    (tmp_path / "huge.yaml").write_text("#" * 2_000_000)
    result = run(Path(name))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {name}")
    assert hint in result.stderr


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(OK)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"run\.yaml: cannot be read: Permission denied"):
        load_run(path)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["lora", "zo", "auto", "nf4", "adamw", "none", "task", "sst2", "1e-5", "yes"])
)
keys = st.sampled_from([*RunConfig.model_fields, *TOP_LEVEL, "kind", "lora_r", "path", "format", "task", "bf16"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
)
mappings = st.dictionaries(keys | st.text(max_size=6), values, max_size=8)


def assert_loads_or_refuses(text: bytes, folder: Path) -> None:
    path = folder / "run.yaml"
    path.write_bytes(text)
    try:
        loaded = load_run(path)
    except ConfigError as error:
        message = str(error)
    else:
        assert isinstance(loaded.config, RunConfig)
        return
    for line in message.splitlines():
        assert re.match(rf"{re.escape(str(path))}:\d+: .", line), message


no_fixture_check = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)


@no_fixture_check
@given(data=mappings)
def test_any_mapping_loads_or_is_refused_with_a_line(data: dict[str, Any], tmp_path: Path) -> None:
    text = yaml.safe_dump({"model": "m", "dataset": "d.jsonl", **data})
    assert_loads_or_refuses(text.encode(), tmp_path)


@no_fixture_check
@given(text=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="replace")))
def test_any_bytes_load_or_are_refused_with_a_line(text: bytes, tmp_path: Path) -> None:
    assert_loads_or_refuses(text, tmp_path)


@no_fixture_check
@given(data=st.data())
def test_a_damaged_preset_loads_or_is_refused_with_a_line(
    data: st.DataObject, tmp_path: Path, repository: Path
) -> None:
    text = (repository / "configs" / "qwen-7b-qlora.yaml").read_bytes()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    assert_loads_or_refuses(text[:start] + data.draw(st.binary(max_size=6)) + text[end:], tmp_path)
