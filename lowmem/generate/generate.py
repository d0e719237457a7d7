"""Answers to prompts, in batches or as a stream; greedy decoding equals transformers token for token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowmem.config.run import GenerationConfig
from lowmem.errors import ConfigError
from lowmem.generate.decoder import Decoder
from lowmem.generate.sampling import choose_tokens
from lowmem.generate.stream import TextStream
from lowmem.models.modes import eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Prompt = str | Sequence[int]
"""Text, tokenized with the tokenizer's own special tokens, or token ids, taken as they are."""

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Answer:
    """What one prompt gave. `tokens` exclude the end-of-text token; `text` ends before a stop string."""

    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    """"stop": end of text or a stop string; "length": max_new_tokens, or the model's context is full."""


def generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    *,
    seeds: Sequence[int] | None = None,
) -> list[str]:
    """The text of each answer, in order. `generate_answers` gives tokens and reasons as well."""
    return [answer.text for answer in generate_answers(model, tokenizer, prompts, config, seeds=seeds)]


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    *,
    seeds: Sequence[int] | None = None,
) -> list[Answer]:
    """One answer per prompt, all decoded together; a sequence that ends leaves the batch.

    `seeds` default to `config.seed` for every prompt, so that no answer depends on its neighbours; give
    different ones to draw several answers to one prompt. Raises `ConfigError` for a prompt that is empty or
    too long.
    """
    if not prompts:
        return []
    chosen = [config.seed] * len(prompts) if seeds is None else list(seeds)
    rows = [_Row(model, tokenizer, prompt, config, seed) for prompt, seed in zip(prompts, chosen, strict=True)]
    for _ in _decode(model, tokenizer, rows, config):
        pass
    return [row.answer() for row in rows]


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    config: GenerationConfig,
    *,
    seed: int | None = None,
) -> Iterator[str]:
    """The answer to one prompt, in non-empty pieces of whole characters, as they are decoded."""
    row = _Row(model, tokenizer, prompt, config, config.seed if seed is None else seed)
    for _ in _decode(model, tokenizer, [row], config):
        if row.fresh:
            yield row.fresh


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of `prompt`; an empty text becomes the tokenizer's begin (else end) of text."""
    ids = [int(token) for token in (tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt)]
    if not ids:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ConfigError("the prompt is empty and the tokenizer has no begin-of-text token; give some text")
        ids = [int(start)]
    return ids


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends an answer: the generation config's, the model config's and the tokenizer's."""
    ends: set[int] = set()
    for given in (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        ends.update([given] if isinstance(given, int) else given or ())
    return frozenset(ends)


class _Row:
    """One sequence of the batch while it is being decoded."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        config: GenerationConfig,
        seed: int,
    ) -> None:
        self.prompt = encode_prompt(tokenizer, prompt)
        self.seed = seed
        self.tokens: list[int] = []
        self.fresh = ""
        """The text that the latest token completed."""
        self.reason: FinishReason | None = None
        self._limit = _room(model, len(self.prompt), config.max_new_tokens)
        self._stream = TextStream(tokenizer, stop=config.stop)
        self._pieces: list[str] = []

    def push(self, token: int, ends: frozenset[int]) -> None:
        """Takes one more token, and decides whether the sequence goes on."""
        self.fresh = ""
        if token in ends:
            self.reason = "stop"
        else:
            self.tokens.append(token)
            self.fresh = self._stream.push(token)
            if self._stream.stopped:
                self.reason = "stop"
            elif len(self.tokens) >= self._limit:
                self.reason = "length"
        if self.reason is not None:
            self.fresh += self._stream.finish()
        self._pieces.append(self.fresh)

    def answer(self) -> Answer:
        assert self.reason is not None
        return Answer(tuple(self.tokens), "".join(self._pieces), self.reason)


def _room(model: PreTrainedModel, prompt_tokens: int, wanted: int) -> int:
    """How many tokens may follow: `wanted`, or what is left of the model's positions."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        return wanted
    if prompt_tokens >= limit:
        raise ConfigError(
            f"the prompt has {prompt_tokens} tokens and the model reads at most {limit} with the answer; "
            f"shorten the prompt to {limit - 1} tokens or fewer"
        )
    return min(wanted, int(limit) - prompt_tokens)


def _decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[_Row],
    config: GenerationConfig,
) -> Iterator[None]:
    """Advances every row by one token per item, until all have ended."""
    ends = end_tokens(model, tokenizer)
    active = list(rows)
    with eval_mode(model):
        decoder = Decoder(model, pad_id=tokenizer.pad_token_id or 0)
        logits = decoder.prefill([row.prompt for row in active])
        while True:
            seeds, positions = [row.seed for row in active], [len(row.tokens) for row in active]
            tokens = choose_tokens(logits, config, seeds=seeds, positions=positions)
            for row, token in zip(active, tokens, strict=True):
                row.push(token, ends)
            yield
            going = [index for index, row in enumerate(active) if row.reason is None]
            if not going:
                return
            if len(going) < len(active):
                decoder.keep(going)
                active = [active[index] for index in going]
            logits = decoder.step([row.tokens[-1] for row in active])
