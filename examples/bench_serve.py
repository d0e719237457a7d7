"""What serving delivers: concurrent clients with nothing lost, and what decoding together gains.

    python examples/bench_serve.py [--quick]

- clients: 64 streams at once; `lost` counts those whose text differs from the same prompt answered alone.
- throughput: tokens per second of 8 concurrent requests over that of one after another, same prompts, same server. All
  slots are decoded whatever they hold, so one request alone pays for 8; `over_one_slot` is the gain over a server that
  was started with one slot.
- over_transformers_serve: the 8 concurrent requests again, ours over `transformers serve` on the same folder; null
  where that does not run here.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import openai
import torch
from transformers import LlamaConfig

from examples.results import write_result
from lowmem.models.shapes import random_model
from tests.models.tiny import VOCABULARY, tiny_tokenizer

STARTUP_SECONDS = 180


def make_model(folder: Path, *, width: int, layers: int) -> Path:
    """A random Llama with a byte-level tokenizer: greedy decoding is as much work as with trained weights."""
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = random_model(shape, dtype=torch.float32, seed=0, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tiny_tokenizer(chat=True).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def server(command: list[str], url: str, log: Path) -> Iterator[str]:
    """A server process that answers `url`/health; ended with SIGTERM."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            end = time.monotonic() + STARTUP_SECONDS
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command[0]} did not start: {log.read_text()[-400:]}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


async def streamed(ask: openai.AsyncOpenAI, model: str, number: int, tokens: int, extra: dict[str, str]) -> str:
    """The text of one streamed chat answer."""
    pieces = []
    chunks = await ask.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"the cat {number} and the dog {number * number}"}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
        extra_body=extra,
    )
    async for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
    return "".join(pieces)


async def timed(
    url: str, model: str, numbers: list[int], tokens: int, *, together: bool, ours: bool = True
) -> tuple[float, list[str]]:
    """Seconds for all answers, and the answers. Ours must not end loops here: a random model says little else."""
    extra = {"on_loop": "continue"} if ours else {}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as ask:
        start = time.perf_counter()
        if together:
            made = await asyncio.gather(*(streamed(ask, model, number, tokens, extra) for number in numbers))
        else:
            made = [await streamed(ask, model, number, tokens, extra) for number in numbers]
        return time.perf_counter() - start, list(made)


def measure(url: str, model: str, *, clients: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Losses among many clients, and the gain of eight at once over one after another (medians of alternating runs)."""
    many = list(range(clients))
    _, alone = asyncio.run(timed(url, model, many, 12, together=False))
    _, at_once = asyncio.run(timed(url, model, many, 12, together=True))
    eight = list(range(8))
    one_by_one, together = [], []
    for _ in range(repeats):
        one_by_one.append(asyncio.run(timed(url, model, eight, tokens, together=False))[0])
        seconds, texts = asyncio.run(timed(url, model, eight, tokens, together=True))
        together.append(seconds)
    return {
        "clients": clients,
        "lost": sum(a != b for a, b in zip(alone, at_once, strict=True)),
        "throughput_8_over_1": statistics.median(one_by_one) / statistics.median(together),
        "seconds_of_8": statistics.median(together),
        "texts_of_8": texts,
    }


def one_slot_seconds(folder: Path, log: Path, *, tokens: int, repeats: int) -> float:
    """Seconds of the eight requests one after another on a server with a single slot (median)."""
    with our_server(folder, log, slots=1) as url:
        runs = [asyncio.run(timed(url, str(folder), list(range(8)), tokens, together=False))[0] for _ in range(repeats)]
    return statistics.median(runs)


def our_server(folder: Path, log: Path, *, slots: int) -> contextlib.AbstractContextManager[str]:
    port = free_port()
    command = [sys.executable, "-m", "lowmem", "serve", str(folder), "--port", str(port), "--slots", str(slots)]
    command += ["--dtype", "fp32", "--context", "512"]
    return server(command, f"http://127.0.0.1:{port}", log)


def transformers_seconds(folder: Path, log: Path, *, tokens: int, repeats: int) -> tuple[float | None, list[str], str]:
    """Seconds and texts of eight concurrent requests to `transformers serve`, or None and why there are none."""
    port = free_port()
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    try:
        with server(command, f"http://127.0.0.1:{port}", log) as url:
            eight = list(range(8))
            asyncio.run(timed(url, str(folder), eight[:1], 4, together=True, ours=False))  # loads the model
            runs = [
                asyncio.run(timed(url, str(folder), eight, tokens, together=True, ours=False)) for _ in range(repeats)
            ]
            return statistics.median(seconds for seconds, _ in runs), runs[0][1], ""
    except (RuntimeError, OSError, openai.OpenAIError) as error:
        return None, [], f"{type(error).__name__}: {error}"[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer tokens, nothing written")
    given = parser.parse_args()
    width, layers, tokens, repeats = (128, 2, 24, 1) if given.quick else (512, 6, 96, 3)
    with tempfile.TemporaryDirectory() as text:
        folder = make_model(Path(text) / "model", width=width, layers=layers)
        with our_server(folder, Path(text) / "ours.log", slots=8) as url:
            found = measure(url, str(folder), clients=64, tokens=tokens, repeats=repeats)
        single = one_slot_seconds(folder, Path(text) / "one.log", tokens=tokens, repeats=repeats)
        theirs, texts, why = transformers_seconds(folder, Path(text) / "theirs.log", tokens=tokens, repeats=repeats)
    found["over_one_slot"] = single / found["seconds_of_8"]
    found["over_transformers_serve"] = None if theirs is None else theirs / found["seconds_of_8"]
    # Half a character at the very end is shown by ours and dropped by theirs.
    pairs = [(a.rstrip("\ufffd"), b.rstrip("\ufffd")) for a, b in zip(texts, found["texts_of_8"], strict=False)]
    found["equal_texts_of_8"] = None if theirs is None else sum(a == b for a, b in pairs)
    del found["texts_of_8"]
    for key, value in found.items():
        print(f"{key:>24}  {value}")
    if why:
        print(f"transformers serve did not answer: {why}")
    if not given.quick:
        write_result(
            "bench_serve",
            title="Serving: many clients, and decoding together",
            headline=(
                f"64 concurrent streams, {found['lost']} lost; 8 at once {found['throughput_8_over_1']:.1f} times as "
                f"fast as one after another, {found['over_one_slot']:.1f} times as fast as with one slot"
            ),
            command="python examples/bench_serve.py",
            keys=found,
            notes=why
            or (
                "A random Llama of width 512 and 6 layers, on a machine that other jobs shared. Throughput alternates "
                "between one after another and together; one slot and transformers serve were timed after that, so "
                "the load of the moment is in their ratios. Decoding runs all slots whatever they hold, so a request "
                "alone on 8 slots costs as much as eight: over_one_slot is the gain over a server with one slot."
            ),
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
