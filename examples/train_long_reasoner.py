"""Trains `long-reasoner`, the bed of `bench_rescue.py`: the embedded `tiny-reasoner`, taught to check its work.

    python examples/train_long_reasoner.py                  # once; about nine minutes of one CPU core
    lowmem generate ~/.cache/lowmem/long-reasoner "347+89=?
    "

`tiny-reasoner` does not loop at 2 bits: its thoughts are short and there is one way to write them. This model's are
some 200 tokens, hold the answer after a quarter of that, and end when their writer happens to stop checking
(`rescue/problems.py`). Everything runs through the tool itself (`lowmem.jobs.train`, method full, packed text), is a
function of the seed and of `--stages`, and goes on where it was stopped. Test problems are on the other side of
`lowmem.data.procedural`'s split by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.rescue.problems import HELD_OUT, TRAINED, document
from lowmem.config.run import RunConfig
from lowmem.events import EvalDone, Event, StepDone
from lowmem.jobs.train import TrainReport, train
from lowmem.models.embedded import cache_folder
from lowmem.report.elements import write_whole

NAME = "long-reasoner"
SEED = 0
STAGES = (160, 260)
"""Steps. The second stage was added when the first ended with most numbers copied wrongly."""
ROWS, ROW_TOKENS = 4, 512
TOKENS_A_DOCUMENT = 150
"""Fewer than there are on average, so that no run comes to the end of its text."""


def long_reasoner() -> Path:
    """The trained model's folder. Raises `SystemExit` with the command that makes it when it is not there."""
    folder = cache_folder() / NAME
    if not (folder / "config.json").is_file():
        raise SystemExit(f"{folder} is not there yet; make it once: python examples/train_long_reasoner.py")
    return folder


def write_documents(documents: Iterable[str], path: Path) -> None:
    """One document a line, as JSON with the key `text`."""
    write_whole(path, "".join(json.dumps({"text": text}) + "\n" for text in documents))


def finetune(work: Path, *, stages: Sequence[int], rate: float = 2e-3) -> Path:
    """The model folder after the last stage. Stages have a schedule of their own and go on with the model and the
    documents where the one before ended; those that are finished are not run again."""
    model, seen = "tiny-reasoner", 0
    for number, steps in enumerate(stages):
        output = work / f"stage-{number}-of-{steps}-after-{seen}"
        if not (output / "model" / "config.json").is_file():
            _stage(model, output, steps=steps, first=seen, rate=rate)
        model, seen = str(output / "model"), seen + _documents(steps)
    return Path(model)


def _documents(steps: int) -> int:
    return steps * ROWS * ROW_TOKENS // TOKENS_A_DOCUMENT + 1


def _stage(model: str, output: Path, *, steps: int, first: int, rate: float) -> TrainReport:
    """One run over documents `first` and following, from its checkpoint where it was stopped."""
    output.parent.mkdir(parents=True, exist_ok=True)
    corpus, held_out = output.with_suffix(".jsonl"), output.parent / "held_out.jsonl"
    if not corpus.is_file():
        write_documents((document(first + index, TRAINED) for index in range(_documents(steps))), corpus)
    if not held_out.is_file():
        write_documents((document(index, HELD_OUT) for index in range(100)), held_out)
    config = RunConfig.model_validate(
        {
            "model": model,
            "dtype": "fp32",
            "device": "cpu",
            "num_threads": 1,
            "dataset": [{"format": "text", "path": str(corpus)}],
            "eval_dataset": [{"format": "text", "path": str(held_out)}],
            "eval_limit": 8,
            "max_length": ROW_TOKENS,
            "method": {"kind": "full"},
            "optimizer": {"kind": "muon", "weight_decay": 0.05},
            "learning_rate": rate,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.05,
            "max_grad_norm": 1.0,
            "per_device_train_batch_size": ROWS,
            "loss_chunk_tokens": ROWS * ROW_TOKENS,
            "max_steps": steps,
            "save_steps": 40,
            "save_total_limit": 1,
            "logging_steps": 5,
            "seed": SEED,
            "output_dir": str(output),
        }
    )
    return train(config, sink=_show, resume=output.is_dir())


def _show(event: Event) -> None:
    if isinstance(event, StepDone):
        print(f"step {event.step}  loss {event.loss:.3f}  {time.process_time():.0f} CPU s", flush=True)
    elif isinstance(event, EvalDone):
        print(f"step {event.step}  {event.split}  {event.metrics}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, nargs="+", default=list(STAGES), help="steps of each stage")
    given = parser.parse_args()
    made = finetune(cache_folder() / f"{NAME}-work", stages=given.stages)
    target = cache_folder() / NAME
    fresh = target.with_name(f".partial-{NAME}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(made, fresh)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(fresh, target)
    print(json.dumps({"folder": str(target), "stages": given.stages, "cpu_seconds": round(time.process_time(), 1)}))


if __name__ == "__main__":
    main()
