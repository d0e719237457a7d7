"""How well loops are noticed, as `protocols/detector.yaml` fixes it.

It says what is measured on which half of the texts; only the development half may be looked at while a rule is changed,
so the rates of the other half are those of texts that nobody fitted anything to.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from examples.protocol import ROOT, Protocol, Tier, digest, open_protocol
from examples.rescue.noticing import LONG, MODEL, Material, cost, false_alarms, rates, recall
from examples.results import write_result

RULES = ROOT / "lowmem" / "generate" / "loops"
Cell = Callable[[dict[str, Any], Callable[[], dict[str, Any]]], dict[str, Any]]


def main(tier: Tier, data: Path) -> None:
    """Prints the numbers of the test half; the session and full tiers record them."""
    protocol = open_protocol("detector", tier)
    found = run(protocol, data)
    keys, tables = summary(protocol, found)
    for table in tables:
        print(f"\n{table['title']}")
        for row in [table["columns"], *table["rows"]]:
            print("".join(f"{cell!s:>22}" for cell in row))
    if tier != "quick":
        _record(tier, keys, tables)
    print(json.dumps(keys))


def run(protocol: Protocol, data: Path) -> dict[str, Any]:
    """Every cell of the tier; nothing is computed twice for the same rules."""
    settings = protocol.settings
    material = Material(data, settings["texts"], "test")
    rules = code_digest()

    def cell(key: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return protocol.cell({**key, "rules": rules}, compute)

    false = {kind: cell({"false": kind}, partial(false_alarms, material, kind)) for kind in settings["texts"]}
    noticed = {
        kind: cell({"recall": kind}, partial(recall, material, kind, count, settings["seed"]))
        for kind, count in settings["plants"].items()
    }
    spent = cell({"cost": MODEL}, partial(cost, material, **settings["cost"]))
    return {"false": false, "recall": noticed, "cost": spent, "roc": roc(material, settings, cell)}


def roc(material: Material, settings: dict[str, Any], cell: Cell) -> list[dict[str, Any]]:
    """The n-gram rule by itself over (n, count, window), bare and guarded, on fewer texts."""
    asked = settings["roc"]
    fewer = Material(material.data, asked["texts"], "test")
    kinds = ("exact", "counting")
    plants = [one for kind in kinds for one in material.plants(kind, asked["plants"], settings["seed"])]
    points: list[dict[str, Any]] = []
    for guarded, n, count, window in product((False, True), asked["n"], asked["count"], asked["window"]):
        key = {"n": n, "count": count, "window": window, "guarded": guarded}
        points.append(key | cell({"roc": key}, partial(rates, fewer, plants=plants, **key)))
    return points


def code_digest() -> str:
    """Changes with every change of a rule: cells of another detector are not read."""
    return digest([path.read_text() for path in sorted(RULES.glob("*.py"))])


def summary(protocol: Protocol, found: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The keys that the protocol decides by, and the tables."""
    kinds = found["false"].values()
    texts, false = sum(one["texts"] for one in kinds), sum(one["false"] for one in kinds)
    long, false_long = sum(one["long"] for one in kinds), sum(one["false_long"] for one in kinds)
    recalls = {kind: one["noticed"] / one["planted"] for kind, one in found["recall"].items()}
    keys: dict[str, Any] = {
        "texts": texts,
        "false_alarm_rate": round(false / texts, 5),
        f"false_alarm_rate_from_{LONG}_tokens": round(false_long / long, 5) if long else None,
        **{f"recall_{kind}": round(share, 4) for kind, share in recalls.items()},
        **{name: found["cost"][name] for name in ("detector_us", "decode_us", "share_of_decode")},
    }
    keys["quiet"] = int(texts >= 2000 and false / texts < 0.005)
    keys["exact"] = int(recalls["exact"] >= 0.99)
    keys["counting"] = int(recalls["counting"] >= 0.95)
    keys["cheap"] = int(found["cost"]["share_of_decode"] < 0.02)
    keys["cpu_minutes"] = round(protocol.cpu_minutes(), 1)
    return keys, [_false_table(found), _recall_table(found), _roc_table(found)]


def _false_table(found: dict[str, Any]) -> dict[str, Any]:
    rows = [
        [kind, one["texts"], one["tokens"], one["false"], f"{100 * one['false'] / one['texts']:.2f} %", _listed(one)]
        for kind, one in found["false"].items()
    ]
    columns = ["texts of", "texts", "tokens", "alarms", "share", "by rule"]
    return {"title": "Alarms on texts that do not loop (test half)", "columns": columns, "rows": rows}


def _recall_table(found: dict[str, Any]) -> dict[str, Any]:
    rows = [
        [
            kind,
            one["planted"],
            f"{100 * one['noticed'] / one['planted']:.1f} %",
            one["median_turns"],
            one["median_onset_error"],
            _listed(one),
        ]
        for kind, one in found["recall"].items()
    ]
    columns = ["loops", "planted", "noticed", "after turns (median)", "onset off by tokens (median)", "by rule"]
    return {"title": "Planted loops that are noticed while they last", "columns": columns, "rows": rows}


def _roc_table(found: dict[str, Any]) -> dict[str, Any]:
    rows = [
        [
            "guarded" if one["guarded"] else "bare",
            one["n"],
            one["count"],
            one["window"],
            f"{100 * one['false'] / one['texts']:.2f} %",
            f"{100 * one['noticed'] / one['planted']:.1f} %",
        ]
        for one in found["roc"]
    ]
    columns = ["n-gram rule", "n", "count", "window", "false alarms", "loops noticed"]
    return {"title": "The n-gram rule by itself (a smaller set of the test half)", "columns": columns, "rows": rows}


def _listed(one: dict[str, Any]) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in sorted(one["rules"].items()))


def _record(tier: Tier, keys: dict[str, Any], tables: list[dict[str, Any]]) -> None:
    write_result(
        "rescue_detector",
        title="Noticing loops: false alarms, recall and cost",
        headline=(
            f"{100 * keys['false_alarm_rate']:.2f} % false alarms on {keys['texts']} real texts; "
            f"{100 * keys['recall_exact']:.1f} % of exact and {100 * keys['recall_counting']:.1f} % of counting loops "
            f"noticed; {100 * keys['share_of_decode']:.2f} % of decoding time"
        ),
        command=f"python examples/bench_rescue.py --part detector --tier {tier}",
        keys=keys,
        tables=tables,
        notes=(
            "Half of the texts, chosen by a digest of their names, was used to set the guards; the numbers are of the "
            "other half. Code stands outside fences here, which is the hard case. "
            "The guarded n-gram rule of the ROC is not told where code begins, so its rate is an upper bound."
        ),
    )
