"""A run's config from a YAML file and `key=value` overrides, or every problem in it at once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lowmem.config.aliases import IN_SECTION, OWN_KEYS
from lowmem.config.explain import explain, render
from lowmem.config.rewrite import DATASETS, Found, canonical
from lowmem.config.run import PLANNED, RunConfig
from lowmem.config.yaml_source import Dumper, Node, from_plain, parse_value, read_yaml, to_plain
from lowmem.errors import ConfigError

COMMAND_LINE = "command line"

_OVERRIDE = re.compile(r"([A-Za-z_][\w-]*(?:\.[\w-]+)*)=(.*)", re.DOTALL)
_DEFAULT_KIND = {"method": "lora", "optimizer": "adamw", "quantization": "none"}


@dataclass(frozen=True)
class LoadedRun:
    """A checked config, what the user should be told about it, and the file it came from."""

    config: RunConfig
    notices: tuple[str, ...]
    source: Path | None


def load_run(path: Path | None, overrides: Sequence[str] = (), *, base: Mapping[str, Any] | None = None) -> LoadedRun:
    """The config of `path`, over the keys of `base`, under `overrides` (`key=value`, `method.lora_r=16`).

    Raises `ConfigError` that lists every problem as `file:line: key: what, why; did you mean X?`.
    """
    found = Found()
    root = Node({}, COMMAND_LINE)
    if base is not None:
        root = _merge(root, canonical(from_plain(base, "defaults"), found))
    if path is not None:
        file = _beside(canonical(read_yaml(path), found), path.parent)
        root = replace(_merge(root, file), where=file.where)
    patches = [_parse_override(text, found) for text in overrides]
    root = _with_planned(_with_own_names(_with_kinds(reduce(_merge, patches, root)), found))
    # Strict, through JSON: there a list is a tuple and a whole number is a float, but "8" is no number.
    try:
        config = RunConfig.model_validate_json(json.dumps(to_plain(root)), strict=True)
    except ValidationError as error:
        raise ConfigError(render([*found.problems, *explain(error, root)])) from error
    if found.problems:
        raise ConfigError(render(found.problems))
    return LoadedRun(config=config, notices=tuple(dict.fromkeys(found.notices)), source=path)


def dump_run(config: RunConfig) -> str:
    """YAML that loads to an equal config."""
    plain = config.model_dump(mode="json")
    return str(yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110))


def _parse_override(text: str, found: Found) -> Node:
    """The override as a config with one key in it."""
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        advice = "write key=value, for example learning_rate=1e-4 or method.lora_r=16"
        raise ConfigError(f"{COMMAND_LINE}: {text!r} is not an override; {advice}")
    keys = [part.replace("-", "_") for part in match[1].split(".")]
    node = parse_value(match[2], f"{COMMAND_LINE}: {match[1]}")
    node = replace(node, where=COMMAND_LINE)
    for key in reversed(keys):
        node = Node({key: node}, COMMAND_LINE)
    return canonical(node, found, expand=len(keys) == 1)


def _merge(base: Node, over: Node) -> Node:
    """`over` on top of `base`, section by section; another kind replaces the whole section."""
    entries = dict(base.entries)
    for key, node in over.entries.items():
        below = entries.get(key)
        if below is not None and key in _DEFAULT_KIND and _kind(key, node, below) != _kind(key, below, below):
            entries[key] = node
        else:
            entries[key] = node if below is None else _merge_values(key, below, node)
    return base.with_entries(entries)


def _kind(section: str, node: Node, fallback: Node) -> object:
    """The kind that `node` names, else what `fallback` names, else the section's default."""
    for source in (node, fallback):
        if "kind" in source.entries:
            return source.entries["kind"].value
    return _DEFAULT_KIND[section]


def _merge_values(key: str, below: Node, over: Node) -> Node:
    if isinstance(below.value, dict) and isinstance(over.value, dict):
        return _merge(below, over)
    if isinstance(below.value, list) and isinstance(over.value, dict):
        return _merge_into_list(key, below.value, over, where=below.where)
    return over


def _merge_into_list(key: str, items: list[Node], over: Node, *, where: str) -> Node:
    """`dataset.0.limit=10` changes one entry, `dataset.limit=10` every entry."""
    changed = list(items)
    for name, node in over.entries.items():
        if not name.isdigit():
            changed = [_merge(item, Node({name: node}, over.where)) for item in changed]
        elif int(name) < len(items):
            changed[int(name)] = _merge_values(key, changed[int(name)], node)
        else:
            last = len(items) - 1
            raise ConfigError(f"{over.where}: {key}.{name}: there are {len(items)} entries, numbered from 0 to {last}")
    return Node(changed, where)


def _with_kinds(root: Node) -> Node:
    """Sections that name no kind get the default one, so that `optimizer: {weight_decay: 0.1}` is enough."""
    entries = dict(root.entries)
    for section, kind in _DEFAULT_KIND.items():
        node = entries.get(section)
        if node is not None and isinstance(node.value, dict) and "kind" not in node.entries:
            entries[section] = node.with_entries({"kind": Node(kind, node.where), **node.entries})
    return root.with_entries(entries)


def _with_own_names(root: Node, found: Found) -> Node:
    """`method.rank=64` on a command line, renamed before the kind was known, gets its name back where it is one."""
    entries = dict(root.entries)
    for (section, kind), own in OWN_KEYS.items():
        node = entries.get(section)
        if node is None or not isinstance(node.value, dict) or node.entries["kind"].value != kind:
            continue
        inner: dict[str, Node] = {}
        for key, value in node.entries.items():
            name = next((n for n in own if key == IN_SECTION[section][n] and value.written == f"{section}.{n}"), key)
            if name != key:
                value = replace(value, written=None)
                found.take_back(value, f"{section}.{name}", f"{section}.{key}")
            inner[name] = value
        entries[section] = node.with_entries(inner)
    return root.with_entries(entries)


def _with_planned(root: Node) -> Node:
    """`gradient_checkpointing: auto` becomes an entry of `auto`, and the key takes its default."""
    left = [key for key in PLANNED if key in root.entries and root.entries[key].value == "auto"]
    if not left:
        return root
    entries = {key: node for key, node in root.entries.items() if key not in left}
    said = root.entries.get("auto")
    names = list(said.value) if said is not None and isinstance(said.value, list) else []
    names += [Node(key, root.entries[key].where) for key in left]
    return root.with_entries({**entries, "auto": Node(names, root.entries[left[0]].where)})


def _beside(root: Node, folder: Path) -> Node:
    """Relative dataset paths that exist only beside the YAML file point there."""
    entries = dict(root.entries)
    for key in DATASETS:
        node = entries.get(key)
        if node is not None and isinstance(node.value, list):
            entries[key] = replace(node, value=[_dataset_beside(item, folder) for item in node.value])
    return root.with_entries(entries)


def _dataset_beside(node: Node, folder: Path) -> Node:
    path = node.entries.get("path")
    if path is None or not isinstance(path.value, str) or not path.value:
        return node
    # Not Path.exists: a name that is too long for the file system names no file.
    if os.path.exists(path.value) or not os.path.exists(folder / path.value):
        return node
    return node.with_entries({**node.entries, "path": replace(path, value=str(folder / path.value))})
