"""Answers checked one by one, asked in batches."""

from __future__ import annotations

from collections.abc import Sequence

from lowmem.evaluate.exact import Question, exact_match


def test_the_share_of_right_answers_does_not_depend_on_the_batch_size() -> None:
    questions = [Question((n,), "number", (str(n),)) for n in range(7)]
    sizes: list[int] = []

    def generate(prompts: Sequence[Sequence[int]]) -> list[str]:
        sizes.append(len(prompts))
        return [f"it is {prompt[0] if prompt[0] % 2 else 99}" for prompt in prompts]

    assert {exact_match(questions, generate, batch_size=size) for size in (1, 3, 10)} == {3 / 7}
    assert sizes == [*[1] * 7, 3, 3, 1, 7]
