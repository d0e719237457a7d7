"""One source of keys in its canonical form: aliases renamed, shorthands (`method: lora`) written out.

Nothing is checked that the schema checks anyway. What is refused here is what the schema could not explain: a
key given under two names, a secret in a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lowmem.config.aliases import (
    IN_SECTION,
    METHODS,
    OWN_KEYS,
    QUANTIZATION_BITS,
    TOP_LEVEL,
    VALUES,
    is_secret,
    secret_advice,
)
from lowmem.config.yaml_source import Node, to_plain

KIND_SECTIONS = ("method", "optimizer", "quantization")
DATASETS = ("dataset", "eval_dataset")


@dataclass
class Found:
    """What rewriting meets: notices for the user, and problems as (where, key, text)."""

    notices: list[str] = field(default_factory=list)
    problems: list[tuple[str, str, str]] = field(default_factory=list)

    def rename(self, node: Node, old: str, new: str) -> None:
        self.notices.append(f"{node.where}: {old} is read as {new}")

    def take_back(self, node: Node, old: str, new: str) -> None:
        """What `rename` said of `old` does not hold."""
        self.notices.remove(f"{node.where}: {old} is read as {new}")

    def refuse(self, node: Node, key: str, text: str) -> None:
        self.problems.append((node.where, key, text))

    def refuse_twin(self, node: Node, key: str, other: str, where: str) -> None:
        self.refuse(node, key, f"means the same as {other} ({where}); keep one of them")


def canonical(root: Node, found: Found, *, expand: bool = True) -> Node:
    """The mapping with canonical keys and, with `expand`, shorthands written out.

    `expand=False` leaves a partial section such as `{dataset: {0: {limit: 5}}}` as it is, to be merged.
    """
    out: dict[str, Node] = {}
    given: dict[str, tuple[str, str]] = {}
    # Whole sections first: `lora_r: 16` may stand above or below `method: lora`.
    for path, node in sorted(_entries(root, found), key=lambda entry: "." in entry[0]):
        name = node.written or path
        if path in given:
            # `adapter: qlora` with `load_in_4bit: true` says the same thing twice; anything else is a contradiction.
            if path == "quantization" and to_plain(out[path]) == {"kind": node.value}:
                continue
            found.refuse_twin(node, name, *given[path])
            continue
        given[path] = (name, node.where)
        section, _, key = path.partition(".")
        if key:
            out[section] = _insert(section, out.get(section), key, node, found)
        else:
            out[section] = _section(section, node, found, expand)
    return root.with_entries(out)


def _entries(root: Node, found: Found) -> list[tuple[str, Node]]:
    """(canonical path, node) of every key, each renaming noted."""
    out: list[tuple[str, Node]] = []
    for key, node in (*_switches(root.entries, found), *root.entries.items()):
        if key in _SWITCHES and isinstance(node.value, bool):
            continue
        if is_secret(key):
            found.refuse(node, key, secret_advice(key))
            continue
        target = TOP_LEVEL.get(key, key)
        for path, value in _spread(target, node if target == key else replace(node, written=key)):
            if value.written is not None:
                original = root.entries[value.written]
                changed = value.value != original.value
                found.rename(value, _shown(value.written, original, changed), _shown(path, value, changed))
            out.append((path, value))
    return out


_SWITCHES = {
    "bf16": ("dtype", "bf16"),
    "fp16": ("dtype", "fp16"),
    "load_in_4bit": ("quantization", "nf4"),
    "load_in_8bit": ("quantization", "int8"),
    "lora_target_linear": ("method.lora_target_modules", "all-linear"),
}
"""Boolean keys of other tools: what they choose when they are true."""


def _switches(entries: dict[str, Node], found: Found) -> list[tuple[str, Node]]:
    """Boolean keys as choices. `bf16: false` without `fp16: true` means fp32, as it does for Hugging Face."""
    chosen = []
    for key, (path, value) in _SWITCHES.items():
        node = entries.get(key)
        if node is not None and node.value is True:
            chosen.append((path, replace(node, value=value, written=key)))
    bf16 = entries.get("bf16")
    if bf16 is not None and bf16.value is False and all(path != "dtype" for path, _ in chosen):
        chosen.append(("dtype", replace(bf16, value="fp32", written="bf16")))
    return chosen


def _spread(target: str, node: Node) -> list[tuple[str, Node]]:
    """The keys that one entry sets: nearly always one, `adapter: qlora` sets two."""
    if target == "quantization" and isinstance(node.value, int) and node.value in QUANTIZATION_BITS:
        written = node.written or target
        return [(target, replace(node, value=QUANTIZATION_BITS[node.value], written=written))]
    if target == "method" and node.value == "qlora":
        written = node.written or target
        base = replace(node, value="nf4", written=written)
        return [(target, replace(node, value="lora", written=written)), ("quantization", base)]
    return [(target, node)]


def _shown(name: str, node: Node, with_value: bool) -> str:
    """`lr`, or `fp16: true` where the value changes too."""
    return f"{name}: {str(node.value).lower()}" if with_value else name


def _insert(section: str, base: Node | None, key: str, node: Node, found: Found) -> Node:
    """The section with one more key from the top level; a list of datasets gets it in each."""
    if base is None or base.value is None:
        return _renamed_keys(section, Node({key: node}, node.where), found)
    if isinstance(base.value, list):
        return replace(base, value=[_insert(section, item, key, node, found) for item in base.value])
    if key in base.entries:
        found.refuse_twin(node, node.written or key, f"{section}.{key}", base.entries[key].where)
        return base
    if not isinstance(base.value, dict):
        return base
    return base.with_entries({**base.entries, **_renamed_keys(section, Node({key: node}, node.where), found).entries})


def _section(key: str, node: Node, found: Found, expand: bool) -> Node:
    if key in KIND_SECTIONS:
        return _renamed_keys(key, _from_name(key, node, found), found)
    if key in DATASETS:
        return _datasets(key, node, found, expand)
    if key == "generation":
        return _renamed_keys(key, node, found)
    if key == "report_to" and expand:
        return _trackers(node)
    return _known_value(key, key, node, found)


def _from_name(section: str, node: Node, found: Found) -> Node:
    """`lora` -> `{kind: lora}`; null -> nothing said."""
    if node.value is None:
        return node.with_entries({})
    if not isinstance(node.value, str):
        return node
    if section == "method" and node.value in METHODS:
        keys = METHODS[node.value]
        found.rename(node, f"method: {node.value}", "method: {" + ", ".join(f"{k}: {v}" for k, v in keys.items()) + "}")
        return node.with_entries({key: Node(value, node.where) for key, value in keys.items()})
    return node.with_entries({"kind": _known_value(section, section, node, found)})


def _renamed_keys(section: str, node: Node, found: Found, prefix: str | None = None) -> Node:
    """The section with its own aliases renamed and secrets refused; anything but a mapping as it is."""
    if not isinstance(node.value, dict):
        return node
    prefix = prefix or section
    out: dict[str, Node] = {}
    kind = node.entries["kind"].value if "kind" in node.entries else None
    own = OWN_KEYS.get((section, str(kind)), ())
    for key, value in node.entries.items():
        name = key if key in own else IN_SECTION.get(section, {}).get(key, key)
        if is_secret(key):
            found.refuse(value, f"{prefix}.{key}", secret_advice(key))
        elif name in out or (name != key and name in node.entries):
            found.refuse_twin(value, f"{prefix}.{key}", f"{prefix}.{name}", (out.get(name) or node.entries[name]).where)
        else:
            if name != key:
                value = replace(value, written=f"{prefix}.{key}")
                found.rename(value, f"{prefix}.{key}", f"{prefix}.{name}")
            out[name] = _inner(name, value, found, f"{prefix}.{name}")
    return node.with_entries(out)


def _inner(name: str, node: Node, found: Found, path: str) -> Node:
    match name:
        case "train_adapter":
            return _renamed_keys("method", node, found, path)
        case "lora_target_modules":
            return _target_modules(node)
        case "format" | "kind":
            return _known_value(path.split(".")[0] if name == "kind" else "dataset.format", path, node, found)
        case _:
            return node


def _target_modules(node: Node) -> Node:
    """`all` and `q_proj,v_proj` mean what they mean in LLaMA-Factory."""
    if node.value == "all":
        return replace(node, value="all-linear")
    if isinstance(node.value, str) and "," in node.value:
        return replace(node, value=[Node(name.strip(), node.where) for name in node.value.split(",") if name.strip()])
    return node


def _datasets(key: str, node: Node, found: Found, expand: bool) -> Node:
    """A list of datasets; one mapping or one path is a list of one."""
    if isinstance(node.value, list):
        return replace(node, value=[_dataset(item, found, f"{key}.{i}") for i, item in enumerate(node.value)])
    if not expand:
        partial = {name: _renamed_keys("dataset", item, found, f"{key}.{name}") for name, item in node.entries.items()}
        return _renamed_keys("dataset", node.with_entries(partial), found, key)
    return replace(node, value=[] if node.value is None else [_dataset(node, found, f"{key}.0")])


def _dataset(node: Node, found: Found, prefix: str) -> Node:
    """One dataset as a mapping with a format; a bare path or hub id is `{format: auto, path: …}`."""
    if isinstance(node.value, str):
        node = node.with_entries({"path": replace(node, written=None)})
    node = _renamed_keys("dataset", node, found, prefix)
    if not isinstance(node.value, dict) or "format" in node.entries:
        return node
    kind = "task" if "task" in node.entries else "procedural" if "family" in node.entries else "auto"
    return node.with_entries({"format": Node(kind, node.where), **node.entries})


def _trackers(node: Node) -> Node:
    """`none` and null are no trackers, one name is a list of one."""
    if node.value is None or to_plain(node) in ("none", ["none"]):
        return replace(node, value=[])
    return replace(node, value=[replace(node, written=None)]) if isinstance(node.value, str) else node


def _known_value(table: str, key: str, node: Node, found: Found) -> Node:
    """The value under our name, where another tool's name for it is known."""
    known = VALUES.get(table, {})
    if isinstance(node.value, str) and node.value in known:
        found.rename(node, f"{key}: {node.value}", known[node.value])
        return replace(node, value=known[node.value])
    return node
