"""The HTTP surface as the official client sees it, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
import torch

from lowmem.config.generation import GenerationConfig
from lowmem.generate.generate import generate_batch
from tests.generate.scripted import ScriptedModel, replies
from tests.models.tiny import tiny_model, tiny_tokenizer
from tests.serve.conftest import Running, serving

HELLO: Any = [{"role": "user", "content": "the cat"}]
SPELLED = "<|user|>the cat<|end|><|assistant|>"
LOOP = "so it is the same day and then again the cat sat. "


def client(server: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def plain(prompt: str, tokens: int) -> str:
    return generate_batch(tiny_model(), tiny_tokenizer(), [prompt], GenerationConfig(max_new_tokens=tokens))[0]


def scripted(said: str, *, prompt: int) -> Any:
    """A model that says `said`; the first `prompt` tokens are what it is asked."""
    model: Any = ScriptedModel(replies({"": said}, prompt=prompt))
    model.get_input_embeddings = lambda: torch.nn.Embedding(320, 1)
    return model


def test_chat_answers_as_plain_decoding_does(server: Running) -> None:
    answer = client(server).chat.completions.create(model="tiny", messages=HELLO, max_tokens=12, temperature=0)
    assert answer.choices[0].message.content == plain(SPELLED, 12)
    assert answer.choices[0].finish_reason in ("stop", "length")
    prompt = len(tiny_tokenizer()(SPELLED)["input_ids"])
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 12)


def test_a_stream_is_the_answer_in_pieces(server: Running) -> None:
    chunks = list(
        client(server).chat.completions.create(
            model="tiny",
            messages=HELLO,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == plain(SPELLED, 12)
    assert sum(map(bool, pieces)) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1


def test_completions_take_text_tokens_and_several_of_them(server: Running) -> None:
    ask = client(server).completions.create
    text = ask(model="tiny", prompt="one two", max_tokens=8, temperature=0)
    tokens = ask(model="tiny", prompt=tiny_tokenizer()("one two")["input_ids"], max_tokens=8, temperature=0)
    assert text.choices[0].text == tokens.choices[0].text == plain("one two", 8)
    both = ask(model="tiny", prompt=["one two", "the dog"], max_tokens=8, temperature=0)
    assert [choice.text for choice in both.choices] == [plain("one two", 8), plain("the dog", 8)]
    streamed = ask(model="tiny", prompt=["one two", "the dog"], max_tokens=8, temperature=0, stream=True)
    said = {0: "", 1: ""}
    for chunk in streamed:
        said[chunk.choices[0].index] += chunk.choices[0].text
    assert list(said.values()) == [choice.text for choice in both.choices]


def test_a_seed_repeats_an_answer_and_none_draws_anew(server: Running) -> None:
    def ask(**given: Any) -> list[str]:
        made = client(server).completions.create(model="tiny", prompt="a", max_tokens=16, temperature=1.5, **given)
        return [choice.text for choice in made.choices]

    assert ask(seed=5) == ask(seed=5)
    assert ask() != ask()
    assert len(set(ask(seed=5, n=3))) == 3


def test_models_are_listed_and_found(server: Running) -> None:
    assert [model.id for model in client(server).models.list()] == ["tiny"]
    assert client(server).models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client(server).models.retrieve("large")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "other"}, "the model 'other' is not served here"),
        ({"messages": [{"role": "user", "content": "x" * 400}]}, "shorten the prompt"),
        ({"max_tokens": 100_000}, "is more than a request may hold here, 128"),
        ({"temperature": -1}, "temperature: Input should be greater than or equal to 0"),
        ({"messages": []}, "messages: "),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported by this server"),
        ({"n": 17}, "n: "),
    ],
)
def test_what_cannot_be_is_refused_in_the_clients_words(server: Running, given: Any, message: str) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        client(server).chat.completions.create(**{"model": "tiny", "messages": HELLO, **given})
    assert caught.value.status_code in (400, 404)
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_limits_of_the_prompt_and_of_the_answers_are_named(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="token 99999 does not exist; the model has 320"):
        client(server).completions.create(model="tiny", prompt=[99999])
    with pytest.raises(openai.BadRequestError, match=r"at most 16 answers \(prompts times n\) per request"):
        client(server).completions.create(model="tiny", prompt=["a", "b", "c"], n=9)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "\\ud800"}', b'{"\\ud800": 1}', b"[" * 50_000, b"\xff"])
def test_damaged_bodies_are_a_400(server: Running, body: bytes) -> None:
    reply = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_a_large_body_is_not_read() -> None:
    with serving(tiny_model(), max_body=2000) as server:
        body = json.dumps({"model": "tiny", "prompt": "x" * 3000})
        reply = httpx.post(f"{server.url}/v1/completions", content=body)
    assert reply.status_code == 413
    assert "larger than 2000 bytes" in reply.json()["error"]["message"]


def test_a_key_is_asked_for_under_v1_only() -> None:
    with serving(tiny_model(), api_key="sésame") as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == httpx.get(server.url).status_code == 200
        with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"):
            client(server, "wrong").models.list()
        given = {"Authorization": "Bearer sésame".encode()}
        assert httpx.get(f"{server.url}/v1/models", headers=given).status_code == 200


def test_a_model_without_a_template_completes_and_does_not_chat() -> None:
    with serving(tiny_model(), chat=False) as server:
        with pytest.raises(openai.BadRequestError, match="has no chat template, so it cannot read messages"):
            client(server).chat.completions.create(model="tiny", messages=HELLO)
        assert client(server).completions.create(model="tiny", prompt="a", max_tokens=2).choices[0].text


PROMPT = len(tiny_tokenizer()(SPELLED)["input_ids"])


@pytest.mark.parametrize("streamed", [False, True])
def test_thoughts_and_answers_are_apart_and_a_rescue_is_told(streamed: bool) -> None:
    looping = scripted("<think>The answer is 42. " + LOOP * 40, prompt=PROMPT)
    with serving(looping, context=1024) as server:
        ask = client(server).chat.completions.create
        if streamed:
            chunks = list(ask(model="tiny", messages=HELLO, stream=True))
            extra = chunks[-1].choices[0].to_dict()["lowmem"]
            said: Any = extra["final"]
            reason = chunks[-1].choices[0].finish_reason
            thought = "".join(chunk.choices[0].delta.to_dict().get("reasoning", "") for chunk in chunks)
            other = "".join(chunk.choices[0].delta.to_dict().get("reasoning_content", "") for chunk in chunks)
            assert thought == other
            assert thought.startswith("The answer is 42. ")
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said["content"]
        else:
            choice = ask(model="tiny", messages=HELLO).choices[0].to_dict()
            extra, said, reason = choice["lowmem"], choice["message"], choice["finish_reason"]
            assert said["reasoning"] == said["reasoning_content"]
        assert server.metric("lowmem_rescues_total") == server.metric("lowmem_loop_fires_total") == 1
    assert reason == "stop"
    assert said["content"].lower() == "the answer is 42"
    assert said["reasoning"].startswith("The answer is 42.")
    assert said["reasoning"].count(LOOP) <= 1
    assert extra["rescue"]["status"] == "rescued_early_answer"
    assert extra["rescue"]["answer"] == "42"
    assert extra["rescue"]["tokens_cut"] > 0


def test_vllms_repetition_detection_ends_the_answer_by_its_own_numbers() -> None:
    with serving(scripted("ab" * 200, prompt=PROMPT), context=1024) as server:
        ask = client(server).chat.completions.create
        asked = {"max_pattern_size": 8, "min_pattern_size": 1, "min_count": 6}
        stopped = ask(model="tiny", messages=HELLO, extra_body={"repetition_detection": asked})
        free = ask(model="tiny", messages=HELLO, extra_body={"on_loop": "continue"})
        with pytest.raises(openai.BadRequestError, match="needs min_count of 2 or more"):
            ask(model="tiny", messages=HELLO, extra_body={"repetition_detection": {"max_pattern_size": 8}})
    assert stopped.choices[0].finish_reason == "repetition"
    assert stopped.choices[0].message.content == "ab" * 6
    assert free.choices[0].message.content == "ab" * 200


def test_a_thinking_budget_closes_the_thought() -> None:
    with serving(scripted("<think>" + "one two three. " * 30, prompt=PROMPT), context=1024) as server:
        answer = client(server).chat.completions.create(
            model="tiny", messages=HELLO, extra_body={"thinking_token_budget": 40, "on_loop": "continue"}
        )
    thought = answer.choices[0].message.to_dict()["reasoning"]
    assert isinstance(thought, str)
    assert len(tiny_tokenizer()(thought)["input_ids"]) < 40 + 70
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None


def test_the_page_is_whole_and_metrics_count(server: Running) -> None:
    page = httpx.get(server.url)
    assert "<!doctype html>" in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text
    before = server.metric("lowmem_generated_tokens_total")
    client(server).completions.create(model="tiny", prompt="a", max_tokens=7, temperature=0)
    assert server.metric("lowmem_generated_tokens_total") == before + 7
    assert server.metric("lowmem_requests_total") > 0
    assert server.health()["status"] == "ok"
