"""Text from a model or a run: one prompt as a stream, or a file of prompts that can be taken up again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from lowmem.config.generation import GenerationConfig
from lowmem.errors import ConfigError
from lowmem.events import Notice, Sink
from lowmem.generate.fallback import Fallback
from lowmem.generate.generate import Answer, answer_of, generate_answers, stream
from lowmem.generate.outline import High
from lowmem.generate.tokens import Prompt, TokenTexts
from lowmem.jobs.chat_form import Message, chat_form, message_ids
from lowmem.jobs.fallback import open_fallback
from lowmem.jobs.planned import chosen_policy, planned
from lowmem.jobs.prompt_file import PromptRow, answered, append_answers, read_prompts
from lowmem.jobs.target import DtypeName, Target, open_target


class Generator:
    """A loaded model that answers prompts: text is continued as it stands, messages are put as it was trained."""

    def __init__(self, target: Target, fallback: Fallback | None = None, *, place: str = "") -> None:
        self._model, self._fallback = target.loaded.model, fallback
        self._place = place
        self._tokenizer = target.loaded.tokenizer
        self._form = chat_form(self._tokenizer, target.run)
        self.generation = target.generation
        """The run's own settings, used where none are given."""
        self.name = target.loaded.name

    @cached_property
    def text_of(self) -> TokenTexts:
        """The text of a token."""
        return TokenTexts(self._tokenizer)

    @property
    def chat(self) -> bool:
        """True when messages are understood: by the tokenizer's chat template, or by what the run was trained on."""
        return self._form is not None

    def stream(self, prompt: str | Sequence[Message], config: GenerationConfig | None = None) -> Iterator[str]:
        """The answer in pieces of whole characters; in one piece where an outline was asked for.

        Raises `ConfigError` for messages that are not understood.
        """
        settings = config or self.generation
        if settings.outline != "off":
            return iter([self.answers([prompt], settings)[0].text])
        return stream(self._model, self._tokenizer, self._prompt(prompt), settings, fallback=self._fallback)

    def answers(
        self,
        prompts: Sequence[str | Sequence[Message]],
        config: GenerationConfig | None = None,
        *,
        seeds: Sequence[int] | None = None,
    ) -> list[Answer]:
        """One answer per prompt, decoded together."""
        settings = config or self.generation
        policy = chosen_policy(self._place, settings)
        bare = settings.model_copy(update={"outline": "off"})
        if policy == "high":
            return self.high_answers(prompts, bare, seeds=seeds)
        if policy == "planning":
            prompts, _ = self.planned(prompts, settings)
        given = [self._prompt(prompt) for prompt in prompts]
        return generate_answers(self._model, self._tokenizer, given, bare, seeds=seeds, fallback=self._fallback)

    def high_answers(
        self,
        prompts: Sequence[str | Sequence[Message]],
        config: GenerationConfig,
        *,
        seeds: Sequence[int] | None = None,
    ) -> list[Answer]:
        """One answer per prompt, all in high precision. Raises `ConfigError` where there is none."""
        given = [self._prompt(prompt) for prompt in prompts]
        return [answer_of(done) for done in self._high.answers(given, config, seeds=seeds)]

    def planned(
        self, prompts: Sequence[str | Sequence[Message]], config: GenerationConfig
    ) -> tuple[list[str | Sequence[Message]], list[str]]:
        """`prompts` with an outline each, and the outlines. Raises `ConfigError` without a high precision."""
        return planned(prompts, self._high, config, self._prompt)

    @property
    def _high(self) -> High:
        return High(self._model, self._tokenizer, self._fallback)

    def _prompt(self, prompt: str | Sequence[Message]) -> Prompt:
        if isinstance(prompt, str):
            return prompt
        if self._form is None:
            raise ConfigError(
                f"{self.name} has no chat template, so it cannot read messages; give plain text, "
                "or set chat_template in the run's config"
            )
        return message_ids(self._tokenizer, prompt, self._form)


def open_generator(
    target: str, *, sink: Sink, device: str = "auto", dtype: DtypeName | None = None, fallback: str | None = None
) -> Generator:
    """A generator for the model or run folder `target`; rescues fall back to `fallback` ("nested", or a model)."""
    opened = open_target(target, sink=sink, device=device, dtype=dtype)
    return Generator(opened, open_fallback(opened, fallback, sink=sink, device=device, dtype=dtype), place=target)


def generate_file(
    generator: Generator,
    input: Path,
    output: Path,
    config: GenerationConfig | None,
    sink: Sink,
    *,
    batch_size: int = 8,
) -> int:
    """Every prompt of `input` has its answer in `output`; returns how many were generated now.

    `input` holds lines of {"prompt": text} or {"messages": [...]}, with an "id" (default: its number among
    the prompts). Answers already in `output` stay; one line each is appended for the others, as soon as its
    batch is done, so an interrupted job goes on where it was. Every prompt is sampled with a seed made from
    `config.seed` and its id. Raises `DataError` with file and line for lines that cannot be used.
    """
    settings = config or generator.generation
    prompts = read_prompts(input)
    done = answered(output, prompts)
    missing = [row for row in prompts if row.id not in done]
    if len(missing) < len(prompts):
        sink(Notice(f"{len(prompts) - len(missing)} of {len(prompts)} answers are already in {output}"))
    for start in range(0, len(missing), batch_size):
        rows = missing[start : start + batch_size]
        seeds = [prompt_seed(settings.seed, row) for row in rows]
        answers = generator.answers([row.prompt for row in rows], settings, seeds=seeds)
        append_answers(output, list(zip(rows, answers, strict=True)))
    return len(missing)


def prompt_seed(seed: int, row: PromptRow) -> int:
    """The seed of one prompt of a file: equal prompts under different ids are different draws."""
    digest = hashlib.blake2b(f"{seed}/{row.id!r}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
