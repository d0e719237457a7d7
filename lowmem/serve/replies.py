"""What is answered: OpenAI's objects, with a `lowmem` field that says what became of loops and unfinished thoughts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from lowmem.data.procedural import END_THINK
from lowmem.generate.generation import FinishReason, Generation
from lowmem.serve.thinking import Said, split


class LoopField(BaseModel):
    rule: str
    onset: int
    """The token at which the repetition began."""
    period: int


class RescueField(BaseModel):
    status: str
    reason: str
    answer: str | None
    tokens_cut: int
    tokens_added: int


class Extra(BaseModel):
    """The `lowmem` field of a finished answer. `seed` gives the same answer again."""

    seed: int
    loop: LoopField | None
    rescue: RescueField | None
    tokens_by_precision: dict[str, int]
    seconds_by_precision: dict[str, float]
    final: dict[str, str] | None = None
    """In a stream: the answer as it stands, where text that was sent had to be taken back."""


class TokenDetails(BaseModel):
    reasoning_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: TokenDetails


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    reasoning: str | None
    reasoning_content: str | None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: None = None
    lowmem: Extra


class TextChoice(BaseModel):
    index: int
    text: str
    finish_reason: FinishReason
    logprobs: None = None
    lowmem: Extra


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextAnswer(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


def usage_of(answers: list[Generation], prompt_tokens: int) -> Usage:
    """Tokens of all answers to a request; a rescue's cut tokens are not in them, see `lowmem`."""
    said = sum(len(one.tokens) for one in answers)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=said,
        total_tokens=prompt_tokens + said,
        completion_tokens_details=TokenDetails(reasoning_tokens=sum(map(_thought, answers))),
    )


def extra_of(generation: Generation) -> Extra:
    """What the `lowmem` field says of `generation`."""
    loop, rescue = generation.loop, generation.rescue
    return Extra(
        seed=generation.request.seed,
        loop=None if loop is None else LoopField(rule=loop.rule, onset=loop.onset, period=loop.period),
        rescue=None
        if rescue is None
        else RescueField(
            status=rescue.status,
            reason=rescue.reason,
            answer=rescue.answer,
            tokens_cut=rescue.tokens_cut,
            tokens_added=rescue.tokens_added,
        ),
        tokens_by_precision=dict(generation.spent.tokens),
        seconds_by_precision={name: round(seconds, 4) for name, seconds in generation.spent.seconds.items()},
    )


def chat_choice(index: int, generation: Generation, *, thinking: bool) -> ChatChoice:
    """The whole answer, with its thoughts apart."""
    said = split(generation.text, thinking=thinking)
    message = AnswerMessage(
        content=said.content, reasoning=said.reasoning or None, reasoning_content=said.reasoning or None
    )
    assert generation.reason is not None
    return ChatChoice(index=index, message=message, finish_reason=generation.reason, lowmem=extra_of(generation))


def text_choice(index: int, generation: Generation) -> TextChoice:
    """The whole text as it was decoded."""
    assert generation.reason is not None
    return TextChoice(index=index, text=generation.text, finish_reason=generation.reason, lowmem=extra_of(generation))


def delta_of(said: Said) -> dict[str, str]:
    """A streamed part of a chat answer; thoughts under both names that clients look for."""
    delta = {"reasoning": said.reasoning, "reasoning_content": said.reasoning} if said.reasoning else {}
    return delta | ({"content": said.content} if said.content else {})


def stream_extra(generation: Generation, streamed: Said, *, thinking: bool | None) -> dict[str, Any]:
    """The `lowmem` field that ends a stream of `streamed`. `thinking` is None for plain text."""
    extra = extra_of(generation)
    final = Said(content=generation.text) if thinking is None else split(generation.text, thinking=thinking)
    if final != streamed:
        extra.final = {"reasoning": final.reasoning, "content": final.content}
    return extra.model_dump()


def _thought(generation: Generation) -> int:
    """Tokens up to the end of the last thought."""
    if generation.thinking:
        return len(generation.tokens)
    end = generation.text.rfind(END_THINK)
    return 0 if end < 0 else generation.token_at(end + len(END_THINK))
