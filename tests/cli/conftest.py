"""Verbs against fake jobs: what they are asked for, what is drawn, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from lowmem.cli.app import app


@pytest.fixture
def run() -> Callable[..., Any]:
    """Runs the command line in this process; the result has exit_code, stdout and stderr."""

    def invoke(*args: str, input: str | None = None) -> Any:
        result = CliRunner().invoke(app, list(args), input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke
