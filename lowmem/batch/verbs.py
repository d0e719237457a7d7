"""What a job may be: a verb of the command line, or a command of the user's own. A new verb is a line in `VERBS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

COMMAND = "command"


@dataclass(frozen=True)
class Verb:
    """How a verb of the command line is used in a batch.

    `takes`: the first argument is the config of a run, or a model or run folder. `overrides`: `key=value` may follow.
    `output`: how it is told where to write: a key, an option, or None when it only prints. `resumes`: it goes on where
    it stopped. `json`: it has `--json`.
    """

    takes: Literal["config", "model"]
    overrides: bool = True
    output: str | None = None
    resumes: bool = False
    json: bool = True


VERBS = {
    "train": Verb("config", output="output_dir=", resumes=True),
    "plan": Verb("config"),
    "eval": Verb("model"),
    "generate": Verb("model", overrides=False, json=False),
    "quantize": Verb("model", output="--output"),
    "merge": Verb("model", overrides=False, output="--output"),
    "export": Verb("model", overrides=False, output="--output", json=False),
}
KINDS = (*VERBS, COMMAND)
