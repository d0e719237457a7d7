"""Answers to the bed's problems, each with what it cost and what went wrong on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from examples.rescue.problems import Problem, ask_plan, with_plan
from lowmem.config.generation import GenerationConfig
from lowmem.data.procedural import END_THINK, THINK
from lowmem.generate.answers import announced, mentioned, plain
from lowmem.generate.engine import STUB_ROOM, Engine
from lowmem.generate.generate import run_requests
from lowmem.generate.generation import Generation, Request
from lowmem.generate.loops.base import Loop
from lowmem.generate.loops.detector import LoopDetector
from lowmem.generate.outline import leaks
from lowmem.generate.tokens import TokenTexts

Row = dict[str, Any]
OUTLINE_TOKENS = 32


@dataclass(frozen=True)
class Decoding:
    """How a policy decodes. `high`: the model that falls back and writes outlines."""

    low: Any
    tokenizer: Any
    config: GenerationConfig
    slots: int
    high: Any = None
    falls_back: bool = False
    outlines: bool = False


def answered(
    decoding: Decoding, asked: Sequence[Problem], *, seed: int, numbers: Sequence[int] | None = None
) -> list[Row]:
    """One row per problem, in order, with its share by tokens of the CPU seconds of all.

    Problem `numbers[i]` (default i) has seeds of its own, whatever else is asked beside it.
    """
    numbered = list(range(len(asked)) if numbers is None else numbers)
    began = time.process_time()
    outlines = _outlines(decoding, asked) if decoding.outlines else None
    texts = (
        [with_plan(one, said.text) for one, said in zip(asked, outlines, strict=True)]
        if outlines
        else [one.question for one in asked]
    )
    engine = _engine(decoding.low, decoding, "low")
    if decoding.falls_back:
        engine = _engine(decoding.low, decoding, "low", fallback=_engine(decoding.high, decoding, "high"))
    done = _run(engine, decoding, texts, decoding.config, [1_000_003 * seed + number for number in numbered])
    seconds = time.process_time() - began
    rows = [_row(one, generation, decoding.tokenizer) for one, generation in zip(asked, done, strict=True)]
    if outlines:
        for row, one, said in zip(rows, asked, outlines, strict=True):
            row["high_tokens"] += len(said.tokens)
            row["tokens"] += len(said.tokens)
            row["leaked"] = leaks(said.text, answer=one.answer, question=one.question)
    total = sum(row["tokens"] for row in rows)
    for row in rows:
        row["seconds"] = seconds * row["tokens"] / total
    return rows


def _outlines(decoding: Decoding, asked: Sequence[Problem]) -> list[Generation]:
    """Written by the high precision, greedily, up to the end of the line."""
    config = GenerationConfig(max_new_tokens=OUTLINE_TOKENS, stop=("\n",))
    engine = _engine(decoding.high, decoding, "high", tokens=OUTLINE_TOKENS)
    return _run(engine, decoding, [ask_plan(one) for one in asked], config, [0] * len(asked))


def _engine(
    model: Any, decoding: Decoding, precision: str, *, fallback: Engine | None = None, tokens: int | None = None
) -> Engine:
    config = decoding.config
    room = tokens or config.max_new_tokens + config.commit_tokens + STUB_ROOM
    return Engine(
        model,
        decoding.tokenizer,
        slots=decoding.slots,
        context=room + 2 * OUTLINE_TOKENS,
        precision=precision,
        fallback=fallback,
    )


def _run(
    engine: Engine, decoding: Decoding, texts: Sequence[str], config: GenerationConfig, seeds: Sequence[int]
) -> list[Generation]:
    prompts = [tuple(decoding.tokenizer(text)["input_ids"]) for text in texts]
    return run_requests(engine, [Request(prompt, config, seed) for prompt, seed in zip(prompts, seeds, strict=True)])


def _row(one: Problem, done: Generation, tokenizer: Any) -> Row:
    """What is kept of an answer. `last`: the last answer that the whole text announces, closed thought or not."""
    text, right = done.text, plain(one.answer)
    said = announced(text)
    loop = done.loop or _noticed(done, tokenizer)
    return {
        "family": one.family,
        "right": final_answer(text) == right,
        "last_right": bool(said) and said[-1].value == right,
        "ever_right": any(each.value == right for each in said),
        "unclosed": THINK in text and END_THINK not in text,
        "limit": done.reason == "length",
        "loop": None if loop is None else [loop.rule, loop.onset, loop.period],
        "status": None if done.rescue is None else done.rescue.status,
        "tokens": sum(done.spent.tokens.values()),
        "high_tokens": done.spent.tokens.get("high", 0),
        "text": text,
    }


def final_answer(text: str) -> str | None:
    """What stands after the thought; None where it never ends."""
    if END_THINK not in text:
        return None
    after = text.rpartition(END_THINK)[2]
    said = announced(after)
    if said:
        return said[-1].value
    guess = mentioned(after)
    return None if guess is None else plain(guess)


def _noticed(done: Generation, tokenizer: Any) -> Loop | None:
    """The first alarm that a detector would have given."""
    detector = LoopDetector(TokenTexts(tokenizer))
    texts = TokenTexts(tokenizer)
    for token in done.tokens:
        loop = detector.push(token, texts(token))
        if loop is not None:
            return loop
    return None


def in_trouble(row: Row) -> bool:
    """Whether a trace looped, hit the limit, or never closed its thought."""
    return bool(row["loop"] or row["limit"] or row["unclosed"])
