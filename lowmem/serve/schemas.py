"""What may be asked: the fields of OpenAI's requests, vLLM's extensions under vLLM's names, and a few of our own.

A field that would change the answer and is not here is refused by name; a field that cannot (`user`, `metadata`, …) is
accepted and has no effect. Limits keep arithmetic finite: a temperature of 1e-300 or a penalty of 1e300 is a mistake.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lowmem.config.generation import GenerationConfig
from lowmem.generate.generation import Repetition

GREEDY_BELOW = 1e-5
"""Temperatures below are greedy, as in vLLM."""
MAX_CHOICES = 16
"""Answers to one HTTP request: prompts times `n`."""

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Asked(BaseModel):
    """Strict about names, so that a misspelled field is not an ignored one."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(Asked):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class RepetitionDetection(Asked):
    """vLLM's: end the answer when a block of tokens stands `min_count` times in a row."""

    max_pattern_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Longest block looked for; 0 = no detection."""
    min_pattern_size: Annotated[int, Field(ge=0, le=4096)] = 0
    min_count: Annotated[int, Field(ge=0, le=1024)] = 0

    @model_validator(mode="after")
    def _ordered(self) -> RepetitionDetection:
        if self.max_pattern_size and (self.min_count < 2 or self.min_pattern_size > self.max_pattern_size):
            raise ValueError("needs min_count of 2 or more and min_pattern_size of max_pattern_size or less")
        return self


class SamplingRequest(Asked):
    """What chat and completion requests share. Null means: as the server was started."""

    model: Annotated[str, Field(max_length=4096)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """-1 and 0 keep all."""
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=4, allow_inf_nan=False)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=1, le=1024)] | None = None
    hesitation_penalty: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    thinking_token_budget: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    repetition_detection: RepetitionDetection | None = None
    on_loop: Literal["continue", "stop", "rescue"] | None = None
    """When the answer repeats itself or its thinking does not end: nothing, end it, or end it with an answer."""
    commit_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def limit(self) -> int | None:
        """Tokens of the answer that were asked for."""
        return self.max_tokens

    @property
    def choices(self) -> int:
        """Answers per prompt."""
        return self.n or 1

    def repetition(self) -> Repetition | None:
        """The rule that the request brings; None leaves the server's own."""
        given = self.repetition_detection
        if given is None or given.max_pattern_size == 0:
            return None
        return Repetition(given.min_count, max(1, given.min_pattern_size), given.max_pattern_size)

    def settings(self, base: GenerationConfig) -> GenerationConfig:
        """`base` with what the request says."""
        changes: dict[str, Any] = {
            name: value
            for name in GenerationConfig.model_fields
            if name not in ("stop", "seed") and (value := getattr(self, name, None)) is not None
        }
        if self.limit is not None:
            changes["max_new_tokens"] = self.limit
        if self.stop is not None:
            changes["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if changes.get("top_k") == -1:
            changes["top_k"] = 0
        if changes.get("temperature", 1.0) < GREEDY_BELOW:
            changes["temperature"] = 0.0
        if self.repetition_detection is not None and self.on_loop is None:
            changes["on_loop"] = "continue" if self.repetition() is None else "stop"
        return base.model_copy(update=changes)


class TextPart(Asked):
    type: Literal["text"]
    text: str


class ChatMessage(Asked):
    """A turn. Earlier thoughts may be sent back; they are not shown to the model again."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None

    def plain(self) -> dict[str, str]:
        """What chat templates read."""
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content or ())
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(SamplingRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Newer name of `max_tokens`; it wins where both are given."""

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(SamplingRequest):
    """POST /v1/completions: text, tokens, or several of either."""

    prompt: (
        str
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    echo: Literal[False] | None = None

    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself."""
        given: Any = self.prompt
        single = isinstance(given, str) or isinstance(given[0], int)
        return [given] if single else list(given)
