"""The page of a quantized model says what was found, and escapes what models say."""

from __future__ import annotations

from typing import Any

from lowmem.report.quantized import render


def gate(*, passed: bool = True, after: str = "fine", trouble: str = "none") -> dict[str, Any]:
    return {
        "passed": passed,
        "failures": [] if passed else ["KL divergence 0.9, at most 0.5 is allowed"],
        "broken_answers": int(trouble != "none"),
        "closeness": {
            "tokens": 99,
            "divergence": 0.1234,
            "perplexity_before": 8.0,
            "perplexity_after": 9.0,
            "agreement": 0.875,
        },
        "before": [{"prompt": "ask", "answer": "fine", "trouble": "none"}],
        "after": [{"prompt": "ask", "answer": after, "trouble": trouble}],
    }


def layer(name: str, loss: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "s4",
        "rotation": "rht",
        "shape": [64, 32],
        "bits_per_weight": 4.2,
        "loss": loss,
        "seconds": 1.5,
    }


def record(**changes: Any) -> dict[str, Any]:
    limits = {"max_perplexity_ratio": 1.5, "max_divergence": 0.5, "min_agreement": 0.6, "max_broken": 0.25}
    base = {
        "config": {"model": "mine", "bits": 4, "gate": limits},
        "linear_bits": 4.05,
        "file_bits": 5.5,
        "file_bytes": 2**20,
        "parameters": 2**20,
        "seconds": 61.0,
        "gate": gate(),
        "layers": [layer("quiet", 0.001), layer("loud", 0.02), layer("the-embedding", None)],
        "memory": {"blocks": {"predicted": 1000, "measured": 1010}, "save": {"predicted": 5, "measured": None}},
    }
    return base | changes


def test_layers_stand_by_error_and_tables_after_them() -> None:
    page = render(record())
    assert page.index("loud") < page.index("quiet") < page.index("the-embedding")
    many = render(record(layers=[layer(f"layer-{n:03d}", 0.001 * n) for n in range(50)]))
    assert "10 more layers, each with less error; their mean is 0.00450" in many


def test_before_and_after_and_the_size_are_shown() -> None:
    page = render(record())
    for said in (
        "8",
        "9",
        "0.1234",
        "87.5%",
        "1.00 MiB",
        "The quality gate was passed",
        "as predicted",
        "times smaller",
    ):
        assert said in page
    assert "off by more than 2%" in render(record(memory={"blocks": {"predicted": 1000, "measured": 1100}}))


def test_a_failed_gate_is_said_with_its_reasons() -> None:
    page = render(record(gate=gate(passed=False)))
    assert "The quality gate FAILED" in page
    assert "KL divergence 0.9" in page


def test_recovery_stands_beside_the_plain_model() -> None:
    plain = gate() | {"closeness": gate()["closeness"] | {"perplexity_after": 12.5}}
    page = render(record(unrecovered=plain))
    assert "recovered" in page
    assert page.index("12.5") < page.index(">9<")


def test_what_a_model_says_is_text() -> None:
    page = render(record(gate=gate(after="<script>alert(1)</script>", trouble="loop")))
    assert "<script>alert" not in page
    assert "Quantized (loop)" in page
    assert "No prompts were compared" in render(record(gate=gate() | {"before": [], "after": []}))
