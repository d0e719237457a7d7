"""Answers to prompts, in batches or as a stream; greedy decoding equals transformers token for token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowmem.config.generation import GenerationConfig
from lowmem.errors import ConfigError
from lowmem.generate.engine import STUB_ROOM, Engine
from lowmem.generate.fallback import Fallback, engine_with
from lowmem.generate.generation import FinishReason, Generation, Request
from lowmem.generate.loops.base import Loop
from lowmem.generate.rescue import Rescue
from lowmem.generate.tokens import Prompt, context_of, encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """What one prompt gave. `tokens` exclude the end-of-text token; `text` ends before a stop string."""

    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    """"stop": end of text or a stop string; "length": max_new_tokens, or the model's context is full;
    "repetition": it was stopped because it repeated itself."""
    loop: Loop | None = None
    rescue: Rescue | None = None


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
    fallback: Fallback | None = None,
) -> list[Answer]:
    """One answer per prompt, all decoded together; `fallback` is where a rescue goes that finds no answer.

    `seeds` default to `config.seed` for every prompt, so that no answer depends on its neighbours; give
    different ones to draw several answers to one prompt. Raises `ConfigError` for a prompt that is empty or
    too long.
    """
    if not prompts:
        return []
    chosen = [config.seed] * len(prompts) if seeds is None else list(seeds)
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    engine = engine_for(model, tokenizer, ids, config, fallback=fallback)
    requests = [Request(tuple(p), config, seed) for p, seed in zip(ids, chosen, strict=True)]
    return [answer_of(generation) for generation in run_requests(engine, requests)]


def run_requests(engine: Engine, requests: Sequence[Request]) -> list[Generation]:
    """Every request answered, in order; those that find no free slot wait. Raises `ConfigError` as `submit` does."""
    running = [engine.submit(request) for request in requests]
    while engine.busy:
        engine.step()
    return running


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    config: GenerationConfig,
    *,
    seed: int | None = None,
    fallback: Fallback | None = None,
) -> Iterator[str]:
    """The answer to one prompt, in non-empty pieces of whole characters, as they are decoded.

    With a `fallback` it comes in one piece at the end: until then it may be decoded anew.
    """
    ids = encode_prompt(tokenizer, prompt)
    engine = engine_for(model, tokenizer, [ids], config, fallback=fallback)
    generation = engine.submit(Request(tuple(ids), config, config.seed if seed is None else seed))
    while engine.busy:
        engine.step()
        if fallback is None and (piece := generation.take()):
            yield piece
    if piece := generation.take():
        yield piece


def engine_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    slots: int | None = None,
    fallback: Fallback | None = None,
) -> Engine:
    """An engine with room for the answer to each of `prompts`, and a slot for each or `slots`.

    Raises `ConfigError` where the model's positions end before the first token of an answer.
    """
    longest = max(map(len, prompts))
    extra = config.commit_tokens + STUB_ROOM if config.on_loop == "rescue" else 0
    wanted, limit = longest + config.max_new_tokens + extra, context_of(model)
    if limit is not None and longest >= limit:
        raise ConfigError(
            f"the prompt has {longest} tokens and the model reads at most {limit} with the answer; "
            f"shorten the prompt to {limit - 1} tokens or fewer"
        )
    context = wanted if limit is None else min(wanted, limit)
    return engine_with(model, tokenizer, fallback, slots=slots or len(prompts), context=context)


def answer_of(generation: Generation) -> Answer:
    """The result of a finished generation."""
    assert generation.reason is not None
    return Answer(
        tuple(generation.tokens), generation.text, generation.reason, loop=generation.loop, rescue=generation.rescue
    )
