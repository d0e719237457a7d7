"""A `QuantizeConfig` from what was given on a command line, or every problem in it at once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from lowmem.config.explain import did_you_mean
from lowmem.config.quantize import Calibration, Gate, QuantizeConfig, Recovery
from lowmem.config.yaml_source import parse_value, to_plain
from lowmem.errors import ConfigError

SECTIONS: dict[str, type[BaseModel]] = {"calibration": Calibration, "gate": Gate, "recover": Recovery}
_OVERRIDE = re.compile(r"([A-Za-z_][\w-]*(?:\.[\w-]+)*)=(.*)", re.DOTALL)


def load_quantize(given: Mapping[str, Any], overrides: Sequence[str] = ()) -> QuantizeConfig:
    """The config of `given` (plain keys; None = not given) under `overrides` (`gate.max_divergence=0.2`).

    Raises `ConfigError` that lists every problem as `key: what, why; did you mean X?`.
    """
    keys: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    for text in overrides:
        match = _OVERRIDE.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"command line: {text!r} is not an override; write key=value, for example gate.max_divergence=0.2"
            )
        _set(keys, match[1].replace("-", "_").split("."), to_plain(parse_value(match[2], f"command line: {match[1]}")))
    for name in ("dataset", "eval_dataset"):
        if name in keys:
            keys[name] = _datasets(keys[name])
    try:
        return QuantizeConfig.model_validate_json(json.dumps(keys), strict=True)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors(include_url=False)]
        raise ConfigError("\n".join(f"quantize: {problem}" for problem in dict.fromkeys(problems))) from error


def _set(keys: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *above, last = path
    for part in above:
        keys = keys.setdefault(part, {})
        if not isinstance(keys, dict):
            raise ConfigError(f"command line: {'.'.join(path)}: {part} is no section; its keys cannot be set")
    keys[last] = value


def _datasets(value: Any) -> list[Any]:
    """A name or a section stands for a list of one; a section without a format is recognised."""
    listed = value if isinstance(value, list) else [value]
    sections = [{"path": item} if isinstance(item, str) else item for item in listed]
    return [{"format": "auto", **item} if isinstance(item, dict) else item for item in sections]


def _problem(item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    key, section = ".".join(path), SECTIONS.get(path[0]) if len(path) > 1 else QuantizeConfig
    match item["type"]:
        case "value_error":
            return f"{key}: {item['ctx']['error']}" if key else str(item["ctx"]["error"])
        case "extra_forbidden":
            known = section.model_fields if section is not None else {}
            return f"{key}: is not a key{did_you_mean(path[-1], known) or ''}"
        case "missing":
            return f"{key}: is required"
        case _:
            return f"{key}: is {item['input']!r}: {item['msg'].lower()}"
