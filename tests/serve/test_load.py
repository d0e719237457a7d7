"""Many callers at once: nothing lost or mixed up, a full queue says so, who leaves frees a slot, a signal drains."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from lowmem.config.generation import GenerationConfig
from lowmem.generate.generate import generate_batch
from tests.generate.scripted import ScriptedModel
from tests.models.tiny import save_tiny, tiny_model, tiny_tokenizer
from tests.serve.conftest import Running, serving

CLIENTS = 64


def endless() -> Any:
    """Says different things for as long as it may."""
    model: Any = ScriptedModel(lambda history: 20 + (len(history) * 7919) % 200)
    model.get_input_embeddings = lambda: torch.nn.Embedding(320, 1)
    return model


def body(prompt: str = "a", **given: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "on_loop": "continue", **given}


async def streamed(ask: openai.AsyncOpenAI, prompt: str) -> str:
    chunks = await ask.completions.create(model="tiny", prompt=prompt, max_tokens=8, temperature=0, stream=True)
    return "".join([chunk.choices[0].text async for chunk in chunks])


def test_sixty_four_streams_each_get_their_own_answer() -> None:
    prompts = [f"{number} the cat {number * number}" for number in range(CLIENTS)]

    async def all_at_once(server: Running) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as ask:
            return list(await asyncio.gather(*(streamed(ask, prompt) for prompt in prompts)))

    with serving(tiny_model(), slots=8, waiting=CLIENTS) as server:
        said = asyncio.run(all_at_once(server))
        assert server.health()["held"] == 0
    alone = generate_batch(tiny_model(), tiny_tokenizer(), prompts, GenerationConfig(max_new_tokens=8))
    assert said == alone
    assert len(set(said)) > 1


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_slot(stream: bool) -> None:
    with serving(endless(), slots=2, context=20_000) as server:
        with httpx.Client() as gone:
            if stream:
                with gone.stream("POST", f"{server.url}/v1/completions", json=body(stream=True)) as reply:
                    lines = reply.iter_lines()
                    next(lines)
                    assert server.health()["held"] == 1
            else:
                with pytest.raises(httpx.ReadTimeout):
                    gone.post(f"{server.url}/v1/completions", json=body(), timeout=0.5)
        assert server.until(lambda: server.health()["held"] == 0)
        assert server.metric("lowmem_running_requests") == 0
        again = httpx.post(f"{server.url}/v1/completions", json=body(max_tokens=3), timeout=20)
        assert again.json()["usage"]["completion_tokens"] == 3


def test_a_full_queue_asks_to_come_back() -> None:
    with serving(endless(), slots=1, waiting=1, context=20_000) as server:
        with (
            httpx.Client() as busy,
            busy.stream("POST", f"{server.url}/v1/completions", json=body(stream=True, n=2)) as reply,
        ):
            lines = reply.iter_lines()
            next(lines)
            refused = httpx.post(f"{server.url}/v1/completions", json=body(max_tokens=1))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        assert "2 requests run or wait and 2 are allowed" in refused.json()["error"]["message"]
        assert server.until(lambda: server.health()["held"] == 0)


def test_a_model_that_breaks_fails_its_requests_and_not_the_server() -> None:
    broken = endless()
    script = broken.script

    def fails_once(history: list[int]) -> int:
        broken.script = script
        raise RuntimeError("out of something")

    broken.script = fails_once
    with serving(broken, slots=2) as server:
        first = httpx.post(f"{server.url}/v1/completions", json=body(max_tokens=3))
        second = httpx.post(f"{server.url}/v1/completions", json=body(max_tokens=3))
    assert (first.status_code, second.status_code) == (500, 200)
    assert first.json()["error"]["message"] == "out of something"


@pytest.mark.slow
def test_sigterm_finishes_what_was_begun(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", chat=True)
    command = [sys.executable, "-m", "lowmem", "serve", str(folder), "--port", "0", "--dtype", "fp32", "--slots", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if "serving" in line:
            break
    url = said[-1].split(" at ")[1].split()[0]
    asked = {"model": str(folder), "prompt": "a", "stream": True, "on_loop": "continue", "max_tokens": 90}
    with httpx.Client() as one, one.stream("POST", f"{url}/v1/completions", json=asked, timeout=60) as reply:
        lines = reply.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
    assert process.wait(timeout=60) == 0
    process.stderr.close()
