"""Pretrains `small-lm`, the base model of the project's comparisons: a Llama of 2.1 M parameters and 4096 tokens.

    python examples/pretrain_small.py                      # once; about twelve minutes of one CPU core
    lowmem generate ~/.cache/lowmem/small-lm-adamw "The film"

The result is an ordinary transformers folder, `~/.cache/lowmem/small-lm-adamw` (LOWMEM_CACHE moves it), that every
verb takes as `model`; `small_lm()` gives its path to other scripts. It is small enough that a comparison of methods
with several seeds runs in minutes, and knows enough English, film reviews and school arithmetic that finetuning has
something to start from. Everything runs through the tool itself (`lowmem.jobs.train`, method full), is a function of
the seed and of `--minutes`, and goes on where it was stopped.

Text (`--data`, a folder with the public sets named below; the reviews are a package, see `movie_reviews.py`):

| set | what is read | what is kept out |
|---|---|---|
| WikiText-2 | validation.txt | test.txt |
| tiny Shakespeare | the first 90 % | the last 10 % |
| GSM8K | questions and answers 0..4999 of train.jsonl | the rest of train.jsonl (to finetune on), test.jsonl |
| SST-2 | sentences of train.jsonl without labels | validation.jsonl, test.jsonl |
| IMDB | reviews 0, 4, 8, ... without labels | every other review |

Alpaca's instructions and Rotten Tomatoes' sentences are not read at all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from movie_reviews import read_reviews
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from lowmem.config.run import RunConfig
from lowmem.events import EvalDone, Event, StepDone
from lowmem.jobs.train import TrainReport, train
from lowmem.models.embedded import cache_folder
from lowmem.models.shapes import random_model

SEED = 0
VOCABULARY = 4096
ROWS, ROW_TOKENS = 8, 128
STEPS_PER_MINUTE = 180
"""What `--minutes` means: fixed, so that the model is a function of the arguments and not of the machine's load."""
GSM8K_ROWS = 5000
IMDB_STRIDE = 4
RATE = 3e-3
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"kind": "adamw", "betas": (0.9, 0.98), "weight_decay": 0.05},
    "muon": {"kind": "muon", "weight_decay": 0.05},
}
END, PAD = "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def small_lm(optimizer: str = "adamw") -> Path:
    """The pretrained model's folder. Raises `SystemExit` with the command that makes it when it is not there."""
    folder = cache_folder() / f"small-lm-{optimizer}"
    if not (folder / "config.json").is_file():
        raise SystemExit(f"{folder} is not there yet; make it once: python examples/pretrain_small.py")
    return folder


def texts(data: Path) -> Iterator[str]:
    """The documents of the table above."""
    yield from articles((data / "wikitext2" / "validation.txt").read_text(encoding="utf-8"))
    play = (data / "shakespeare" / "input.txt").read_text(encoding="utf-8")
    yield play[: len(play) * 9 // 10]
    for row in _rows(data / "gsm8k" / "train.jsonl")[:GSM8K_ROWS]:
        yield f"{row['question']}\n{row['answer']}"
    yield "\n".join(row["sentence"] for row in _rows(data / "sst2" / "train.jsonl"))
    for text, _ in read_reviews("imdb")[::IMDB_STRIDE]:
        yield text


def articles(text: str) -> Iterator[str]:
    """The articles of a WikiText file, which begin with a line like ` = Title = `."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(" = ") and not line.startswith(" = ="):
            yield "\n".join(lines)
            lines = []
        lines.append(line.strip())
    yield "\n".join(lines)


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:  # not splitlines: GSM8K holds Unicode line separators
        return [json.loads(line) for line in file]


def write_corpus(documents: Iterator[str], path: Path) -> None:
    """One document a line, as JSON with the key `text`; blank ones are left out."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for document in documents:
            if document.strip():
                file.write(json.dumps({"text": document}) + "\n")
    partial.replace(path)


def build_tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE with `VOCABULARY` tokens, learned on the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row["text"] for row in _rows(corpus)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def write_start(folder: Path, corpus: Path) -> None:
    """A folder with random weights and the tokenizer: what the run begins from."""
    tokenizer = build_tokenizer(corpus)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    fresh = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    random_model(config, dtype=torch.float32, seed=SEED).save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    fresh.rename(folder)


def pretrain(work: Path, data: Path, optimizer: str, minutes: float) -> TrainReport:
    """Text, tokenizer and random weights in `work` where they are not there yet, then the run, from its checkpoint."""
    work.mkdir(parents=True, exist_ok=True)
    corpus, held_out, start = work / "corpus.jsonl", work / "held_out.jsonl", work / "start"
    if not corpus.is_file():
        write_corpus(texts(data), corpus)
    if not held_out.is_file():
        write_corpus(articles((data / "wikitext2" / "test.txt").read_text(encoding="utf-8")), held_out)
    if not start.is_dir():
        write_start(start, corpus)
    config = RunConfig.model_validate(
        {
            "model": str(start),
            "dtype": "fp32",
            "device": "cpu",
            "num_threads": 1,
            "dataset": [{"format": "text", "path": str(corpus)}],
            "eval_dataset": [{"format": "text", "path": str(held_out)}],
            "eval_limit": 200,
            "max_length": ROW_TOKENS,
            "method": {"kind": "full"},
            "optimizer": OPTIMIZERS[optimizer],
            "learning_rate": RATE,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.05,
            "per_device_train_batch_size": ROWS,
            "loss_chunk_tokens": ROWS * ROW_TOKENS,
            "max_steps": max(1, round(minutes * STEPS_PER_MINUTE)),
            "eval_steps": 360,
            "save_steps": 180,
            "save_total_limit": 1,
            "logging_steps": 20,
            "seed": SEED,
            "output_dir": str(work / f"run-{optimizer}-{minutes:g}min"),
        }
    )
    return train(config, sink=_show, resume=Path(config.output_dir).is_dir())


def _show(event: Event) -> None:
    if isinstance(event, StepDone):
        print(f"step {event.step}  loss {event.loss:.3f}  {time.process_time():.0f} CPU s", flush=True)
    elif isinstance(event, EvalDone):
        print(f"step {event.step}  {event.split}  {event.metrics}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="of work, not of waiting")
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adamw")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    given = parser.parse_args()
    work = cache_folder() / "small-lm-work"
    report = pretrain(work, given.data, given.optimizer, given.minutes)
    target = cache_folder() / f"small-lm-{given.optimizer}"
    fresh = target.with_name(f".partial-{target.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(report.output_dir / "model", fresh)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(fresh, target)
    keys = {"folder": str(target), "steps": report.steps, "before": report.before, "after": report.after}
    print(json.dumps(keys | {"cpu_seconds": round(time.process_time(), 1)}))


if __name__ == "__main__":
    main()
