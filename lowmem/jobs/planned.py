"""Prompts that carry an outline, and the policy that a calibration chose for a model (its `decoding.json`)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lowmem.config.generation import GenerationConfig
from lowmem.errors import ConfigError
from lowmem.generate.outline import Calibration, Choice, High, Policy, asking, following
from lowmem.generate.tokens import Prompt
from lowmem.jobs.chat_form import Message
from lowmem.report.elements import write_whole

DECODING = "decoding.json"
_POLICIES: dict[str, Policy] = {"rescue": "rescue", "planning": "planning", "high": "high"}

Asked = str | Sequence[Message]


def chosen_policy(target: str, config: GenerationConfig) -> Policy:
    """What to do with prompts under `config`; `auto` reads the choice that a calibration left in the folder `target`.

    Raises `ConfigError` where there is none.
    """
    if config.outline != "auto":
        return "planning" if config.outline == "on" else "rescue"
    file = Path(target) / DECODING
    if not file.is_file():
        raise ConfigError(
            f"outline auto: {target} was never calibrated; run `lowmem calibrate {target} PROBLEMS.jsonl` once, "
            "or use --outline on or off"
        )
    said = json.loads(file.read_text(encoding="utf-8")).get("policy")
    if said not in _POLICIES:
        raise ConfigError(f"{file}: {said!r} is no policy; calibrate again with `lowmem calibrate {target}`")
    return _POLICIES[said]


def keep_choice(folder: Path, choice: Choice, found: Calibration) -> Path:
    """`decoding.json` in `folder` says what was chosen, why, and from which numbers."""
    content = {"policy": choice.policy, "reason": choice.reason, "calibration": dataclasses.asdict(found)}
    write_whole(folder / DECODING, json.dumps(content, indent=1) + "\n")
    return folder / DECODING


def planned(
    asked: Sequence[Asked], high: High, config: GenerationConfig, encode: Callable[[Asked], Prompt]
) -> tuple[list[Asked], list[str]]:
    """`asked` with an outline each, and the outlines. `encode` puts a prompt as the model reads it.

    Raises `ConfigError` without a high precision.
    """
    outlines = high.outlines([encode(_worded(one, asking)) for one in asked], config)
    given = [_worded(one, partial(following, outline=said)) for one, said in zip(asked, outlines, strict=True)]
    return given, outlines


def question_of(asked: Asked) -> str:
    """The text of the question: the prompt, or the last message."""
    return asked if isinstance(asked, str) else str(asked[-1]["content"])


def _worded(asked: Asked, change: Callable[[str], str]) -> Asked:
    """`asked` with its question changed."""
    if isinstance(asked, str):
        return change(asked)
    *before, last = asked
    return [*before, {**last, "content": change(str(last["content"]))}]
