"""A tiny byte-level tokenizer with a ChatML template, made in memory, and files made in a temporary folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lowmem.data.encoder import Encoder
from lowmem.events import Event, Notice

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "It was great. It was terrible. Yes No Maybe. Does this mean that it is true? Yes or No?",
    "What is two plus two? The answer is four. The cat sat on the mat because it was tired, so it slept.",
]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]


def make_tokenizer(*, bos: bool = False, chat: str | None = None, pad: str = "<pad>") -> PreTrainedTokenizerFast:
    """`bos`: put <bos> before every text, as Llama does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token=pad,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    wrapped.chat_template = chat
    return wrapped


@pytest.fixture(scope="session")
def plain() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def with_bos() -> PreTrainedTokenizerFast:
    return make_tokenizer(bos=True)


@pytest.fixture(scope="session")
def chat() -> PreTrainedTokenizerFast:
    return make_tokenizer(chat=CHATML)


@pytest.fixture(scope="session")
def encoder(plain: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(plain)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as JSON lines and gives the path."""

    def write(rows: Iterable[Any], name: str = "train.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


class Heard:
    """A sink that keeps the notices."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __call__(self, event: Event) -> None:
        assert isinstance(event, Notice)
        self.messages.append(event.message)

    @property
    def text(self) -> str:
        return "\n".join(self.messages)


@pytest.fixture
def heard() -> Heard:
    return Heard()
