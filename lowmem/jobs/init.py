"""`lowmem init`: a commented config that trains as it stands."""

from __future__ import annotations

import yaml

from lowmem.config.explain import did_you_mean
from lowmem.config.yaml_source import Dumper
from lowmem.data.procedural import families
from lowmem.errors import ConfigError
from lowmem.models.embedded import EMBEDDED

MODEL = "tiny-reasoner"
DATASET = "sub"

_LORA = """\
method:
  kind: lora
  lora_r: 8                          # higher = more capacity, more memory
  # lora_alpha: 16                   # scale is alpha / r; default 2 r
  # lora_target_modules: all-linear  # or a list: [q_proj, v_proj]; fewer = less memory"""
_ADAMW = """\
learning_rate: {rate}
optimizer: adamw                     # two numbers of state per trained parameter; sgd has none"""
_METHODS = {
    "lora": (_LORA, _ADAMW.format(rate="2e-4"), "none"),
    "qlora": (_LORA, _ADAMW.format(rate="2e-4"), "nf4"),
    "full": (
        "method: full                         # trains every weight: best fit, most memory",
        _ADAMW.format(rate="2e-5"),
        "none",
    ),
    "adanaged": (
        "method:\n  kind: zo                           # forward passes only: the memory of inference\n"
        "  algorithm: adanaged                # chooses its own step, so there is no learning_rate",
        None,
        "none",
    ),
    "mezo": (
        "method:\n  kind: zo                           # forward passes only: the memory of inference\n"
        "  algorithm: mezo\n"
        "  zo_eps: 1e-3                       # radius of the two probes",
        "learning_rate: 1e-6                  # the first thing to tune: 1e-7 ... 1e-5",
        "none",
    ),
}
METHODS = tuple(_METHODS)

_TEMPLATE = """\
# A run of lowmem: `lowmem train FILE`, then `lowmem chat {output}` or `lowmem eval {output}`.
# Any key can be replaced on the command line: `lowmem train FILE seed=1 max_steps=50`.

model: {model}
# A hub id, a model folder, a run folder, or an embedded name: tiny-reasoner, smollm2-135m-instruct.
dtype: {dtype}                          # bf16 = half the memory of fp32, but slow on most CPUs
quantization: {quantization:<23}# none | nf4 | int8: how the frozen base is stored; nf4 = a quarter of bf16

{data}
max_length: 512                      # longer samples are cut; lower = less memory

{method}
{rate}per_device_train_batch_size: 8       # lower = less memory
gradient_accumulation_steps: 1       # batches per update: larger updates at the same memory
gradient_checkpointing: false        # true = much less memory, about a third slower
num_train_epochs: 1                  # or max_steps: 500
warmup_ratio: 0.03

eval_limit: 100                      # samples per evaluation, before and after; raise for sharper numbers
# eval_steps: 100                    # evaluate in between as well
# save_steps: 100                    # a checkpoint is written at the end and on Ctrl-C in any case
# report_to: tensorboard             # besides metrics.jsonl and report.html
seed: 42
output_dir: {output}
"""


BATCH = """\
jobs:
  tune:
    train: tiny-demo                          # a run's config: your file, or a preset
    set: {max_steps: 60}                      # keys that replace the config's
    matrix: {learning_rate: [1e-3, 3e-3, 1e-2]}   # a job for each; more keys make a grid
  check:
    eval: ${jobs.tune.output_dir}             # after each of them
"""
"""`lowmem init --batch`: three learning rates, each with its evaluation."""


def init_yaml(*, method: str = "lora", model: str = MODEL, dataset: str = DATASET) -> str:
    """A commented config. `dataset` is a file, a folder, a hub id or the name of a procedural family.

    Raises `ConfigError` for a method that has no template.
    """
    if method not in _METHODS:
        raise ConfigError(f"--method {method}: is not one of {', '.join(METHODS)}{did_you_mean(method, METHODS)}")
    section, rate, quantization = _METHODS[method]
    return _TEMPLATE.format(
        model=_scalar(model),
        dtype="fp32" if model in EMBEDDED else "bf16",  # the embedded models are small and mostly tried on CPUs
        quantization=quantization,
        data=_data(dataset),
        method=section,
        rate="" if rate is None else f"{rate}\n",
        output=f"runs/{method}",
    )


def _data(dataset: str) -> str:
    if dataset in families():
        return f"""\
dataset:
  format: procedural                 # generated problems with worked solutions; your own: dataset: train.jsonl
  family: {dataset}
  size: 2000
eval_dataset:
  format: procedural
  family: {dataset}
  size: 100
  data_seed: 1                       # odd seeds never share a problem with even ones"""
    return f"""\
dataset: {_scalar(dataset)}
# A .jsonl/.json/.csv/.parquet/.txt file, a folder, or a hub id; its format is recognised from the columns. Or:
# dataset:
#   - {{path: train.jsonl, format: completion, prompt_column: question, completion_column: answer, limit: 500}}
# eval_dataset: validation.jsonl     # measured before and after"""


def _scalar(text: str) -> str:
    """The text as YAML, with quotes where it would otherwise be read as something else."""
    return str(yaml.dump([text], Dumper=Dumper, default_flow_style=True, width=10_000, allow_unicode=True)).strip()[
        1:-1
    ]
