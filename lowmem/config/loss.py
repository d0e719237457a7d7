"""What a step makes smaller: the cross-entropy of the data's own answers, or minus a score of the model's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from lowmem.config.base import Section

SCORES = ("accuracy", "exact_match", "f1")
"""Scores that need no function of the user's."""


class CrossEntropyLoss(Section):
    """Of the trained tokens, or of a classification task's options."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class ScoreLoss(Section):
    """Minus the mean score of what the model answers. Zeroth order only: a score has no gradient."""

    kind: Literal["score"] = "score"
    function: str
    """`module:function`, any `score(text) -> float` of a generated answer (higher = better; parameters named `prompt`
    and `references` are filled in), or accuracy (classification tasks), exact_match (the dataset's verifier) or f1."""
    max_new_tokens: PositiveInt = 32
    """Longest answer. Higher = slower: every token is a forward of the perturbed model."""

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, name: str) -> str:
        module, colon, function = name.partition(":")
        dotted = all(part.isidentifier() for part in module.split("."))
        if name not in SCORES and not (colon and dotted and function.isidentifier()):
            raise ValueError(f"{name!r} is no score; write module:function, or one of {', '.join(SCORES)}")
        return name


Loss = Annotated[CrossEntropyLoss | ScoreLoss, Field(discriminator="kind")]
