"""Trains `long-reasoner`, the bed of `bench_rescue.py`: a Qwen3 of 4.3 M parameters whose thoughts check themselves.

    python examples/train_long_reasoner.py                  # once; about twenty minutes of one CPU core
    lowmem generate ~/.cache/lowmem/long-reasoner "712+872+30=?
    "

The embedded `tiny-reasoner` never loops, at any precision: its thoughts are short and there is one way to write them.
This model's thoughts are some 260 tokens, hold the answer after a third of that, and end when their writer happens to
stop checking (`rescue/problems.py`). Everything runs through the tool itself (`lowmem.jobs.train`, method full, packed
text), is a function of the seed and of `--steps`, and goes on where it was stopped. Test problems are never trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config

from examples.pretrain_small import write_corpus
from examples.rescue.problems import WORDS, document
from lowmem.config.run import RunConfig
from lowmem.data.procedural import END_THINK, THINK
from lowmem.events import EvalDone, Event, StepDone
from lowmem.jobs.train import TrainReport, train
from lowmem.models.embedded import cache_folder
from lowmem.models.shapes import random_model

NAME = "long-reasoner"
SEED = 0
ROWS, ROW_TOKENS = 4, 768
CONTEXT = 2048
HELD_OUT = 200
TOKENS_A_DOCUMENT = 250
"""Fewer than there are on average, so that no run comes to the end of its text."""
END, PAD, UNKNOWN = "<eos>", "<pad>", "<unk>"
SYMBOLS = "0123456789 +-*/=?,.:;()\n"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['content'] | trim + '\\n' }}{% endif %}"
    "{% endfor %}"
)


def long_reasoner() -> Path:
    """The trained model's folder. Raises `SystemExit` with the command that makes it when it is not there."""
    folder = cache_folder() / NAME
    if not (folder / "config.json").is_file():
        raise SystemExit(f"{folder} is not there yet; make it once: python examples/train_long_reasoner.py")
    return folder


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a digit or sign, one a word with the space before it."""
    words = [spelling for word in dict.fromkeys(WORDS.split()) for spelling in (word, f" {word}")]
    vocabulary = {token: i for i, token in enumerate([PAD, END, UNKNOWN, THINK, END_THINK, *SYMBOLS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (PAD, END, UNKNOWN)])
    # Not "special": decoding with skip_special_tokens must keep the tags that tell answers from thoughts.
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in (THINK, END_THINK)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def write_start(folder: Path, *, hidden: int, layers: int) -> None:
    """A folder with random weights and the tokenizer: what the run begins from."""
    tokenizer = build_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = random_model(config, dtype=torch.float32, seed=SEED)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=768
    )
    fresh = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    fresh.rename(folder)


def pretrain(work: Path, *, steps: int, hidden: int = 256, layers: int = 4) -> TrainReport:
    """Text, tokenizer and random weights in `work` where they are not there yet, then the run, from its checkpoint."""
    work.mkdir(parents=True, exist_ok=True)
    documents = steps * ROWS * ROW_TOKENS // TOKENS_A_DOCUMENT + 1
    corpus, held_out, start = work / f"corpus-{steps}.jsonl", work / "held_out.jsonl", work / "start"
    if not corpus.is_file():
        write_corpus((document(HELD_OUT + index) for index in range(documents)), corpus)
    if not held_out.is_file():
        write_corpus((document(index) for index in range(HELD_OUT)), held_out)
    if not start.is_dir():
        write_start(start, hidden=hidden, layers=layers)
    config = RunConfig.model_validate(
        {
            "model": str(start),
            "dtype": "fp32",
            "device": "cpu",
            "num_threads": 1,
            "dataset": [{"format": "text", "path": str(corpus)}],
            "eval_dataset": [{"format": "text", "path": str(held_out)}],
            "eval_limit": 16,
            "max_length": ROW_TOKENS,
            "method": {"kind": "full"},
            "optimizer": {"kind": "muon", "weight_decay": 0.05},
            "learning_rate": 3e-3,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.05,
            "max_grad_norm": 1.0,
            "per_device_train_batch_size": ROWS,
            "loss_chunk_tokens": ROWS * ROW_TOKENS,
            "max_steps": steps,
            "eval_steps": 250,
            "save_steps": 50,
            "save_total_limit": 1,
            "logging_steps": 10,
            "seed": SEED,
            "output_dir": str(work / f"run-{steps}"),
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
    parser.add_argument("--steps", type=int, default=500)
    given = parser.parse_args()
    report = pretrain(cache_folder() / f"{NAME}-work", steps=given.steps)
    target = cache_folder() / NAME
    fresh = target.with_name(f".partial-{NAME}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(report.output_dir / "model", fresh)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(fresh, target)
    keys = {"folder": str(target), "steps": report.steps, "before": report.before, "after": report.after}
    print(json.dumps(keys | {"cpu_seconds": round(time.process_time(), 1)}))


if __name__ == "__main__":
    main()
