"""Trains the embedded default model `tiny-reasoner` from nothing: a Qwen3 of 3.2 M parameters that adds in steps.

    python examples/train_tiny_reasoner.py --out lowmem/assets/tiny-reasoner

takes about sixteen minutes of one CPU core. Data, initial weights and schedule are functions of (seed, step), so
an interrupted run goes on from its last state file as if nothing had happened. `--quick` does a small part of the
work in under a minute and is not meant to give a good model. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lowmem.data.procedural import CHARACTERS, END_THINK, PRETRAINED, THINK, families, generate

MIXTURE = ("add", "sum", "add", "sum", "add", "sum", "add", "sum", "add", "copy")
"""Family of problem number i is MIXTURE[i % 10]."""
SPECIAL = ("<pad>", "<eos>", "<unk>", THINK, END_THINK)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['content'] | trim + '\\n' }}{% endif %}"
    "{% endfor %}"
)
MAX_NEW_TOKENS = 96
IGNORE = -100


@dataclass(frozen=True)
class Plan:
    """How much work is done."""

    steps: int
    batch: int
    warmup: int
    eval_problems: int
    hidden: int = 256
    layers: int = 4


FULL = Plan(steps=650, batch=64, warmup=50, eval_problems=200)
QUICK = Plan(steps=12, batch=16, warmup=2, eval_problems=4, hidden=64, layers=2)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; text is lower-cased and what is not in the vocabulary becomes <unk>."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS, "\n"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<pad>", "<eos>", "<unk>")])
    # Not "special": decoding with skip_special_tokens must keep the tags that tell answers from thoughts.
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in (THINK, END_THINK)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, plan: Plan) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=plan.hidden,
            intermediate_size=3 * plan.hidden,
            num_hidden_layers=plan.layers,
            num_attention_heads=plan.hidden // 32,
            num_key_value_heads=plan.hidden // 64,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def training_batches(
    tokenizer: PreTrainedTokenizerFast, step: int, size: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Ids and labels (B/2, T) of problems step*B … step*B + B - 1: the shorter half and the longer half.

    Right-padded, no loss on prompts. Two halves of their own width hold fewer padding tokens than one batch.
    """
    rows = []
    for index in range(step * size, (step + 1) * size):
        problem = generate(MIXTURE[index % len(MIXTURE)], index, seed)
        prompt = tokenizer(problem.prompt)["input_ids"]
        rows.append((prompt, [*tokenizer(problem.completion)["input_ids"], tokenizer.eos_token_id]))
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    return [
        _padded(rows[: size // 2], tokenizer.pad_token_id),
        _padded(rows[size // 2 :], tokenizer.pad_token_id),
    ]


def _padded(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids, labels = torch.full((len(rows), width), pad), torch.full((len(rows), width), IGNORE)
    for row, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        labels[row, len(prompt) : end] = torch.tensor(completion)
    return ids, labels


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal (Jordan et al. 2024), for matrices.

    torch's own iterates in bf16, which a CPU without bf16 instructions emulates: measured 8.7 s against 1.4 s for
    the rest of the step. This one stays in fp32.
    """

    def __init__(self, matrices: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                average = state.setdefault("momentum", torch.zeros_like(matrix))
                average.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(torch.lerp(matrix.grad, average, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                # 0.2 sqrt(max(m, n)): entries as large as AdamW's, whose rates then fit (arXiv 2502.16982).
                matrix.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """Roughly the nearest matrix with orthonormal rows or columns: five quintic Newton-Schulz iterations."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def build_optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [Muon(matrices, lr=3e-3, weight_decay=0.05), torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98))]


def rate_factor(step: int, plan: Plan) -> float:
    """Linear warm-up, then cosine to 2 % of the peak."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    progress = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def accuracy(model: Any, tokenizer: PreTrainedTokenizerFast, family: str, *, seed: int, problems: int) -> float:
    """Share of `problems` problems whose greedy completion ends in the right answer."""
    model.eval()
    chosen = [generate(family, index, seed) for index in range(problems)]
    right = 0
    for start in range(0, problems, 100):
        part = chosen[start : start + 100]
        inputs = tokenizer(
            [p.prompt for p in part],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            return_token_type_ids=False,
        )
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(text.rpartition(END_THINK)[2] == p.answer for text, p in zip(texts, part, strict=True))
    model.train()
    return right / problems


class Training:
    """The model, its optimizers, and what it cost so far."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.seed = plan, seed
        torch.manual_seed(seed)  # a script's own initial weights; nothing else draws from it
        self.tokenizer = build_tokenizer()
        self.model = build_model(self.tokenizer, plan)
        self.optimizers = build_optimizers(self.model)
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.next_step, self.tokens, self.cpu_seconds = 0, 0, 0.0

    def run_step(self) -> float:
        """One update; returns the mean loss per token before it."""
        started = time.process_time()
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * rate_factor(self.next_step, self.plan)
        batches = training_batches(self.tokenizer, self.next_step, self.plan.batch, self.seed)
        trained = sum(int((labels != IGNORE).sum()) for _, labels in batches)
        total = 0.0
        for ids, labels in batches:
            loss = self.model(input_ids=ids, labels=labels, num_items_in_batch=trained).loss
            loss.backward()
            total += loss.item()
            self.tokens += int((ids != self.tokenizer.pad_token_id).sum())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.next_step += 1
        self.cpu_seconds += time.process_time() - started
        return total

    def save_state(self, path: Path) -> None:
        """Everything needed to continue, written beside and then renamed, so a crash leaves the old file."""
        part = path.with_suffix(".part")
        progress = (self.seed, self.plan.steps, self.next_step, self.tokens, self.cpu_seconds)
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save({"model": self.model.state_dict(), "optimizers": optimizers, "progress": progress}, part)
        os.replace(part, path)

    def load_state(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        seed, steps, self.next_step, self.tokens, self.cpu_seconds = state["progress"]
        if (seed, steps) != (self.seed, self.plan.steps):
            raise SystemExit(f"{path} belongs to seed {seed} and {steps} steps; delete it or use those")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def train(training: Training, state_file: Path, log_every: int, save_every: int) -> float:
    """Run to the last step of the plan; returns the last loss."""
    loss = math.nan
    while training.next_step < training.plan.steps:
        loss = training.run_step()
        step = training.next_step
        if step % log_every == 0:
            print(f"step {step:4d}  loss {loss:.4f}  {training.tokens / 1e6:.2f} M tokens", end="  ", flush=True)
            print(f"{training.cpu_seconds:.0f} CPU s", flush=True)
        if step % save_every == 0:
            training.save_state(state_file)
    return loss


def write_model(training: Training, out: Path) -> Qwen3ForCausalLM:
    """The folder that `from_pretrained` reads, weights in fp16; returns the model as it will be read, in fp32."""
    model = training.model.half()
    tokenizer = training.tokenizer
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=MAX_NEW_TOKENS
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return Qwen3ForCausalLM.from_pretrained(out, dtype=torch.float32)


def write_card(out: Path, report: dict[str, Any]) -> None:
    rows = "\n".join(
        f"| {family} | {'yes' if family in PRETRAINED else 'no'} | {value:.1%} |"
        for family, value in report["accuracy"].items()
    )
    (out / "README.md").write_text(CARD.format(rows=rows, **report), encoding="utf-8")


CARD = """# tiny-reasoner

A Qwen3 of {parameters:,} parameters that adds numbers step by step inside `<think>` tags. It ships with `lowmem`
so that every command runs without a download; it is good for trying things out and for nothing else.

```
347+89=?
<think>7+9+0=16;4+8+1=13;3+0+1=04;</think>436
```

One token is one character, the text is lower-cased, 64 tokens in all. A prompt ends with a newline, which the
chat template adds. Problems are made by `lowmem.data.procedural`.

| family | trained on | right answers, {eval_problems} unseen problems, greedy |
|---|---|---|
{rows}

The families it has not been trained on are there to finetune for.

Made by `python examples/train_tiny_reasoner.py` with seed {seed}: {steps} steps of {batch} problems, {tokens:,}
tokens, {cpu_seconds:.0f} seconds of one CPU core. Weights are fp16. Problems for training come from the even
seeds, those for evaluation from the odd ones, which share no problem.

Apache-2.0, like the rest of the project.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-reasoner"), help="folder of the model")
    parser.add_argument("--seed", type=int, default=0, help="even: odd seeds are the evaluation problems")
    parser.add_argument("--quick", action="store_true", help="a small part of the work, under a minute")
    arguments = parser.parse_args()
    if arguments.seed % 2:
        parser.error(f"--seed {arguments.seed}: odd seeds are kept for evaluation; use an even one")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    plan: Plan = QUICK if arguments.quick else FULL
    arguments.out.mkdir(parents=True, exist_ok=True)
    state_file = arguments.out / "training.state"
    training = Training(plan, arguments.seed)
    if state_file.exists():
        training.load_state(state_file)
        print(f"going on from step {training.next_step}")
    loss = train(training, state_file, log_every=max(1, plan.steps // 50), save_every=max(1, plan.steps // 10))
    model = write_model(training, arguments.out)
    print(f"{'family':10}{'trained on':12}accuracy")
    scores = {}
    for family in families():
        scores[family] = accuracy(
            model, training.tokenizer, family, seed=arguments.seed + 1, problems=plan.eval_problems
        )
        print(f"{family:10}{'yes' if family in PRETRAINED else 'no':12}{scores[family]:.3f}", flush=True)
    report = {
        "parameters": model.num_parameters(),
        "accuracy": scores,
        "final_loss": None if math.isnan(loss) else loss,
        "seed": arguments.seed,
        "steps": plan.steps,
        "batch": plan.batch,
        "tokens": training.tokens,
        "cpu_seconds": training.cpu_seconds,
        "eval_problems": plan.eval_problems,
        "quick": arguments.quick,
    }
    write_card(arguments.out, report)
    state_file.unlink(missing_ok=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
