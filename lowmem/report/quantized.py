"""The page of a quantized model: what was asked of it and kept, its size, its layers by error, its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowmem.report.elements import escaped, section, soft, table, td, th, whole_page, write_whole
from lowmem.report.summary import MEMORY_TOLERANCE
from lowmem.units import format_bytes, format_seconds

WORST = 40
"""Layers that are listed; the rest is summed up."""


def write_quantized_report(target: Path, record: dict[str, Any]) -> None:
    """`target` is the page of `record` (quantize.json), whole or as it was before."""
    write_whole(target, render(record))


def render(record: dict[str, Any]) -> str:
    """The page as text."""
    sections = [
        _headline(record),
        _closeness(record),
        _size(record),
        _layers(record["layers"]),
        _memory(record["memory"]),
        _answers(record["gate"]),
        section("Config", _plain(record["config"])),
    ]
    return whole_page(f"{record['config']['model']} quantized · lowmem", [part for part in sections if part])


def _headline(record: dict[str, Any]) -> str:
    passed = record["gate"]["passed"]
    verdict = "The quality gate was passed." if passed else "The quality gate FAILED; it was written with --force."
    reasons = "".join(f"<li>{escaped(text)}</li>" for text in record["gate"]["failures"])
    lead = (
        f"{record['linear_bits']:.3g} bits per weight of the linear layers, {record['file_bits']:.3g} of the whole "
        f"file, {format_bytes(record['file_bytes'])}, in {format_seconds(record['seconds'])}"
    )
    return (
        f"<header><h1>{escaped(str(record['config']['model']))}, quantized</h1>"
        f'<p class="lead">{escaped(lead)}</p>'
        f'<p class="status{"" if passed else " unfinished"}">{verdict}</p>'
        + (f"<ul>{reasons}</ul>" if reasons else "")
        + "</header>"
    )


def _closeness(record: dict[str, Any]) -> str:
    """Before and after, and between them the model without its recovery where there was one."""
    gate, plain = record["gate"], record.get("unrecovered")
    limits = record["config"]["gate"]
    heads = ["", "#original", "#quantized", *(["#recovered"] if plain else []), "limit"]
    steps = [plain, gate] if plain else [gate]

    def row(name: str, before: str, values: list[str], limit: str) -> list[str]:
        return [th(name), td(before, "number"), *(td(value, "number") for value in values), td(limit)]

    found = [step["closeness"] for step in steps]
    rows = [
        row(
            "perplexity",
            f"{found[0]['perplexity_before']:.4g}",
            [f"{c['perplexity_after']:.4g}" for c in found],
            f"at most {limits['max_perplexity_ratio']:g} times the original's",
        ),
        row(
            "KL divergence, nats per token",
            "0",
            [f"{c['divergence']:.4f}" for c in found],
            f"at most {limits['max_divergence']:g}",
        ),
        row(
            "same first choice",
            "100 %",
            [f"{c['agreement']:.1%}" for c in found],
            f"at least {limits['min_agreement']:.0%}",
        ),
        row(
            "prompts answered badly, which the original answers",
            "0",
            [f"{step['broken_answers']} of {len(step['after'])}" for step in steps],
            f"at most {limits['max_broken']:.0%}",
        ),
    ]
    note = soft(f"{found[0]['tokens']} tokens that were not read for calibration.")
    return section("Before and after", table(heads, rows) + note)


def _size(record: dict[str, Any]) -> str:
    full = 2 * record["parameters"]
    rows = [
        [th("parameters"), td(f"{record['parameters']:,}", "number")],
        [th("in 16 bits"), td(format_bytes(full), "number")],
        [th("this file"), td(format_bytes(record["file_bytes"]), "number")],
        [th("times smaller"), td(f"{full / record['file_bytes']:.2f}", "number")],
    ]
    return section("Size", table(["", ""], rows))


def _layers(layers: list[dict[str, Any]]) -> str:
    """The layers that lost most first."""
    coded = sorted((layer for layer in layers if layer["loss"] is not None), key=lambda layer: -layer["loss"])
    tables = [layer for layer in layers if layer["loss"] is None]
    rows = [
        [
            th(layer["name"]),
            td("–" if layer["loss"] is None else f"{layer['loss']:.5f}", "number"),
            td(layer["kind"]),
            td(layer["rotation"]),
            td(f"{layer['bits_per_weight']:.3f}", "number"),
            td(f"{layer['shape'][0]} x {layer['shape'][1]}", "number"),
            td(f"{layer['seconds']:.1f}", "number"),
        ]
        for layer in [*coded[:WORST], *tables]
    ]
    rest = coded[WORST:]
    mean = sum(layer["loss"] for layer in rest) / len(rest) if rest else 0.0
    note = soft(f"{len(rest)} more layers, each with less error; their mean is {mean:.5f}.") if rest else ""
    heads = ["layer", "#error", "code", "rotation", "#bits per weight", "#shape", "#CPU seconds"]
    about = soft("Error: tr(E H E^T) / tr(W H W^T), the share of a layer's output energy that the codes miss.")
    return section("Layers by error", about + table(heads, rows) + note)


def _memory(memory: dict[str, dict[str, int | None]]) -> str:
    rows = []
    for phase, numbers in memory.items():
        predicted, measured = numbers["predicted"], numbers["measured"]
        if predicted is None or measured is None:
            rows.append(
                [
                    th(phase),
                    td("–" if predicted is None else format_bytes(predicted), "number"),
                    td("–"),
                    td(""),
                    td(""),
                ]
            )
            continue
        off = measured / predicted - 1
        missed = abs(off) > MEMORY_TOLERANCE
        word = f"⚠ off by more than {MEMORY_TOLERANCE:.0%}" if missed else "as predicted"
        rows.append(
            [
                th(phase),
                td(format_bytes(predicted), "number"),
                td(format_bytes(measured), "number"),
                td(f"{off:+.1%}", "number"),
                td(word, "bad" if missed else ""),
            ]
        )
    return section("Memory of quantizing", table(["phase", "#predicted", "#measured", "#difference", ""], rows))


def _answers(gate: dict[str, Any]) -> str:
    if not gate["after"]:
        return section("Answers", soft("No prompts were compared."))
    shown = "".join(_answer(before, after) for before, after in zip(gate["before"], gate["after"], strict=True))
    return section("Answers", shown)


def _answer(before: dict[str, Any], after: dict[str, Any]) -> str:
    def block(label: str, text: str) -> str:
        return f'<div><div class="label">{escaped(label)}</div><div class="text" dir="auto">{escaped(text)}</div></div>'

    def said(name: str, sample: dict[str, Any]) -> str:
        return name if sample["trouble"] == "none" else f"{name} ({sample['trouble']})"

    answers = block(said("Original", before), before["answer"]) + block(said("Quantized", after), after["answer"])
    return f'<article class="sample">{block("Prompt", before["prompt"])}<div class="answers">{answers}</div></article>'


def _plain(config: dict[str, Any]) -> str:
    rows = []
    for key, value in config.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        rows += [
            [th(f"{key}.{name}" if name else key), td("–" if item in (None, []) else str(item))] for name, item in inner
        ]
    return table(["", ""], rows)
