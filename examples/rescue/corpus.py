"""Real texts that do not loop, by kind, split into a development and a test half by the digest of their name.

Prose and solutions are taken as they are; code is the standard library of the Python that runs this; JSON documents,
tables and lists are made from real rows, since that is where equal shapes with different values come from.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Half = Literal["development", "test"]
PIECE = 5000
"""Characters of a piece of a book or a source file, about 1,200 tokens."""


@dataclass(frozen=True)
class Text:
    kind: str
    name: str
    text: str

    @property
    def half(self) -> Half:
        odd = hashlib.blake2b(self.name.encode(), digest_size=1).digest()[0] % 2
        return "test" if odd else "development"


def corpus(data: Path, counts: dict[str, int]) -> list[Text]:
    """At most `counts[kind]` texts of each kind, evenly spread over what there is."""
    found: list[Text] = []
    for kind, count in counts.items():
        texts = list(_KINDS[kind](data))
        chosen = texts if len(texts) <= count else [texts[i * len(texts) // count] for i in range(count)]
        found += [Text(kind, f"{kind}/{index}", text) for index, text in enumerate(chosen)]
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _solutions(data: Path) -> Iterator[str]:
    """The longer ones: a text of fifty tokens cannot show a false alarm."""
    for row in [*rows(data / "gsm8k/train.jsonl"), *rows(data / "gsm8k/test.jsonl")]:
        if len(row["answer"]) >= 350:
            yield row["answer"]


def _instructions(data: Path) -> Iterator[str]:
    """Pages of six questions with their answers: one answer has fifty tokens."""
    tasks = rows(data / "instructions/alpaca_1100.jsonl")
    for start in range(0, len(tasks) - 6, 6):
        group = tasks[start : start + 6]
        yield "\n\n".join(f"**{row['instruction']}** {row['input']}\n\n{row['output']}" for row in group)


def _articles(data: Path) -> Iterator[str]:
    for part in ("validation", "test"):
        yield from pieces((data / f"wikitext2/{part}.txt").read_text(encoding="utf-8"))


def _drama(data: Path) -> Iterator[str]:
    yield from pieces((data / "shakespeare/input.txt").read_text(encoding="utf-8"))


def _code(data: Path) -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        inside = path.relative_to(library).parts
        if "site-packages" not in inside and "bad_coding" not in path.name:
            yield from pieces(path.read_text(encoding="utf-8", errors="ignore"))


def pieces(text: str) -> Iterator[str]:
    """`text` in pieces of about `PIECE` characters that end with a line; a short rest is left out."""
    held: list[str] = []
    for line in text.splitlines(keepends=True):
        held.append(line)
        if sum(map(len, held)) >= PIECE:
            yield "".join(held)
            held = []


def _records(data: Path) -> Iterator[list[dict[str, Any]]]:
    """Groups of 24 rows of equal shape with real values."""
    reviews = rows(data / "sst2/train.jsonl")
    problems = rows(data / "gsm8k/train.jsonl")
    tasks = rows(data / "instructions/alpaca_1100.jsonl")
    numbers = [
        {
            "id": index,
            "answer": int(re.sub(r"[^\d-]", "", row["answer"].rpartition("####")[2]) or 0),
            "question_words": len(row["question"].split()),
            "steps": row["answer"].count("\n"),
        }
        for index, row in enumerate(problems)
    ]
    named = [{"id": i, "task": row["instruction"], "has_input": bool(row["input"])} for i, row in enumerate(tasks)]
    for source in (reviews[:3600], numbers[:3600], named):
        for start in range(0, len(source) - 24, 24):
            yield source[start : start + 24]


def _json(data: Path) -> Iterator[str]:
    for number, group in enumerate(_records(data)):
        yield json.dumps(group, indent=(None, 1, 2, 4)[number % 4], ensure_ascii=False)


def _tables(data: Path) -> Iterator[str]:
    for number, group in enumerate(_records(data)):
        yield (_markdown, _latex, _csv)[number % 3](group)
    words = re.findall(r"[A-Za-z]+", (data / "wikitext2/test.txt").read_text(encoding="utf-8"))
    for number, start in enumerate(range(0, len(words) - 2000, 2000)):
        common = Counter(words[start : start + 2000]).most_common(40)
        ranked = [
            {"rank": i, "word": word, "count": count, "share": f"{count / 2000:.4f}"}
            for i, (word, count) in enumerate(common, 1)
        ]
        yield (_markdown, _latex, _csv)[number % 3](ranked)


def _markdown(group: Sequence[dict[str, Any]]) -> str:
    head = [" | ".join(group[0]), " | ".join("---" for _ in group[0])]
    return "\n".join(f"| {line} |" for line in [*head, *(" | ".join(map(str, row.values())) for row in group)])


def _latex(group: Sequence[dict[str, Any]]) -> str:
    lines = [" & ".join(map(str, row.values())) + r" \\ \hline" for row in [dict.fromkeys(group[0], ""), *group]]
    return "\\begin{tabular}{" + "l" * len(group[0]) + "}\n" + "\n".join(lines) + "\n\\end{tabular}\n"


def _csv(group: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(group[0]))
    writer.writeheader()
    writer.writerows(group)
    return text.getvalue()


def _lists(data: Path) -> Iterator[str]:
    tasks = [row["instruction"] for row in rows(data / "instructions/alpaca_1100.jsonl")]
    reviews = [row["sentence"] for row in rows(data / "sst2/train.jsonl")][:2400]
    questions = [row["question"].partition(".")[0] for row in rows(data / "gsm8k/train.jsonl")][:2400]
    for source in (tasks, reviews, questions):
        for start in range(0, len(source) - 20, 20):
            yield "\n".join(f"{i}. {text}" for i, text in enumerate(source[start : start + 20], 1))


_KINDS: dict[str, Callable[[Path], Iterator[str]]] = {
    "gsm8k solutions": _solutions,
    "instruction pages": _instructions,
    "wikitext": _articles,
    "drama": _drama,
    "python sources": _code,
    "json": _json,
    "tables": _tables,
    "numbered lists": _lists,
}
