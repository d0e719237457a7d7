"""The page at / in a real browser: a chat with the thought folded, the rescue marked, and the rate shown."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serve.conftest import Running, serving
from tests.serve.test_app import HELLO, LOOP, PROMPT, scripted

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the PATH (Debian: apt install chromium)"),
]
THOUGHT = "Twelve and thirty are forty-two. The answer is 42. "


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(scripted(f"<think>{THOUGHT}" + LOOP * 40, prompt=PROMPT), context=1024) as running:
        yield running


@pytest.fixture
def page(server: Running) -> Iterator[Any]:
    """The page, opened; nothing may be asked of any other host, and no script may fail."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        faults: list[str] = []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on(
            "request", lambda asked: None if asked.url.startswith((server.url, "data:")) else faults.append(asked.url)
        )
        tab.goto(server.url)
        tab.wait_for_function("document.getElementById('model').textContent === 'tiny'")
        yield tab
        browser.close()
    assert faults == []


def ask(page: Any) -> None:
    page.fill("#text", HELLO[0]["content"])
    page.keyboard.press("Enter")


def test_the_thought_is_folded_the_rescue_marked_and_the_rate_shown(page: Any, server: Running) -> None:
    ask(page)
    page.wait_for_selector(".rescue")
    assert page.inner_text(".rescue").startswith("Rescued: it repeated itself; an answer from before is kept (")
    assert page.inner_text(".content") == "The answer is 42"
    assert not page.is_visible("details div")
    page.click("summary")
    assert page.inner_text("details div").startswith(THOUGHT.strip())
    assert page.text_content("details div").count(LOOP) <= 1
    page.wait_for_function("/^[0-9.]+ tokens.s$/.test(document.getElementById('rate').textContent)")
    assert page.inner_text("#send") == "Send"


def test_a_new_chat_is_empty_and_a_refusal_is_shown(page: Any) -> None:
    ask(page)
    page.wait_for_selector(".rescue")
    page.click("#new")
    assert page.inner_text("#log") == ""
    page.evaluate("model = 'another'")
    ask(page)
    page.wait_for_selector(".error")
    assert "the model 'another' is not served here" in page.inner_text(".error")


def test_an_answer_can_be_stopped(page: Any, server: Running) -> None:
    ask(page)
    page.wait_for_selector(".thinking:not([hidden])")
    page.click("#send")
    page.wait_for_selector(".rescue")
    assert page.inner_text("#send") == "Send"
    assert server.until(lambda: httpx.get(f"{server.url}/health").json()["held"] == 0)
