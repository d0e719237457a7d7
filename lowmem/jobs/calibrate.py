"""`lowmem calibrate`: which way of dealing with low precision pays for a model and a task, decided on some problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowmem.config.generation import GenerationConfig
from lowmem.data.records import read_jsonl
from lowmem.errors import DataError
from lowmem.evaluate.answers import verify, verify_value
from lowmem.evaluate.taxonomy import first_loop
from lowmem.events import Notice, Sink
from lowmem.generate.answers import announced
from lowmem.generate.generate import Answer
from lowmem.generate.outline import Calibration, Choice, choose_policy, leaks
from lowmem.jobs.generate import Generator, open_generator
from lowmem.jobs.planned import Asked, keep_choice, question_of
from lowmem.jobs.prompt_file import read_prompts

PROBLEMS = 50
"""As many as the source calibrates on."""
FEWEST = 10


@dataclass(frozen=True)
class Solved:
    """A problem file, read: prompts, and the answers that are right."""

    asked: list[Asked]
    references: list[str]


def calibrate(
    target: str,
    problems: Path,
    *,
    kind: str = "number",
    fallback: str = "nested",
    limit: int = PROBLEMS,
    batch_size: int = 8,
    changes: Mapping[str, object] | None = None,
    device: str = "auto",
    sink: Sink,
) -> tuple[Choice, Calibration]:
    """What was chosen and from which numbers; kept in the folder `target` where it is one, for `outline: auto`.

    Answers each problem three times: in high precision, in low, and in low after an outline. `changes` to the model's
    generation settings; None changes nothing. Raises `DataError` for
    fewer than ten problems or lines without an "answer", `ConfigError` for an unknown `kind`.
    """
    given = read_problems(problems, limit)
    verify(kind, given.references[0], given.references[:1])
    generator = open_generator(target, sink=sink, device=device, fallback=fallback)
    asked = {key: value for key, value in (changes or {}).items() if value is not None}
    settings = generator.generation.model_copy(update={**asked, "outline": "off", "on_loop": "continue"})
    found = measure(generator, given, settings, kind=kind, batch_size=batch_size)
    choice = choose_policy(found)
    folder = Path(target)
    if folder.is_dir():
        sink(Notice(f"kept in {keep_choice(folder, choice, found)}"))
    else:
        sink(Notice(f"{target} is no folder, so nothing is kept: pass --outline on or off as chosen here"))
    return choice, found


def read_problems(file: Path, limit: int) -> Solved:
    """The first `limit` lines of {"prompt" or "messages", "answer"}. Raises `DataError` with what is missing."""
    rows, records = read_prompts(file), read_jsonl(file)
    references = [records.row(index).get("answer") for index in range(len(rows))]
    for index, answer in enumerate(references):
        if not isinstance(answer, str | int | float):
            raise DataError(
                f'{records.where(index)}: has no "answer" to compare with; calibrating needs solved problems'
            )
    if len(rows) < FEWEST:
        raise DataError(f"{file}: {len(rows)} problems decide nothing; give {PROBLEMS}, at least {FEWEST}")
    return Solved([row.prompt for row in rows[:limit]], [str(answer) for answer in references[:limit]])


def measure(
    generator: Generator, given: Solved, settings: GenerationConfig, *, kind: str, batch_size: int
) -> Calibration:
    """The numbers that a choice is made from."""
    outlines: list[str] = []

    def after_outlines(part: Sequence[Asked]) -> list[Answer]:
        prompts, written = generator.planned(part, settings)
        outlines.extend(written)
        return generator.answers(prompts, settings)

    def right(answers: Sequence[Answer]) -> list[bool]:
        return [verify(kind, one.text, [want]) for one, want in zip(answers, given.references, strict=True)]

    high = _in_parts(lambda part: generator.high_answers(part, settings), given.asked, batch_size)
    low = _in_parts(lambda part: generator.answers(part, settings), given.asked, batch_size)
    planned = _in_parts(after_outlines, given.asked, batch_size)
    low_right = right(low)
    held = [_held(one.text, kind, want) for one, want in zip(low, given.references, strict=True)]
    leaked = [
        leaks(outline, answer=want, question=question_of(asked))
        for outline, want, asked in zip(outlines, given.references, given.asked, strict=True)
    ]
    return Calibration(
        problems=len(low),
        high=_share(right(high)),
        low=_share(low_right),
        planned=_share(right(planned)),
        loops=_share([first_loop(one.tokens, generator.text_of) is not None for one in low]),
        commitment=_share([there and not ok for there, ok in zip(held, low_right, strict=True)]),
        path=_share([not there and not ok for there, ok in zip(held, low_right, strict=True)]),
        leaked=_share(leaked),
        options=kind == "option",
    )


def _in_parts(
    answer: Callable[[Sequence[Asked]], list[Answer]], asked: Sequence[Asked], batch_size: int
) -> list[Answer]:
    parts = [asked[start : start + batch_size] for start in range(0, len(asked), batch_size)]
    return [one for part in parts for one in answer(part)]


def _held(text: str, kind: str, want: str) -> bool:
    """Whether the right answer is announced anywhere, in a thought too."""
    return any(verify_value(kind, one.value, [want]) for one in announced(text))


def _share(found: Sequence[bool]) -> float:
    return sum(found) / len(found)
