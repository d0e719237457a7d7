"""A score of the model's own answers as a loss: any Python function, inside the loss evaluation of zeroth order.

An answer is generated for every example at the perturbed weights, as `temperature: 0` would, and scored; the loss of an
example is minus its score. Accuracy needs no generation: it reads which option is the most likely. A score that seldom
changes (exact match of long answers) gives zeroth order nothing to go by: prefer graded ones, larger `zo_eps`, and
more examples a step.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowmem.config.generation import GenerationConfig
from lowmem.config.loss import ScoreLoss
from lowmem.data.batch import Batch
from lowmem.data.samples import EvalItem
from lowmem.errors import ConfigError, DataError
from lowmem.evaluate.answers import f1, verify
from lowmem.generate.generate import generate_batch
from lowmem.models.loss import LossSums, ModelLoss

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Judge = Callable[[str, EvalItem], float]
"""The score of a generated text, given what was asked."""


class ScoredAnswers:
    """`LossFn`: per example minus the score of a greedy answer. Never differentiable."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ScoreLoss) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._judge = judge(config.function)
        self._generation = GenerationConfig(max_new_tokens=config.max_new_tokens)

    def __call__(self, batch: Batch) -> LossSums:
        if len(batch.items) != batch.examples:
            raise DataError(
                "loss.kind: score needs a prompt to answer in every row; use a dataset with prompts and completions "
                "(format: completion, alpaca, chat…), or function: accuracy for a classification task"
            )
        prompts = [item.prompt_ids for item in batch.items]
        texts = generate_batch(self._model, self._tokenizer, prompts, self._generation)
        scores = [self._judge(text, item) for text, item in zip(texts, batch.items, strict=True)]
        return _minus(torch.tensor(scores, dtype=torch.float64, device=batch.input_ids.device))


class Accuracy:
    """`LossFn` of a classification task: -1 for every example whose most likely option is the right one."""

    def __init__(self, loss: ModelLoss) -> None:
        self._loss = loss

    def __call__(self, batch: Batch) -> LossSums:
        if batch.options is None:
            raise DataError(
                "loss.function: accuracy belongs to classification tasks (format: sst2, boolq…); "
                "use exact_match or f1 for generated answers"
            )
        return _minus((self._loss.option_scores(batch).argmax(dim=-1) == batch.options.gold).double())


def judge(function: str) -> Judge:
    """The built-in score of that name, or the user's function. Raises `ConfigError` when it cannot be imported."""
    match function:
        case "exact_match":
            return _exact_match
        case "f1":
            return lambda text, item: f1(text, item.references)
    return _user_function(function)


def _exact_match(text: str, item: EvalItem) -> float:
    if item.verifier is None:
        raise DataError(
            "loss.function: exact_match needs a dataset with a verifier (format: gsm8k, procedural…); "
            "use f1, or a function of your own"
        )
    return float(verify(item.verifier, text, item.references))


def _user_function(name: str) -> Judge:
    module_name, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does: the user's file lies beside the config
    try:
        function: Any = getattr(importlib.import_module(module_name), attribute)
        wanted = inspect.signature(function).parameters
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"loss.function: {name} cannot be used: {error}; name a function score(text) -> float in a module that "
            "can be imported from the current folder"
        ) from error

    def score(text: str, item: EvalItem) -> float:
        known = {"prompt": item.prompt, "references": item.references}
        value = float(function(text, **{key: known[key] for key in known if key in wanted}))
        if not math.isfinite(value):
            raise ConfigError(f"loss.function: {name} returned {value} for the answer {text[:60]!r}; return a number")
        return value

    return score


def _minus(scores: torch.Tensor) -> LossSums:
    return LossSums(-scores, torch.ones_like(scores))
