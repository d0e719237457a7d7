"""How answers are sampled, and what happens to one that repeats itself or never ends its thinking."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from lowmem.config.base import Section


class GenerationConfig(Section):
    """How answers are sampled by `eval`, `generate`, `chat` and `serve`."""

    max_new_tokens: PositiveInt = 256
    temperature: NonNegativeFloat = 0.0
    """0 = greedy."""
    top_k: NonNegativeInt = 0
    """Keep only this many most likely tokens; 0 = all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Drop tokens less likely than this share of the most likely one."""
    repetition_penalty: PositiveFloat = 1.0
    """Divides positive and multiplies negative logits of every token seen, the prompt's too; 1 = off."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token generated so far."""
    frequency_penalty: float = 0.0
    """Subtracted for every time that a token was generated."""
    dry_multiplier: NonNegativeFloat = 0.0
    """DRY: multiplier * base ** (length - allowed) is taken off a token that would prolong a repeated end; 0 = off."""
    dry_base: PositiveFloat = 1.75
    dry_allowed_length: PositiveInt = 2
    hesitation_penalty: NonNegativeFloat = 0.0
    """Taken off the logits of "Wait", "Hmm", "But" and the like (arXiv 2606.00206): shorter thoughts."""
    stop: tuple[str, ...] = ()
    seed: NonNegativeInt = 0
    thinking_token_budget: PositiveInt | None = None
    """Thinking is closed at the first end of a sentence after this many tokens (64 later at the latest)."""
    on_loop: Literal["continue", "stop", "rescue"] = "continue"
    """When a text repeats itself: nothing; end it there; or end it with an answer (`lowmem.generate.rescue`), also when
    the tokens run out or the text ends inside a thought."""
    commit_tokens: PositiveInt = 256
    """At most this many tokens, beyond `max_new_tokens`, for an answer that is asked for after a loop."""
    outline: Literal["off", "on", "auto"] = "off"
    """Planning: the high precision (a nested model's second planes, or the fallback) writes an outline first, and the
    low precision works along it. auto: what `lowmem calibrate` found best for the model."""
    outline_tokens: PositiveInt = 128
    """Longest outline."""
