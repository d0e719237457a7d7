"""Continuous batching: requests join and leave a fixed number of slots, and each is answered as if it were alone.

    engine = Engine(model, tokenizer, slots=8, context=4096)
    generation = engine.submit(Request(prompt, config, seed=0))
    while generation.reason is None:
        engine.step()                       # one more token of every running request

Prompts are read one at a time; tokens are decoded for all slots together (`lowmem.models.slots`). A loop, or a
thought that does not end, is handled as `lowmem.generate.rescue` decides, without a change to any other sequence.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from lowmem.data.procedural import END_THINK
from lowmem.errors import ConfigError
from lowmem.generate.generation import Generation, Request
from lowmem.generate.hesitation import hesitation_tokens
from lowmem.generate.loops.base import Loop
from lowmem.generate.loops.detector import LoopDetector
from lowmem.generate.loops.tail import TailRule
from lowmem.generate.rescue import Ask, Commit, FallBack, Reason, Rescue, Trace, decide, ends_sentence
from lowmem.generate.sampling import choose_token
from lowmem.generate.tokens import TokenTexts, end_tokens
from lowmem.models.modes import eval_mode
from lowmem.models.slots import KvDtype, Slots

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GRACE = 64
"""Tokens that a thought may go on beyond its budget to end a sentence."""
STUB_ROOM = 32
"""Tokens that closing a thought and asking for the answer may take."""
SHARED = 16
"""A common beginning of at least this many tokens is copied and not read again."""


class Engine:
    """`slots` requests at a time in `model`, the others wait. `context`: tokens of a request, prompt and answer.

    `inside`: entered around every forward pass, for example to choose the precision of a nested model; `precision` is
    the name under which tokens and seconds are counted. `fallback`: an engine of higher precision for rescues.
    `reuse_prefixes` copies the cache of a common beginning: faster, and equal up to rounding only.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int,
        context: int,
        kv_dtype: KvDtype = "model",
        precision: str = "low",
        inside: Callable[[], AbstractContextManager[object]] = nullcontext,
        fallback: Engine | None = None,
        reuse_prefixes: bool = False,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._slots = Slots(model, slots=slots, context=context, pad_id=tokenizer.pad_token_id or 0, kv_dtype=kv_dtype)
        self._running: dict[int, Generation] = {}
        self._waiting: deque[Generation] = deque()
        self._held: list[list[int]] = [[] for _ in range(slots)]
        self._ends = end_tokens(model, tokenizer)
        self._texts = TokenTexts(tokenizer)
        self._precision, self._inside, self._fallback = precision, inside, fallback
        self._reuse = reuse_prefixes

    @cached_property
    def _hesitations(self) -> Tensor:
        return hesitation_tokens(self._texts, len(self._tokenizer)).to(self._model.device)

    @property
    def busy(self) -> bool:
        """Whether a request is running or waiting."""
        return bool(self._running or self._waiting) or (self._fallback is not None and self._fallback.busy)

    @property
    def running(self) -> int:
        return len(self._running) + (0 if self._fallback is None else self._fallback.running)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + (0 if self._fallback is None else self._fallback.waiting)

    @property
    def cached_tokens(self) -> int:
        """Positions of the cache that running requests fill."""
        own = sum(self._slots.lengths[slot] for slot in self._running)
        return own + (0 if self._fallback is None else self._fallback.cached_tokens)

    def submit(self, request: Request) -> Generation:
        """The request waits for a slot.

        Raises `ConfigError` when its prompt leaves no room for an answer, or when an outline is asked for: that is
        written before a request is made.
        """
        if request.config.outline != "off":
            raise ConfigError(
                f"generation.outline={request.config.outline} is for `generate` and `chat`, which write the outline "
                "before the prompt; set it to off here"
            )
        limit = self._limit(request)
        detector = None if request.config.on_loop == "continue" else self._detector(request)
        generation = Generation(request, self._tokenizer, ends=self._ends, limit=limit, detector=detector)
        self._waiting.append(generation)
        return generation

    def _limit(self, request: Request) -> int:
        """Tokens that may be generated for `request`, before a rescue."""
        room, config = self._slots.context - len(request.prompt), request.config
        extra = config.commit_tokens + STUB_ROOM if config.on_loop == "rescue" else 0
        if room - extra < 1:
            with_rescue = f" and {extra} are kept for a rescue" if extra else ""
            raise ConfigError(
                f"the prompt has {len(request.prompt)} tokens and a request {self._slots.context} with its answer"
                f"{with_rescue}; shorten the prompt to {self._slots.context - extra - 1} tokens or fewer"
            )
        return min(config.max_new_tokens, room - extra)

    def _take_over(self, generation: Generation) -> None:
        """The request is answered here from its prompt on; nothing that was said counts."""
        generation.restart()
        generation.tried = {"fall back"}
        generation.limit = self._limit(generation.request)
        self._waiting.append(generation)

    def _detector(self, request: Request) -> LoopDetector:
        asked = request.repetition
        if asked is None:
            return LoopDetector(self._texts)
        rule = TailRule(count=asked.count, longest=asked.longest, shortest=asked.shortest, tokens=1)
        return LoopDetector(self._texts, rules=(), own=(rule,))

    def cancel(self, generation: Generation) -> None:
        """The request leaves, running or waiting; its slot is free."""
        for slot in [slot for slot, one in self._running.items() if one is generation]:
            self._release(slot)
        if generation in self._waiting:
            self._waiting.remove(generation)
        if self._fallback is not None:
            self._fallback.cancel(generation)
        generation.finish("stop")

    def step(self) -> None:
        """One more token of every running request, after those that wait have taken the free slots."""
        with eval_mode(self._model), self._inside():
            self._admit()
            self._choose()
            self._feed()
        if self._fallback is not None and self._fallback.busy:
            self._fallback.step()

    def _admit(self) -> None:
        free = [slot for slot in range(self._slots.slots) if slot not in self._running]
        while free and self._waiting:
            generation = self._waiting.popleft()
            prompt = [*generation.request.prompt, *generation.tokens]
            slot, shared = self._place(free, prompt)
            free.remove(slot)
            self._running[slot] = generation
            self._read(slot, generation, prompt[shared:])
            self._held[slot] = prompt

    def _place(self, free: list[int], prompt: list[int]) -> tuple[int, int]:
        """The slot to take, and how many tokens of `prompt` are in it already."""
        self._slots.clear(free[0])
        if not self._reuse:
            return free[0], 0
        common = {slot: _common(held, prompt[:-1]) for slot, held in enumerate(self._held)}
        best = max(common, key=lambda slot: (common[slot], slot in free))
        if common[best] < SHARED:
            return free[0], 0
        if best in free:
            self._slots.lengths[best] = common[best]
            return best, common[best]
        self._slots.share(best, free[0], common[best])
        return free[0], common[best]

    def _read(self, slot: int, generation: Generation, tokens: list[int]) -> None:
        start = time.perf_counter()
        generation.logits = self._slots.extend(slot, tokens)
        generation.spent.add(self._precision, 0, time.perf_counter() - start)

    def _choose(self) -> None:
        """Every running request with logits takes its next token, and may end or be rescued by it."""
        for slot, generation in list(self._running.items()):
            config = generation.request.config
            if generation.logits is None:
                continue
            logits = generation.logits
            if config.hesitation_penalty:
                logits = logits.clone()
                logits[self._hesitations] -= config.hesitation_penalty
            token = choose_token(
                logits,
                config,
                seed=generation.request.seed + len(generation.tried),  # a second try is not the first one again
                prompt=generation.request.prompt,
                tokens=generation.tokens,
            )
            generation.logits = None
            generation.spent.add(self._precision, 1, 0.0)
            loop = generation.push(token)
            self._judge(slot, generation, loop)

    def _feed(self) -> None:
        """Logits of every request that took a token."""
        tokens = {slot: one.tokens[-1] for slot, one in self._running.items() if one.logits is None}
        if not tokens:
            return
        start = time.perf_counter()
        logits = self._slots.step(tokens)
        share = (time.perf_counter() - start) / len(tokens)
        for slot, row in logits.items():
            generation = self._running[slot]
            generation.logits = row
            generation.spent.add(self._precision, 0, share)
            self._held[slot].append(tokens[slot])

    def _judge(self, slot: int, generation: Generation, loop: Loop | None) -> None:
        """Whether the request ends here, goes on, or must be rescued."""
        config = generation.request.config
        rescues = config.on_loop == "rescue"
        if loop is not None:
            generation.loop = generation.loop or loop
            if rescues:
                self._rescue(slot, generation, "loop", loop)
                return
            generation.finish("repetition")
        elif generation.reason is not None and rescues and generation.thinking:
            generation.reason = None
            self._rescue(slot, generation, "unclosed", None)
            return
        elif generation.reason is None and len(generation.tokens) >= generation.limit:
            if rescues and (generation.thinking or "ask" in generation.tried):
                self._rescue(slot, generation, "budget", None)
                return
            generation.finish("length")
        elif self._out_of_thinking(generation):
            self._go_on(slot, generation, len(generation.tokens), f"\n{END_THINK}\n\n")
        if generation.reason is not None:
            self._release(slot)

    def _out_of_thinking(self, generation: Generation) -> bool:
        budget = generation.request.config.thinking_token_budget
        if budget is None or generation.reason is not None:
            return False
        over = generation.thinking_tokens - budget
        return over >= GRACE or (over >= 0 and ends_sentence(generation.text))

    def _rescue(self, slot: int, generation: Generation, reason: Reason, loop: Loop | None) -> None:
        begun = len(generation.tokens) if loop is None else loop.onset
        trace = Trace(
            text=generation.text,
            thinking=generation.thinking,
            reason=reason,
            loop_at=generation.character_at(begun),
            tried=frozenset(generation.tried),
            can_fall_back=self._fallback is not None,
        )
        match decide(trace, close=END_THINK):
            case Commit(keep, text, answer, status):
                before = len(generation.tokens)
                generation.rewind(generation.token_at(keep))
                generation.say(text)
                cut = before - len(generation.tokens)
                generation.rescue = Rescue(status, reason, loop, answer, cut, 0)
                generation.finish("stop")
                self._release(slot)
            case Ask(keep, text, status):
                generation.tried.add("ask")
                before = len(generation.tokens)
                self._go_on(slot, generation, generation.token_at(keep), text)
                cut = before - generation.token_at(keep)
                generation.rescue = Rescue(status, reason, loop, None, cut, generation.request.config.commit_tokens)
                generation.limit = len(generation.tokens) + generation.request.config.commit_tokens
            case FallBack(status):
                assert self._fallback is not None
                generation.rescue = Rescue(status, reason, loop, None, len(generation.tokens), 0)
                self._release(slot)
                self._fallback._take_over(generation)

    def _go_on(self, slot: int, generation: Generation, keep: int, text: str) -> None:
        """The first `keep` tokens stay, `text` follows, and the slot holds just that."""
        forced = [int(token) for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]]
        prompt = len(generation.request.prompt)
        fed = self._slots.lengths[slot] - prompt
        generation.rewind(keep)
        if keep < fed:
            self._slots.rewind(slot, fed - keep)
            fed = keep
        generation.force(forced)
        self._read(slot, generation, generation.tokens[fed:])
        self._held[slot] = [*generation.request.prompt, *generation.tokens]

    def _release(self, slot: int) -> None:
        generation = self._running.pop(slot)
        generation.logits = None


def _common(held: list[int], prompt: list[int]) -> int:
    """Tokens that both begin with."""
    length = 0
    for left, right in zip(held, prompt, strict=False):
        if left != right:
            break
        length += 1
    return length
