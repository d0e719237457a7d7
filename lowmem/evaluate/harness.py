"""A model of ours as EleutherAI's `lm-eval` wants to see one. Imported only where `lm-eval` is installed.

Scoring is `likelihoods`, generation the engine's; nothing leaves the machine but what a task downloads by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lowmem.config.generation import GenerationConfig
from lowmem.errors import ConfigError
from lowmem.evaluate.likelihood import likelihoods
from lowmem.generate.fallback import engine_with
from lowmem.generate.generate import run_requests
from lowmem.generate.generation import Request
from lowmem.generate.tokens import context_of
from lowmem.models.modes import eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

USUAL_LENGTH = 2048
"""Tokens read at once by a model that does not say how many it can."""
USUAL_ANSWER = 256
"""Tokens of an answer to a task that does not say how long it may be."""
BOOTSTRAP = 1000
_IGNORED = ("do_sample", "temperature", "until", "max_gen_toks", "top_p", "top_k", "min_p")


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    folders: Sequence[str] = (),
    only_own: bool = False,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, dict[str, float]]:
    """Metrics by task; `folders` hold more task files than lm-eval's. Raises `ConfigError` for an unknown task.

    `only_own` does not read the thousands of files that lm-eval brings, which takes seconds.
    """
    manager = TaskManager(include_path=list(folders) or None, include_defaults=not only_own)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise ConfigError(f"--lm-eval {unknown[0]}: lm-eval knows no such task; `lm-eval ls tasks` lists them")
    with eval_mode(model):
        found = simple_evaluate(
            model=HarnessModel(model, tokenizer, slots=batch_size),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            bootstrap_iters=BOOTSTRAP,
            log_samples=False,
        )
    return {name: _numbers(metrics) for name, metrics in found["results"].items()}


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """`lm-eval`'s three questions, answered by our own code."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, slots: int) -> None:
        super().__init__()
        self.model, self.tokenizer, self._slots = model, tokenizer, slots
        self._limit = context_of(model) or USUAL_LENGTH

    @property
    def eot_token_id(self) -> int:
        found = self.tokenizer.eos_token_id
        if found is None:
            raise ConfigError("the tokenizer has no end-of-text token, which lm-eval needs before a text")
        return int(found)

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return [int(token) for token in self.tokenizer(string, **special)["input_ids"]]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **unused: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        return likelihoods(self.model, pairs, limit=self._limit)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Every token of a text is scored once, after as much as fits."""
        sums = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._limit,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            sums.append(sum(score for score, _ in likelihoods(self.model, pairs, limit=self._limit)))
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers of the engine; a prompt that leaves no room is cut from its left."""
        asked = [self._request(*request.args) for request in requests]
        longest = max(len(one.prompt) + one.config.max_new_tokens for one in asked)
        engine = engine_with(
            self.model,
            self.tokenizer,
            None,
            slots=min(self._slots, len(asked)),
            context=min(longest, self._limit),
        )
        return [generation.text for generation in run_requests(engine, asked)]

    def _request(self, text: str, given: dict[str, Any]) -> Request:
        unknown = [key for key, value in given.items() if key not in _IGNORED and value not in (None, False, 1)]
        if unknown:
            raise ConfigError(
                f"lm-eval's generation_kwargs: {unknown[0]} is not supported here; leave it out of the task"
            )
        until = given.get("until") or ()
        sampled = bool(given.get("do_sample", given.get("temperature", 0)))
        config = GenerationConfig(
            max_new_tokens=min(int(given.get("max_gen_toks", USUAL_ANSWER)), self._limit - 1),
            temperature=float(given.get("temperature", 1.0)) if sampled else 0.0,
            top_p=float(given.get("top_p", 1.0)),
            top_k=int(given.get("top_k", 0)),
            min_p=float(given.get("min_p", 0.0)),
            stop=(until,) if isinstance(until, str) else tuple(one for one in until if one),
        )
        prompt = self.tok_encode(text) or [self.prefix_token_id]
        return Request(tuple(prompt[-(self._limit - config.max_new_tokens) :]), config, config.seed)


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Without lm-eval's names of filters where there is only one: "acc,none" is acc."""
    found = {}
    for key, value in metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("sample_len",):
            metric, _, chosen = key.partition(",")
            found[metric if chosen in ("", "none") else f"{metric} ({chosen})"] = float(value)
    return found
