"""YAML as a tree of located nodes: every value knows the file and line it was written on.

One grammar for files and for the command line, with the traps of YAML 1.1 removed: `1e-5` is a number, only true
and false are booleans (`on`, `off`, `yes`, `no` and Norway stay text), dates and `12:30` stay text, duplicate
keys are errors. `null`, `~` and Python's `None` mean "not set".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lowmem.errors import ConfigError

MAX_FILE_BYTES = 1_000_000
MAX_NODES = 20_000
"""Far above any config; stops anchors that expand without end."""
MAX_DEPTH = 30

Scalar = str | int | float | bool | None

_PREFIX = "tag:yaml.org,2002:"
_NULL = re.compile(r"~|null|Null|NULL|None|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
# 40 digits: more is no quantity, and Python refuses to parse very long ones.
_INT = re.compile(r"[-+]?[0-9]{1,40}|[-+]?[0-9]{1,3}(?:_[0-9]{3}){1,12}")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]{1,40}\.[0-9]{0,40}|\.[0-9]{1,40}|[0-9]{1,40}(?=[eE]))(?:[eE][-+]?[0-9]{1,4})?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_RESOLVERS = (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT))


@dataclass(frozen=True)
class Node:
    """A value and the place it came from. `written` is the key as the user typed it, if it was renamed."""

    value: Scalar | list[Node] | dict[str, Node]
    where: str
    """`run.yaml:3` or `command line`."""
    written: str | None = None

    @property
    def entries(self) -> dict[str, Node]:
        """The keys of a mapping; empty for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    def with_entries(self, entries: dict[str, Node]) -> Node:
        return replace(self, value=entries)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's own attribute


class Dumper(yaml.SafeDumper):
    """Writes YAML that this module reads back to equal values: text that looks like a number gets quotes."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's own attribute

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Text with one of Unicode's own line breaks goes into double quotes, where it is escaped: written as it is,
        the break would be read back as a space."""
        breaks = any(character in data for character in "\x85\u2028\u2029\ufeff")
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if breaks else None)


Dumper.add_representer(str, Dumper.represent_str)

for _tag, _pattern in _RESOLVERS:
    for _class in (_Loader, Dumper):
        _class.add_implicit_resolver(_PREFIX + _tag, re.compile(f"(?:{_pattern.pattern})$"), None)


def read_yaml(path: Path) -> Node:
    """The mapping in the file. Raises `ConfigError` with file and line for anything else found there."""
    return parse_yaml(_read_text(path), str(path))


def parse_yaml(text: str, name: str) -> Node:
    """The mapping written in `text`; `name` stands for the file in locations."""
    node = _Construction(name).build(_compose(text, name))
    if node is None or node.value is None:
        raise ConfigError(f"{name}:1: the file holds no keys; `lowmem init` prints a config to start from")
    if not isinstance(node.value, dict):
        found = kind_of(node.value)
        raise ConfigError(f"{node.where}: a config is a mapping of `key: value` lines, and this is {found}")
    return replace(node, where=f"{name}:1")


def parse_value(text: str, where: str) -> Node:
    """One value as YAML reads it: `1e-5` is a number, `[a, b]` a list, `{kind: lora}` a mapping, "" null."""
    node = _Construction(where, numbered=False).build(_compose(text, where, numbered=False))
    return Node(None, where) if node is None else node


def from_plain(value: object, where: str) -> Node:
    """The tree of plain Python data, all of it at one place."""
    match value:
        case Mapping():
            return Node({str(key): from_plain(item, where) for key, item in value.items()}, where)
        case list() | tuple():
            return Node([from_plain(item, where) for item in value], where)
        case str() | int() | float() | bool() | None:
            return Node(value, where)
        case _:
            raise ConfigError(f"{where}: {value!r} is {type(value).__name__}, which no config key takes")


def to_plain(node: Node) -> Any:
    """The tree without locations."""
    match node.value:
        case dict():
            return {key: to_plain(item) for key, item in node.value.items()}
        case list():
            return [to_plain(item) for item in node.value]
        case _:
            return node.value


def kind_of(value: object) -> str:
    """What a value is called in messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int():
            return "a whole number"
        case float():
            return "a number"
        case str():
            return "text"
        case dict():
            return "a mapping"
        case _:
            return "a list"


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; name the YAML file in it")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: has {size} bytes, too many for a config; name a YAML file")
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if b"\0" in raw:
        line = raw[: raw.index(b"\0")].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: is a binary file; a config is a YAML text file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text; save the file as UTF-8") from error


def _compose(text: str, name: str, *, numbered: bool = True) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        where = f"{name}:{text[: error.position].count(chr(10)) + 1}" if numbered else name
        raise ConfigError(f"{where}: character {chr(error.character)!a} is not allowed in YAML; remove it") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if numbered and mark else name
        raise ConfigError(f"{where}: {_syntax(error, mark)}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}{':1' if numbered else ''}: is nested too deeply for a config") from error


def _syntax(error: yaml.MarkedYAMLError, mark: yaml.error.Mark | None) -> str:
    problem = error.problem or "cannot be read"
    if "'\\t'" in problem:
        return "a tab is used as indentation, which YAML forbids; use spaces"
    if "single document" in str(error.context):
        return "a second document starts here (`---`); a config is one document"
    if "mapping values are not allowed" in problem:
        return 'a `:` is not expected here; quote text that holds ": ", and indent the keys of a section alike'
    if "%" in problem or "'@'" in problem or "'`'" in problem:
        return f"not valid YAML: {problem}; put the text in quotes"
    advice = "check indentation, quotes and brackets"
    if error.context and error.context_mark and mark and error.context_mark.line != mark.line:
        return f"not valid YAML: {error.context} of line {error.context_mark.line + 1}, {problem}; {advice}"
    return f"not valid YAML: {problem}; {advice}"


class _Construction:
    """Turns composed YAML into located nodes, refusing what a config must not hold."""

    def __init__(self, name: str, *, numbered: bool = True) -> None:
        self._name = name
        self._numbered = numbered
        self._count = 0
        self._open: set[int] = set()

    def build(self, node: yaml.Node | None) -> Node | None:
        return None if node is None else self._node(node)

    def _where(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}" if self._numbered else self._name

    def _node(self, node: yaml.Node) -> Node:
        where = self._where(node)
        self._count += 1
        if self._count > MAX_NODES or id(node) in self._open:
            raise ConfigError(f"{where}: the anchors of this file expand without end; write the values out")
        if len(self._open) == MAX_DEPTH:
            raise ConfigError(f"{where}: is nested too deeply for a config")
        self._open.add(id(node))
        try:
            match node:
                case yaml.ScalarNode():
                    return Node(self._scalar(node, where), where)
                case yaml.SequenceNode(tag="tag:yaml.org,2002:seq"):
                    return Node([self._node(item) for item in node.value], where)
                case yaml.MappingNode(tag="tag:yaml.org,2002:map"):
                    return Node(self._mapping(node), where)
                case _:
                    raise ConfigError(f"{where}: the YAML tag {_short(node.tag)} is not allowed in a config; remove it")
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key_node, value_node in node.value:
            where = self._where(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key must be plain text, and this is a list or a mapping")
            key = str(key_node.value)
            if key == "<<" and key_node.style is None:
                raise ConfigError(f"{where}: <<: merging of mappings is not supported; write the keys out")
            if key in entries:
                raise ConfigError(f"{where}: {key}: is given twice, first at {entries[key].where}; remove one")
            entries[key] = replace(self._node(value_node), where=where)
        return entries

    def _scalar(self, node: yaml.ScalarNode, where: str) -> Scalar:
        text = str(node.value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ConfigError(f"{where}: {text!r} holds half a character; it is not valid text")
        match node.tag.removeprefix(_PREFIX):
            case "null" if _NULL.fullmatch(text):
                return None
            case "bool" if _BOOL.fullmatch(text):
                return text.lower() == "true"
            case "int" if _INT.fullmatch(text):
                return int(text)
            case "float" if _FLOAT.fullmatch(text) or _INT.fullmatch(text):
                return _number(text)
            case "str":
                return text
            case _:
                raise ConfigError(f"{where}: {text!r} is not what its tag {_short(node.tag)} says; remove the tag")


def _number(text: str) -> int | float:
    """Whole numbers stay whole: `max_steps: 1e3` is 1000."""
    value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan").replace("_", ""))
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _short(tag: str) -> str:
    return tag.replace(_PREFIX, "!!")
