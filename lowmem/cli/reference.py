"""docs/cli.md from the verbs themselves: `python -m lowmem.cli.reference > docs/cli.md`; a test keeps it fresh.

Read from the functions' signatures, so the width of the terminal does not matter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from lowmem.cli import render
from lowmem.cli.app import EXIT_CODES, app

_HEAD = f"""\
# Command line

Written by `python -m lowmem.cli.reference > docs/cli.md`; do not edit. Results go to stdout, progress and messages
to stderr. {EXIT_CODES}
"""
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def reference() -> str:
    """The reference of all verbs as Markdown."""
    verbs = [_verb(str(command.name), command.callback) for command in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        inner = group.typer_instance
        verbs += [_verb(f"{inner.info.name} {command.name}", command.callback) for command in inner.registered_commands]
    return "\n".join([_HEAD, *verbs])


def _verb(name: str, function: Callable[..., Any] | None) -> str:
    assert function is not None
    arguments: list[tuple[str, str]] = []
    options: list[tuple[str, str]] = []
    for shown, help_text, is_option in _parameters(function):
        (options if is_option else arguments).append((shown, help_text))
    usage = " ".join(["lowmem", name, *(shown for shown, _ in arguments), *(["[OPTIONS]"] if options else [])])
    rows = [f"| `{_cell(shown)}` | {_cell(help_text)} |" for shown, help_text in (*arguments, *options)]
    text = inspect.cleandoc(function.__doc__ or "")
    return "\n".join([f"## {name}", "", f"`{usage}`", "", text, "", "| | |", "|---|---|", *rows, ""])


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, str, bool]]:
    """(how it is typed, help, whether it is an option) of every parameter."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = get_args(hints[name])[:2]
        members = [member for member in get_args(kind) if member is not type(None)] or [kind]
        base, default = members[0], parameter.default
        if isinstance(info, ArgumentInfo):
            shown = info.metavar or name.upper()
            optional = default is not inspect.Parameter.empty and not shown.startswith("[")
            dots = "..." if get_args(base) else ""
            yield (f"[{shown}]{dots}" if optional else shown), info.help or "", False
            continue
        assert isinstance(info, OptionInfo)
        # In Annotated, typer keeps the first name of an option where a default would stand.
        names = [info.default] if isinstance(info.default, str) else []
        option = ", ".join([*names, *(info.param_decls or ())]) or f"--{name.replace('_', '-')}"
        item = (get_args(base) or (base,))[0]
        value = "" if base is bool else f" {info.metavar or _METAVARS[item]}"
        known = "" if default in (None, False) or not info.help else f" [default: {default}]"
        yield option + value, f"{info.help}{known}", True


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    render.result(reference())
