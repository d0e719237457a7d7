"""Requests share an engine without touching each other; loops and endless thoughts end with an answer."""

from __future__ import annotations

from typing import Any

import pytest

from lowmem.config.generation import GenerationConfig
from lowmem.errors import ConfigError
from lowmem.generate.engine import Engine
from lowmem.generate.generation import Generation, Request
from tests.generate.scripted import ScriptedModel, replies
from tests.models.tiny import tiny_model, tiny_tokenizer

PROMPT = (10, 11, 12)
RESCUE = GenerationConfig(max_new_tokens=600, on_loop="rescue", commit_tokens=60)
LOOP = "Wait, let me check that once more, since it may be wrong. "
WORK = "<think>First I add twelve and three. "


def engine(model: Any, **changes: Any) -> Engine:
    return Engine(model, tiny_tokenizer(), **({"slots": 2, "context": 1200} | changes))


def run(on: Engine, *requests: Request) -> list[Generation]:
    generations = [on.submit(request) for request in requests]
    while on.busy:
        on.step()
    return generations


def told(table: dict[str, str], config: GenerationConfig = RESCUE, **changes: Any) -> Generation:
    """What becomes of a text that goes as `table` says."""
    model = ScriptedModel(replies(table, prompt=len(PROMPT)))
    (generation,) = run(engine(model, **changes), Request(PROMPT, config, 0))
    whole, last = [*PROMPT, *generation.tokens], model.seen[-1]
    if "fallback" not in changes:
        assert last[: len(whole)] == whole[: len(last)], "the cache holds what was said"
    return generation


def test_an_answer_before_the_loop_is_committed_to() -> None:
    generation = told({"": WORK + "The answer is 15. " + LOOP * 40})
    assert generation.rescue is not None
    assert (generation.rescue.status, generation.rescue.answer) == ("rescued_early_answer", "15")
    assert generation.text.endswith("</think>\n\nThe answer is 15")
    assert "</think>" in generation.text
    assert generation.text.count("Wait") <= 1
    assert generation.reason == "stop"


def test_two_of_the_last_three_answers_outvote_the_newest() -> None:
    generation = told({"": WORK + "The answer is 7. Or: the answer is 7. No, the answer is 8. " + LOOP * 40})
    assert generation.rescue is not None
    assert generation.rescue.answer == "7"


def test_without_an_answer_the_thought_is_closed_and_the_answer_asked_for() -> None:
    generation = told({"": WORK + LOOP * 40, "Final answer:": " 15."})
    assert generation.rescue is not None
    assert generation.rescue.status == "forced_commit"
    assert generation.text == WORK.rstrip() + "\n</think>\nFinal answer: 15."
    assert generation.rescue.tokens_cut > 60


def test_a_second_loop_falls_back_to_higher_precision() -> None:
    model = ScriptedModel(replies({"": "<think>Easy. </think>\n15"}, prompt=len(PROMPT)))
    high = engine(model, precision="high")
    generation = told({"": WORK + LOOP * 40, "Final answer:": LOOP * 40}, fallback=high)
    assert generation.rescue is not None
    assert generation.rescue.status == "fp_fallback"
    assert generation.text == "<think>Easy. </think>\n15"
    assert generation.spent.tokens["low"] > 100
    assert generation.spent.tokens["high"] == len(generation.tokens) + 1


@pytest.mark.parametrize(
    ("words", "status", "ending"),
    [
        ("There are 12 and 3. ", "uncommitted_guess", "(uncommitted guess) 3"),
        ("", "no_answer", "No answer was found."),
    ],
)
def test_where_nothing_helps_it_is_said(words: str, status: str, ending: str) -> None:
    generation = told({"": "<think>" + words + LOOP * 40, "Final answer:": LOOP * 40})
    assert generation.rescue is not None
    assert generation.rescue.status == status
    assert generation.text.endswith(ending)


@pytest.mark.parametrize("fallback", [False, True])
def test_a_rescue_ends_whatever_the_model_says(fallback: bool) -> None:
    hopeless = ScriptedModel(lambda history: 20 + len(history) % 3)
    high = engine(ScriptedModel(lambda history: 30 + len(history) % 2), precision="high") if fallback else None
    (generation,) = run(engine(hopeless, fallback=high), Request(PROMPT, RESCUE, 0))
    assert generation.reason == "stop"
    spent = sum(generation.spent.tokens.values())
    assert spent <= (1 + fallback) * (RESCUE.max_new_tokens + RESCUE.commit_tokens)


def test_a_thought_without_end_is_closed_when_the_tokens_run_out() -> None:
    words = WORK + " ".join(f"{chr(97 + n % 26)}{n * n}" for n in range(600))
    generation = told({"": words, "Final answer:": " none."})
    assert generation.rescue is not None
    assert (generation.rescue.reason, generation.rescue.status) == ("budget", "forced_commit")
    assert generation.text.endswith("Final answer: none.")


def test_a_text_that_ends_inside_a_thought_is_asked_for_its_answer() -> None:
    generation = told({"": WORK, "Final answer:": " 15."})
    assert generation.rescue is not None
    assert generation.rescue.reason == "unclosed"
    assert generation.text.endswith("</think>\nFinal answer: 15.")


def test_a_thinking_budget_closes_the_thought_at_the_end_of_a_sentence() -> None:
    config = GenerationConfig(max_new_tokens=200, thinking_token_budget=20)
    thoughts = "<think>" + "I think of many things here. And of some more things! " * 6
    generation = told({"": thoughts, "</think>\n\n": "It is 15."}, config)
    thought, _, answer = generation.text.partition("\n</think>\n\n")
    assert answer == "It is 15."
    assert thought.rstrip().endswith((".", "!"))
    assert 20 <= len(tiny_tokenizer()(thought)["input_ids"]) <= 20 + 64


def test_stopping_ends_with_the_reason_repetition() -> None:
    generation = told({"": LOOP * 40}, RESCUE.model_copy(update={"on_loop": "stop"}))
    assert generation.reason == "repetition"
    assert generation.loop is not None
    assert generation.rescue is None


def test_a_loop_outside_a_thought_is_cut_off() -> None:
    generation = told({"": "Once upon a time there was a cat. " + LOOP * 40})
    assert generation.rescue is not None
    assert generation.rescue.status == "cut"
    assert generation.text.strip() == "Once upon a time there was a cat."


def test_detection_that_does_not_fire_changes_nothing() -> None:
    model = tiny_model("qwen3")
    plain = GenerationConfig(max_new_tokens=40, temperature=0.8, seed=5)
    requests = [Request((5 + n, 6, 7), plain, n) for n in range(3)]
    watched = [
        Request(r.prompt, plain.model_copy(update={"on_loop": "rescue", "commit_tokens": 8}), r.seed) for r in requests
    ]
    expected, found = (run(engine(model, context=90), *asked) for asked in (requests, watched))
    assert [g.loop for g in found] == [None] * 3
    assert [(g.tokens, g.text) for g in found] == [(g.tokens, g.text) for g in expected]


def test_a_rescue_beside_it_changes_no_other_request() -> None:
    loop, calm = (20, 21, 22), (10, 11, 12)
    stories = {calm: {"": "<think>I am done. </think>\nIt is 4."}, loop: {"": WORK + LOOP * 40, "answer:": " 15."}}
    scripts = {prompt: replies(table, prompt=3) for prompt, table in stories.items()}
    model = ScriptedModel(lambda history: scripts.get(tuple(history[:3]), scripts[calm])(history))
    together = run(engine(model), Request(loop, RESCUE, 0), Request(calm, RESCUE, 0), Request(loop, RESCUE, 0))
    alone = [run(engine(model), Request(prompt, RESCUE, 0))[0] for prompt in (loop, calm, loop)]
    assert [g.text for g in together] == [g.text for g in alone]
    assert together[0].rescue is not None
    assert together[1].rescue is None


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_more_requests_than_slots_are_all_answered_alike(slots: int) -> None:
    model = tiny_model("llama")
    config = GenerationConfig(max_new_tokens=10, temperature=0.7)
    requests = [Request(tuple(range(4, 6 + n)), config, n) for n in range(5)]
    found = run(engine(model, slots=slots, context=64), *requests)
    alone = [run(engine(model, slots=slots, context=64), request)[0] for request in requests]
    assert [g.tokens for g in found] == [g.tokens for g in alone]


def test_a_cancelled_request_frees_its_slot() -> None:
    endless = ScriptedModel(lambda history: 20 + (len(history) * 7) % 50)
    on = engine(endless, slots=1)
    first = on.submit(Request(PROMPT, GenerationConfig(max_new_tokens=500), 0))
    second = on.submit(Request(PROMPT, GenerationConfig(max_new_tokens=3), 0))
    on.step()
    assert (on.running, on.waiting) == (1, 1)
    on.cancel(first)
    while on.busy:
        on.step()
    assert first.reason == "stop"
    assert second.reason == "length"
    assert len(second.tokens) == 3


def test_a_common_beginning_is_read_once() -> None:
    model = ScriptedModel(lambda history: 20 + sum(history) % 50)
    shared = tuple(range(4, 44))
    config = GenerationConfig(max_new_tokens=6)
    requests = [Request((*shared, 50 + n), config, 0) for n in range(4)]
    expected = [g.tokens for g in run(engine(model), *requests)]
    model.seen.clear()
    found = run(engine(model, reuse_prefixes=True), *requests)
    assert [g.tokens for g in found] == expected


def test_a_prompt_without_room_for_its_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the prompt has 3 tokens and a request 90 .* and 92 are kept for a rescue"):
        engine(tiny_model("llama"), context=90).submit(Request(PROMPT, RESCUE, 0))


def test_a_stream_holds_back_what_may_be_taken_back() -> None:
    model = ScriptedModel(replies({"": WORK + "The answer is 15. " + LOOP * 40}, prompt=3))
    on = engine(model)
    generation = on.submit(Request(PROMPT, RESCUE, 0))
    pieces = []
    while on.busy:
        on.step()
        pieces.append(generation.take())
    pieces.append(generation.take())
    said = "".join(pieces)
    assert said.endswith("The answer is 15")
    assert said.count("Wait, let me check") <= 2, "the loop itself was not streamed"


def test_hesitation_is_penalised() -> None:
    model = tiny_model("llama")
    on = engine(model, context=64)
    assert on._hesitations.dtype.is_floating_point is False
    plain = run(on, Request(PROMPT, GenerationConfig(max_new_tokens=5), 0))[0]
    on._hesitations = on._hesitations.new_tensor([plain.tokens[0]])
    changed = run(on, Request(PROMPT, GenerationConfig(max_new_tokens=5, hesitation_penalty=1e4), 0))[0]
    assert plain.tokens[0] not in changed.tokens
