"""`lowmem chat`: a conversation in the terminal, answers as they are decoded."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lowmem.cli import render
from lowmem.cli.arguments import (
    Device,
    FallbackTo,
    MaxNewTokens,
    OnLoop,
    Outline,
    Seed,
    Target,
    Temperature,
    ThinkingBudget,
    TopK,
    TopP,
    check_device,
    generation,
    rescue_for,
)

if TYPE_CHECKING:
    from lowmem.config.generation import GenerationConfig
    from lowmem.jobs.generate import Generator

HELP = """/reset      forget the conversation
/save FILE  write the conversation as JSON, ready to train on (format: messages)
/quit       leave; so does Ctrl-D
Ctrl-C      stop the answer that is being written"""


def chat(
    target: Target,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    on_loop: OnLoop = None,
    fallback: FallbackTo = None,
    outline: Outline = None,
    thinking_budget: ThinkingBudget = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Talk to a model or a run. /help lists the commands, Ctrl-C stops an answer, Ctrl-D quits.

    A model without a chat template continues each line by itself, without a conversation.
    """
    on_loop = rescue_for(fallback, on_loop)
    from lowmem.jobs.generate import open_generator

    with render.progress() as sink:
        generator = open_generator(target, sink=sink, device=check_device(device), fallback=fallback)
    settings = generation(
        generator.generation,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        on_loop=on_loop,
        outline=outline,
        thinking_token_budget=thinking_budget,
        seed=seed,
    )
    _talk(Conversation(generator, settings))


@dataclass
class Conversation:
    """What has been said so far; `messages` stays empty for a model that does not chat."""

    generator: Generator
    settings: GenerationConfig
    messages: list[dict[str, str]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Streams the answer and remembers it. A stopped answer is remembered as far as it came."""
        said = {"role": "user", "content": text}
        prompt: str | list[dict[str, str]] = [*self.messages, said] if self.generator.chat else text
        pieces: list[str] = []
        try:
            for piece in self.generator.stream(prompt, self.settings):
                pieces.append(piece)
                render.piece(piece)
        except KeyboardInterrupt:
            render.message("\n(stopped)")
        render.piece("\n")
        if self.generator.chat:
            self.messages += [said, {"role": "assistant", "content": "".join(pieces)}]

    def save(self, name: str) -> str:
        """Writes the conversation as one line of JSONL; returns what to tell the user."""
        if not name:
            return "give a file: /save chat.jsonl"
        try:
            Path(name).write_text(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        except OSError as error:
            return f"{name}: cannot be written: {error.strerror}"
        return f"{len(self.messages)} messages saved in {name}"


def _talk(conversation: Conversation) -> None:
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401 - importing it gives input() line editing and history

        render.message("/help lists the commands, Ctrl-D quits")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            render.message("\nCtrl-D quits")
            continue
        if line.startswith("/"):
            if not _command(conversation, line):
                return
        elif line:
            conversation.say(line)


def _command(conversation: Conversation, line: str) -> bool:
    """Carries out a /command; False means the end of the conversation."""
    name, _, argument = line.partition(" ")
    match name:
        case "/quit" | "/exit":
            return False
        case "/help":
            render.message(HELP)
        case "/reset":
            conversation.messages.clear()
            render.message("the conversation starts anew")
        case "/save":
            render.message(conversation.save(argument.strip()))
        case _:
            render.message(f"{name} is not a command; /help lists them")
    return True
