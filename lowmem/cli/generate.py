"""`lowmem generate`: the answer to one prompt on stdout, or a file of prompts to a file of answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowmem.cli import render
from lowmem.cli.arguments import (
    Device,
    FallbackTo,
    MaxNewTokens,
    OnLoop,
    Outline,
    Seed,
    Stop,
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


def generate(
    target: Target,
    prompt: Annotated[str | None, typer.Argument(help="The text to answer; without it, stdin is read.")] = None,
    input: Annotated[Path | None, typer.Option(help='A JSONL file of {"prompt": …} or {"messages": […]}.')] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the answers to --input go; those already there are kept.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it stands, without the chat template.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts of --input decoded together.")] = 8,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    stop: Stop = None,
    on_loop: OnLoop = None,
    fallback: FallbackTo = None,
    outline: Outline = None,
    thinking_budget: ThinkingBudget = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Answer a prompt, or every prompt of a file.

    Examples: lowmem generate runs/demo "12-5=?" ·
    lowmem generate runs/demo --input prompts.jsonl --output answers.jsonl
    """
    text, on_loop = _prompt(prompt, input, output), rescue_for(fallback, on_loop)
    from lowmem.jobs.generate import generate_file, open_generator

    with render.progress() as sink:
        generator = open_generator(target, sink=sink, device=check_device(device), fallback=fallback)
        settings = generation(
            generator.generation,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            stop=stop,
            on_loop=on_loop,
            outline=outline,
            thinking_token_budget=thinking_budget,
            seed=seed,
        )
        if input is not None and output is not None:
            count = generate_file(generator, input, output, settings, sink, batch_size=batch_size)
            render.message(f"{count} answers added to {output}")
    if text is not None:
        _answer(generator, text, settings, raw=raw)


def _prompt(prompt: str | None, input: Path | None, output: Path | None) -> str | None:
    """The one prompt to answer, or None when a file is to be answered."""
    if (input is None) != (output is None):
        raise typer.BadParameter("--input and --output go together")
    if input is not None:
        if prompt is not None:
            raise typer.BadParameter("give either a PROMPT or --input, not both")
        return None
    if prompt is not None:
        return prompt
    if _stdin_is_terminal():
        raise typer.BadParameter("give a PROMPT, pipe one into stdin, or use --input with --output")
    return sys.stdin.read()


def _stdin_is_terminal() -> bool:
    return sys.stdin.isatty()


def _answer(generator: Generator, text: str, settings: GenerationConfig, *, raw: bool) -> None:
    chat = generator.chat and not raw
    for piece in generator.stream([{"role": "user", "content": text}] if chat else text, settings):
        render.piece(piece)
    render.piece("\n")
