"""Measures of noticing: false alarms on texts that do not loop, recall on planted loops, and the cost of looking."""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from examples.rescue.corpus import Half, Text, corpus
from examples.rescue.plants import Plant, changing, counting, exact
from lowmem.config.generation import GenerationConfig
from lowmem.generate.generate import generate_answers
from lowmem.generate.loops.base import Loop, Rule
from lowmem.generate.loops.detector import LoopDetector
from lowmem.generate.loops.ngram import NGramRule
from lowmem.generate.tokens import TokenTexts
from lowmem.models.load import load_model
from lowmem.models.source import ModelSource

MODEL = "smollm2-135m-instruct"
LONG = 512
"""Tokens from which a text counts as long: short ones cannot alarm, and flatter the rate."""


@dataclass(frozen=True)
class Alarm:
    """A loop that was reported after `at` tokens."""

    at: int
    loop: Loop


@dataclass
class Material:
    """The texts of one half in tokens, and loops made from them."""

    data: Path
    counts: dict[str, int]
    half: Half

    @cached_property
    def loaded(self) -> Any:
        return load_model(ModelSource(MODEL, dtype="fp32"), device="cpu")

    @cached_property
    def texts_of(self) -> TokenTexts:
        return TokenTexts(self.loaded.tokenizer)

    @cached_property
    def texts(self) -> list[Text]:
        return [text for text in corpus(self.data, self.counts) if text.half == self.half]

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]

    @cached_property
    def tokens(self) -> dict[str, list[list[int]]]:
        """By kind."""
        found: dict[str, list[list[int]]] = {}
        for text in self.texts:
            found.setdefault(text.kind, []).append(self.encode(text.text))
        return found

    def plants(self, kind: str, count: int, seed: int) -> Iterator[Plant]:
        """Loops out of wikitext and solutions of this half."""
        draw = random.Random(f"{self.half}/{kind}/{seed}")
        prose = [*self.tokens["wikitext"], *self.tokens["gsm8k solutions"]]
        spoken = [text.text for text in self.texts if text.kind in ("wikitext", "instruction pages", "drama")]
        for _ in range(count):
            match kind:
                case "exact":
                    yield exact(draw, prose)
                case "counting":
                    yield counting(draw, prose, spoken, self.encode)
                case _:
                    yield changing(draw, prose, spoken, self.encode)

    def alarm(self, tokens: Sequence[int]) -> Alarm | None:
        """The first alarm of the detector as it is used."""
        detector = LoopDetector(self.texts_of)
        for at, token in enumerate(tokens, 1):
            if (loop := detector.push(token, self.texts_of(token))) is not None:
                return Alarm(at, loop)
        return None


def false_alarms(material: Material, kind: str) -> dict[str, Any]:
    """Alarms on the texts of one kind."""
    tokens = material.tokens[kind]
    alarms = [material.alarm(one) for one in tokens]
    fired = [alarm for alarm in alarms if alarm is not None]
    long = [alarm for one, alarm in zip(tokens, alarms, strict=True) if len(one) >= LONG]
    return {
        "texts": len(tokens),
        "tokens": sum(map(len, tokens)),
        "false": len(fired),
        "long": len(long),
        "false_long": sum(alarm is not None for alarm in long),
        "rules": dict(Counter(alarm.loop.rule for alarm in fired)),
    }


def recall(material: Material, kind: str, count: int, seed: int) -> dict[str, Any]:
    """The share of planted loops that are noticed while they last, and how many turns that takes.

    An alarm before the loop began is a false one and counts as a miss.
    """
    turns: list[float] = []
    rules: Counter[str] = Counter()
    missed: list[int] = []
    onsets: list[float] = []
    for plant in material.plants(kind, count, seed):
        alarm = material.alarm(plant.tokens)
        if alarm is None or alarm.at <= plant.onset:
            missed.append(plant.size)
            continue
        turns.append((alarm.at - plant.onset) / plant.size)
        rules[alarm.loop.rule] += 1
        onsets.append(abs(alarm.loop.onset - plant.onset))
    return {
        "planted": count,
        "noticed": len(turns),
        "missed_sizes": sorted(missed),
        "median_turns": round(statistics.median(turns), 2) if turns else None,
        "median_onset_error": statistics.median(onsets) if onsets else None,
        "rules": dict(rules),
    }


def rates(
    material: Material, *, n: int, count: int, window: int, guarded: bool, plants: Sequence[Plant]
) -> dict[str, Any]:
    """One point of the ROC: the n-gram rule by itself with other constants."""

    def make() -> Rule:
        return NGramRule(n=n, count=count, window=window, guarded=guarded)

    texts = [one for kind in material.tokens.values() for one in kind]
    false = sum(_fires(make(), one) is not None for one in texts)
    hits = sum((at := _fires(make(), plant.tokens)) is not None and at > plant.onset for plant in plants)
    return {"texts": len(texts), "false": false, "planted": len(plants), "noticed": hits}


def _fires(rule: Rule, tokens: Sequence[int]) -> int | None:
    history: list[int] = []
    for token in tokens:
        history.append(token)
        if rule.push(history, strict=False) is not None:
            return len(history)
    return None


def cost(material: Material, *, tokens: int, rounds: int) -> dict[str, Any]:
    """CPU microseconds a token of the detector, and of decoding greedily with and without it, alternating."""
    texts = [one for one in material.tokens["wikitext"] if len(one) >= LONG][:8]
    looks: list[float] = []
    for _ in range(rounds):
        start = time.process_time()
        for one in texts:
            detector = LoopDetector(material.texts_of)
            for token in one:
                detector.push(token, material.texts_of(token))
        looks.append((time.process_time() - start) / sum(map(len, texts)))
    decoding: list[float] = []
    prompts = ["The history of the lighthouse begins", "Once upon a time there was"]
    for _ in range(rounds):
        start = time.process_time()
        settings = GenerationConfig(max_new_tokens=tokens, repetition_penalty=1.3)
        made = generate_answers(material.loaded.model, material.loaded.tokenizer, prompts[:1], settings)
        decoding.append((time.process_time() - start) / max(1, len(made[0].tokens)))
    look, decode = statistics.median(looks), statistics.median(decoding)
    return {
        "detector_us": round(look * 1e6, 1),
        "decode_us": round(decode * 1e6, 1),
        "share_of_decode": round(look / decode, 5),
    }
