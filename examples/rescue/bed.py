"""Ways of dealing with a quantized reasoner that loses its way, as two protocols fix them: `rescue`, `rescue_stories`.

First what happens when nobody helps: a row per precision. Then, on the precisions that `beds` names, a row per policy.
A policy is decoded only where the raw trace is in trouble (it looped, hit the limit, or stayed unclosed): elsewhere it
gives the same tokens, which is checked on `checked` problems. Planning changes prompts, so it is decoded everywhere.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from examples.protocol import ROOT, Protocol, Tier, open_protocol
from examples.rescue import problems, stories
from examples.rescue.problems import TESTED, Problem
from examples.rescue.reasoners import Reasoner
from examples.rescue.rows import POLICIES, POLICY_COLUMNS, RATE_COLUMNS, per_correct, policy_row, rate_row, share, split
from examples.rescue.traces import Decoding, Row, answered, in_trouble
from examples.results import write_result
from examples.train_long_reasoner import finetune, long_reasoner
from lowmem.config.generation import GenerationConfig

TEXTS: dict[str, Any] = {"columns": problems, "stories": stories}
"""What is asked: modules with `asked(index, seed)` and `document(index, seed)`."""


class Recorded(NamedTuple):
    """Of a protocol: the part of `bench_rescue.py`, the name of its result, and whose rescue it is."""

    part: str
    result: str
    who: str


RECORDS = {
    "rescue": Recorded("bed", "rescue_bed", "a reasoner"),
    "rescue_stories": Recorded("stories", "rescue_stories", "SmolLM2-135M, taught to check its sums,"),
}


@dataclass
class Bed:
    """One tier of the protocol: its cells, computed once each."""

    protocol: Protocol
    reasoner: Reasoner
    _known: dict[tuple[str, str], list[Row]] = field(default_factory=dict)

    @property
    def texts(self) -> Any:
        return texts_of(self.protocol)

    @property
    def settings(self) -> dict[str, Any]:
        return self.protocol.settings

    def raw(self, precision: str) -> list[Row]:
        """Every problem at `precision`, with no help."""
        return self._rows(precision, "raw", {}, self._asked(precision))

    def policy(self, bed: str, policy: str) -> list[Row]:
        """Every problem under `policy`, in order."""
        raw = self.raw(bed)
        match policy:
            case "raw":
                return raw
            case "last parseable":
                return [row | {"right": row["right"] or (in_trouble(row) and row["last_right"])} for row in raw]
            case "stop only":
                return self._where_troubled(bed, policy, {"on_loop": "stop"})
            case "rescue" | "rescue + nested":
                return self._where_troubled(bed, policy, {"on_loop": "rescue"})
            case _:
                return self._rows(bed, policy, {"on_loop": "rescue"}, self._asked(bed))

    def changed(self, bed: str) -> int:
        """How many of the first `checked` answers without trouble `rescue` changes."""
        quiet = [number for number, row in enumerate(self.raw(bed)) if not in_trouble(row)][: self.settings["checked"]]
        asked = self._asked(bed)
        again = self._rows(bed, "rescue, others", {"on_loop": "rescue"}, [asked[n] for n in quiet], quiet)
        return sum(self.raw(bed)[n]["text"] != row["text"] for n, row in zip(quiet, again, strict=True))

    def _asked(self, precision: str) -> list[Problem]:
        count = self.settings["problems" if precision in self._in_full else "problems_for_rates"]
        return [self.texts.asked(index, TESTED) for index in range(count)]

    @property
    def _in_full(self) -> set[str]:
        return {"full", self.settings["high"], *self.settings["beds"]}

    def _where_troubled(self, bed: str, policy: str, changes: dict[str, Any]) -> list[Row]:
        raw, asked = self.raw(bed), self._asked(bed)
        chosen = [number for number, row in enumerate(raw) if in_trouble(row)]
        done = self._rows(bed, policy, changes, [asked[number] for number in chosen], chosen) if chosen else []
        found = dict(zip(chosen, done, strict=True))
        return [found.get(number, row) for number, row in enumerate(raw)]

    def _rows(
        self,
        precision: str,
        policy: str,
        changes: dict[str, Any],
        asked: Sequence[Problem],
        numbers: Sequence[int] | None = None,
    ) -> list[Row]:
        if (precision, policy) in self._known:
            return self._known[precision, policy]

        def compute() -> dict[str, Any]:
            uses_high = policy in ("rescue + nested", "planning + rescue")
            config = GenerationConfig(**self.settings["decoding"] | changes)
            decoding = Decoding(
                low=self.reasoner.at(self.settings["precisions"][precision]),
                high=self.reasoner.at(self.settings["precisions"][self.settings["high"]]) if uses_high else None,
                tokenizer=self.reasoner.tokenizer,
                config=config,
                slots=self.settings["slots"],
                falls_back=policy == "rescue + nested",
                outlines=policy == "planning + rescue",
            )
            return {"rows": answered(decoding, asked, seed=self.settings["seed"], numbers=numbers)}

        rows: list[Row] = self.protocol.cell({"precision": precision, "policy": policy}, compute)["rows"]
        print(f"{precision}, {policy}: {share(rows, lambda row: row['right']):.3f} right", flush=True)
        self._known[precision, policy] = rows
        return rows


def keys_of(bed: Bed, name: str) -> tuple[dict[str, Any], list[list[Any]]]:
    """The keys of one bed, and its table's rows."""
    raw, full = bed.raw(name), bed.raw("full")
    by_policy = {policy: bed.policy(name, policy) for policy in POLICIES}
    by_policy |= {f"always {bed.settings['high']}": bed.raw(bed.settings["high"]), "full precision": full}
    right = {policy: share(split(rows, raw)[0], lambda row: row["right"]) for policy, rows in by_policy.items()}
    gap = right["full precision"] - right["raw"]
    planned = by_policy["planning + rescue"]
    closed = {policy: round((value - right["raw"]) / gap, 3) if gap > 0 else None for policy, value in right.items()}
    keys = {
        "problems": len(raw),
        "troubled": sum(map(in_trouble, raw)),
        "gap_closed": closed,
        "seconds_per_correct": {policy: per_correct(rows) for policy, rows in by_policy.items()},
        "changed_without_trouble": bed.changed(name),
        "early_changed_right_to_wrong": sum(
            row["last_right"] and not again["right"]
            for row, again in zip(raw, by_policy["rescue"], strict=True)
            if in_trouble(row)
        ),
        "statuses": dict(Counter(row["status"] for row in by_policy["rescue + nested"] if row["status"])),
        "outline_leak_rate": round(share(planned, lambda row: row["leaked"]), 4),
    }
    return keys, [policy_row(policy, rows, raw) for policy, rows in by_policy.items()]


def texts_of(protocol: Protocol) -> Any:
    return TEXTS[protocol.settings.get("texts", "columns")]


def main(tier: Tier, of: str) -> None:
    """Runs the protocol `of`."""
    torch.set_num_threads(1)
    protocol = open_protocol(of, tier)
    bed = Bed(protocol, Reasoner(_model(protocol), protocol.folder / "codes", texts_of(protocol).document))
    rates = [rate_row(name, bed.raw(name)) for name in protocol.settings["precisions"]]
    tables = [{"title": "With no help", "columns": RATE_COLUMNS, "rows": rates}]
    keys: dict[str, Any] = {}
    for name in protocol.settings["beds"]:
        keys[name], rows = keys_of(bed, name)
        tables.append({"title": f"Policies at {name}", "columns": POLICY_COLUMNS, "rows": rows})
    for table in tables:
        print(table["title"])
        for row in [table["columns"], *table["rows"]]:
            print("".join(f"{cell!s:>22}" for cell in row))
    flat = keys | {"cpu_minutes": round(protocol.cpu_minutes(), 1)}
    if tier != "quick":
        record(flat, tables, protocol)
    print(json.dumps(flat))


def record(keys: dict[str, Any], tables: list[dict[str, Any]], protocol: Protocol) -> None:
    first = keys[protocol.settings["beds"][0]]
    closed = first["gap_closed"]
    write_result(
        RECORDS[protocol.name].result,
        title=f"Rescue of {RECORDS[protocol.name].who} that is lost at low precision",
        headline=(
            f"{protocol.settings['beds'][0]}: {first['troubled']} of {first['problems']} traces in trouble; of the gap "
            f"to full precision on these, rescue closes {_said(closed['rescue'])}, with nested fallback "
            f"{_said(closed['rescue + nested'])}, the last parseable answer {_said(closed['last parseable'])}"
        ),
        command=f"python examples/bench_rescue.py --part {RECORDS[protocol.name].part} --tier {protocol.tier}",
        keys=keys,
        tables=tables,
        notes=(
            "Greedy and sampled decoding are told apart in the protocol. All precisions are multiplied in fp32 here: "
            "seconds follow tokens and do not show what low precision saves. Protocol: "
            f"examples/protocols/{protocol.name}.yaml."
        ),
    )


def _model(protocol: Protocol) -> Path:
    model = protocol.settings.get("model")
    match model:
        case None:
            return long_reasoner()
        case {"folder": folder}:
            if not (ROOT / folder / "config.json").is_file():
                raise SystemExit(f"{folder} is not there yet; make it once: {model['made_by']}")
            return ROOT / folder
        case _:
            return finetune(ROOT / "runs" / "long-reasoner-quick", **model)


def _said(share: float | None) -> str:
    return "no gap" if share is None else f"{100 * share:.0f} %"
