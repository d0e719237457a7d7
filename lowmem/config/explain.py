"""Validation errors in the user's terms: where it is written, what is wanted, what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from lowmem.config.aliases import ELSEWHERE, IN_SECTION, TOP_LEVEL
from lowmem.config.dataset import Dataset
from lowmem.config.generation import GenerationConfig
from lowmem.config.loss import Loss
from lowmem.config.method import LoraMethod, Method
from lowmem.config.optimizer import Optimizer
from lowmem.config.quantization import Quantization
from lowmem.config.rewrite import DATASETS
from lowmem.config.run import RunConfig
from lowmem.config.yaml_source import Node, kind_of, to_plain

Problem = tuple[str, str, str]
"""(where, key, text)."""
Path = tuple[str | int, ...]


def variants(union: Any, tag: str) -> dict[str, type[BaseModel]]:
    """Members of a tagged union by their tag."""
    members: Iterable[type[BaseModel]] = get_args(get_args(union)[0])
    return {str(member.model_fields[tag].default): member for member in members}


TAGS = {
    "method": "kind",
    "optimizer": "kind",
    "quantization": "kind",
    "loss": "kind",
    "dataset": "format",
    "eval_dataset": "format",
}
VARIANTS = {
    "method": variants(Method, "kind"),
    "optimizer": variants(Optimizer, "kind"),
    "quantization": variants(Quantization, "kind"),
    "loss": variants(Loss, "kind"),
    "dataset": variants(Dataset, "format"),
    "eval_dataset": variants(Dataset, "format"),
}

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "model": "a mapping of keys",
    "dict": "a mapping of keys",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_EMPTY = "a list of at least one"
_NUMERIC = re.compile(r"[-+]?[0-9._]+(?:[eE][-+]?[0-9]+)?")
_KEY_PREFIX = re.compile(r"([a-z_][a-z0-9_.]*): (.*)", re.DOTALL)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing when no word is near."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def explain(error: ValidationError, root: Node) -> list[Problem]:
    """Every problem of the config, in the order of its lines."""
    wanted: dict[Path, list[str]] = {}
    problems: list[Problem] = []
    for item in error.errors(include_url=False):
        section, tag, path = _place(item["loc"])
        kind = item["type"]
        if kind == "value_error":
            problems.append(_incoherent(str(item["ctx"]["error"]), path, root))
        elif kind == "extra_forbidden":
            problems.append(_problem(path, f"is not a key{_unknown(section, tag, path)}", root))
        elif kind == "missing":
            problems.append(_problem(path, _missing(section, tag, path), root))
        elif kind == "union_tag_invalid":
            problems.append(_unknown_tag(section, path, item, root))
        elif kind == "union_tag_not_found":
            names = ", ".join(VARIANTS[section])
            problems.append(_problem((*path, TAGS[section]), f"is missing; choose one of {names}", root))
        else:
            wanted.setdefault(_existing(path, root), []).append(_want(item))
    for path, texts in wanted.items():
        if texts == [_EMPTY] and to_plain(_find(root, path) or root):
            continue  # pydantic drops entries that are wrong, each reported by itself, before it counts
        problems.append(_problem(path, _mismatch(_find(root, path), texts), root))
    return problems


def render(problems: Sequence[Problem]) -> str:
    """One line a problem, each once, in the order of the file."""
    lines = dict.fromkeys(f"{where}: {_printable(key)}: {text}" for where, key, text in sorted(problems, key=_line))
    return "\n".join(lines)


def _printable(key: str) -> str:
    return key if key.isprintable() and key else ascii(key)


def _line(problem: Problem) -> tuple[str, int]:
    name, _, line = problem[0].rpartition(":")
    return (name, int(line)) if line.isdigit() else ("~" + problem[0], 0)


def _place(loc: tuple[int | str, ...]) -> tuple[str, str | None, Path]:
    """(section, tag of the union member, path in the config): pydantic puts the tag into the location."""
    section = str(loc[0]) if loc else ""
    depth = {"dataset": 2, "eval_dataset": 2}.get(section, 1)
    if section not in TAGS or len(loc) <= depth:
        return section, None, loc
    return section, str(loc[depth]), (*loc[:depth], *loc[depth + 1 :])


def _find(root: Node, path: Path) -> Node | None:
    node: Node | None = root
    for part in path:
        if node is None:
            return None
        if isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        else:
            node = node.entries.get(str(part))
    return node


def _existing(path: Path, root: Node) -> Path:
    """The longest start of `path` that is written; what follows is pydantic's name of a union member."""
    while path and _find(root, path) is None:
        path = path[:-1]
    return path


def _problem(path: Path, text: str, root: Node) -> Problem:
    node = _find(root, path)
    place = _find(root, _existing(path, root))
    key = ".".join(map(str, path)) or "config"
    if node is not None and node.written is not None:
        key = f"{key} (written {node.written})"
    return (place.where if place is not None else root.where), key, text


def _incoherent(message: str, base: Path, root: Node) -> Problem:
    """A validator's own sentence; where it starts with a key, that key is the place."""
    match = _KEY_PREFIX.fullmatch(message)
    if match is None:
        return _problem(base, message, root)
    return _problem((*base, *match[1].split(".")), match[2], root)


def _model(section: str, tag: str | None, path: Path) -> type[BaseModel]:
    """The section that the last part of `path` is a key of."""
    if "train_adapter" in path[:-1]:
        return LoraMethod
    if section == "generation" and len(path) > 1:
        return GenerationConfig
    return RunConfig if tag is None else VARIANTS[section][tag]


def _missing(section: str, tag: str | None, path: Path) -> str:
    model, key = _model(section, tag, path), str(path[-1])
    if key not in model.model_fields:
        return "is missing; the list needs more entries"
    meaning = (model.model_fields[key].description or "").strip().splitlines()
    return f"is required{': ' + meaning[0] if meaning else ''}"


def _unknown(section: str, tag: str | None, path: Path) -> str:
    model, key = _model(section, tag, path), str(path[-1])
    if key in ELSEWHERE and model is RunConfig:
        return f" of lowmem: {ELSEWHERE[key]}"
    if model is RunConfig:
        near = did_you_mean(key, RunConfig.model_fields) or _near_alias(key, TOP_LEVEL)
        return _at_home(key) or near or "; `lowmem init` prints the usual keys"
    owners = [name for name, other in VARIANTS.get(section, {}).items() if key in other.model_fields]
    if owners and "train_adapter" not in path[:-1]:
        return f" of {TAGS[section]}: {tag}; it belongs to {TAGS[section]}: {' and '.join(owners)}"
    if key in RunConfig.model_fields:
        return f" of {'.'.join(map(str, path[:-1]))}; it belongs to the top level"
    near = did_you_mean(key, model.model_fields) or _near_alias(key, IN_SECTION.get(section, {}))
    return near or f"; there are {', '.join(model.model_fields)}"


def _near_alias(key: str, aliases: dict[str, str]) -> str:
    nearest = difflib.get_close_matches(key, aliases, n=1, cutoff=0.75)
    return f"; did you mean {aliases[nearest[0]]}?" if nearest else ""


def _at_home(key: str) -> str:
    """Where a key that stands at the top level belongs, if it belongs anywhere."""
    for section in ("method", "optimizer", "quantization", "dataset"):
        owners = [name for name, model in VARIANTS[section].items() if key in model.model_fields]
        if owners:
            return f" of the top level; write it under {section} ({TAGS[section]}: {', '.join(owners)})"
    return " of the top level; write it under generation" if key in GenerationConfig.model_fields else ""


def _unknown_tag(section: str, path: Path, item: Any, root: Node) -> Problem:
    given, known = item["ctx"]["tag"], VARIANTS[section]
    text = f"is {_short(given)}, must be one of {', '.join(known)}{did_you_mean(str(given), known)}"
    return _problem((*path, TAGS[section]), text, root)


def _want(item: Any) -> str:
    kind = item["type"]
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{words} {float(item['ctx'][name]):g}"
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        return f"one of {', '.join(names)}{did_you_mean(str(item['input']), names)}"
    if kind == "too_short":
        return _EMPTY
    if kind == "too_long":
        return f"a list of {item['ctx']['max_length']}"
    if kind.startswith(("model", "dict")) and item["loc"][0] in TAGS and item["loc"][0] not in DATASETS:
        return f"a mapping of keys, or a name: {', '.join(VARIANTS[item['loc'][0]])}"
    if kind == "string_too_short":
        return "text that is not empty"
    return str(_WANTED.get(kind, _WANTED.get(kind.split("_")[0], item["msg"])))


def _mismatch(node: Node | None, wanted: Sequence[str]) -> str:
    value = None if node is None else node.value
    return f"is {_short(value)}, must be {' or '.join(dict.fromkeys(wanted))}{_advice(value, wanted[0])}"


def _advice(value: object, wanted: str) -> str:
    number = "number" in wanted or "than" in wanted or "at " in wanted
    match value:
        case None:
            return "; leave the key out for its default"
        case "auto":
            return "; leave the key out for its default"
        case str() if number and _NUMERIC.fullmatch(value):
            return "; remove the quotes"
        case str() if wanted == "true or false" and value.lower() in ("yes", "on", "y", "no", "off", "n"):
            return f"; write {'true' if value.lower() in ('yes', 'on', 'y') else 'false'}"
        case bool() | int() | float() if wanted == "text":
            return "; put it in quotes"
        case _:
            return ""


def _short(value: object) -> str:
    """The value as it may be shown: its kind, and its text when that is short."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return repr(value if len(value) <= 60 else value[:57] + "...")
        case int() | float():
            return repr(value)
        case []:
            return "an empty list"
        case _:
            return kind_of(value)
