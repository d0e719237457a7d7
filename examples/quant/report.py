"""The table of `bench_quant.py` and the answers to its protocol's question."""

from __future__ import annotations

from typing import Any

from protocol import Protocol

Rows = dict[str, dict[str, Any]]


def harp_wins(rows: Rows) -> dict[str, list[int]]:
    """By kind: on how many matrices HARP's better fit loses at most as much as the RHT, of how many."""
    found: dict[str, list[int]] = {}
    for title, row in rows.items():
        losses = [matrix["losses"] for matrix in row.get("matrices", {}).values()]
        compared = [loss for loss in losses if "rht" in loss and "harp" in loss]
        if compared:
            wins = sum(min(loss["harp"], loss["harp-conditional"]) <= loss["rht"] for loss in compared)
            found[title.split()[0]] = [wins, len(compared)]
    return found


def harp_wins_at_equal_bytes(rows: Rows) -> dict[str, list[int]]:
    """The same against the RHT with finer scales; its inputs are those of its own coded model."""
    found: dict[str, list[int]] = {}
    for title, row in rows.items():
        fitted = rows.get(title.removesuffix(" at harp's bytes").replace("rht", "harp"))
        if not title.endswith("bytes") or fitted is None:
            continue
        pairs = [
            (
                min(matrix["losses"][name] for name in ("harp", "harp-conditional")),
                row["matrices"][name]["losses"]["rht"],
            )
            for name, matrix in fitted["matrices"].items()
        ]
        found[title.split()[0]] = [sum(harp <= rht for harp, rht in pairs), len(pairs)]
    return found


def keys_of(rows: Rows) -> dict[str, Any]:
    wins, equal = harp_wins(rows), harp_wins_at_equal_bytes(rows)
    return {
        "harp_le_rht": wins,
        "harp_le_rht_fraction": {kind: round(won / of, 4) for kind, (won, of) in wins.items()},
        "harp_le_rht_at_equal_bytes": equal,
        "ppl": {title: round(row["perplexity"], 3) for title, row in rows.items()},
        "kl": {title: round(row["kl"], 4) for title, row in rows.items() if "kl" in row},
        "linear_bits": {title: round(row["linear_bits"], 3) for title, row in rows.items() if "kl" in row},
        "cpu_minutes_of": {
            title: round(row["cpu_seconds"] / 60, 1) for title, row in rows.items() if "matrices" in row
        },
    }


def table(rows: Rows) -> dict[str, Any]:
    cells = [
        [
            title,
            f"{row['linear_bits']:.3f}" if "linear_bits" in row else "32",
            f"{row['perplexity']:.2f}",
            f"{row['kl']:.4f}" if "kl" in row else "0",
            f"{row['top1']:.3f}" if "top1" in row else "1",
            ", ".join(f"{count} {kind}" for kind, count in row.get("types", {}).items()),
        ]
        for title, row in rows.items()
    ]
    columns = ["linears", "bits per weight", "perplexity", "KL", "same likeliest token", "types inside"]
    return {
        "title": "WikiText-2, all linear layers of the blocks coded, embeddings as they were",
        "columns": columns,
        "rows": cells,
    }


def record(protocol: Protocol, rows: Rows, keys: dict[str, Any]) -> None:
    from results import write_result

    settings = protocol.settings
    best = min(
        (title for title, row in rows.items() if row.get("linear_bits", 9) < 2.3), key=lambda t: rows[t]["perplexity"]
    )
    write_result(
        "bench_quant" if protocol.tier == "session" else f"bench_quant_{protocol.tier}",
        title="SmolLM2-135M at 2, 3 and 4 bits",
        headline=f"{best}: perplexity {rows[best]['perplexity']:.1f} at {rows[best]['linear_bits']:.2f} bits a weight; "
        f"original {rows['original']['perplexity']:.1f}; {len(keys['unfinished'])} cells have not run",
        command=f"python examples/bench_quant.py --tier {protocol.tier}",
        keys=keys | {"cpu_minutes": round(protocol.cpu_minutes(), 1), "protocol_commit": protocol.commit},
        tables=[table(rows)],
        notes=f"{settings['judged_chunks']} chunks of {settings['context']} tokens judged, "
        f"{settings['calibration_chunks']} to calibrate; one model, one seed of signs. SmolLM2's weights come out of a "
        "4-bit file (Q4_1), so 4-bit rows are shown and not compared. llama.cpp's kinds need rows of 256 and fall back "
        "to others here: the last column counts what its file really holds; its embeddings are coded too.",
    )
