"""From a sample of text to an example of tokens: what carries loss, and what gives way at `max_length`.

Cutting takes the prompt from the left (of a task or a question: its passage first) and never the answer. An answer
that is longer than `max_length` by itself is cut at its right end, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from lowmem.data.batch import IGNORE
from lowmem.data.chat import encode_chat
from lowmem.data.encoder import Encoder
from lowmem.data.samples import Chat, Choice, Completion, EvalItem, Example, Prompt, TokenRow
from lowmem.errors import DataError


@dataclass(frozen=True)
class EncodeSettings:
    max_length: int
    train_on_prompt: bool = False
    options: int = 0
    """K of a task, the same for every example."""
    option_ids: tuple[int, ...] | None = None
    """Given when every option of the task is one token."""


def encode_sample(
    sample: Completion | Chat | Choice, encoder: Encoder, settings: EncodeSettings, where: str
) -> Example:
    """The example of `sample`. Raises `DataError` with the sample when nothing in it would be trained."""
    match sample:
        case Completion():
            example = _encode_completion(sample, encoder, settings, where)
        case Chat():
            example = _encode_conversation(sample, encoder, settings, where)
        case Choice():
            example = _encode_choice(sample, encoder, settings, where)
        case _:
            assert_never(sample)
    _check(example, encoder)
    return example


def one_token_options(sample: Choice, encoder: Encoder) -> tuple[int, ...] | None:
    """The token of each option after this prompt, or None when an option is longer or two share a token."""
    continuations = [encoder.after(sample.prompt.text, option) for option in sample.options]
    ids = tuple(ids[0] for ids in continuations if len(ids) == 1)
    return ids if len(set(ids)) == len(sample.options) else None


def _encode_completion(sample: Completion, encoder: Encoder, settings: EncodeSettings, where: str) -> Example:
    prompt, text = _move_space(sample.prompt, sample.completion)
    answer = [*encoder.after(prompt.text, text), encoder.eos]
    full = _prompt_ids(prompt, encoder, room=None)
    kept_answer = answer[: max(1, settings.max_length - min(1, len(full)))]
    head = _prompt_ids(prompt, encoder, room=settings.max_length - len(kept_answer))
    labels = head if settings.train_on_prompt else [IGNORE] * len(head)
    row = TokenRow((*head, *kept_answer), (*labels, *kept_answer))
    references = sample.references or (sample.completion,)
    return Example(
        rows=(row,),
        where=where,
        evaluation=EvalItem(tuple(head), prompt.text, references, sample.verifier),
        cut_prompt=len(head) < len(full),
        cut_answer=len(kept_answer) < len(answer),
    )


def _encode_conversation(sample: Chat, encoder: Encoder, settings: EncodeSettings, where: str) -> Example:
    chat = encode_chat(sample, encoder, where)
    begins = encoder.bos is not None and chat.ids[:1] == [encoder.bos]
    kept, cut_answer = _window(chat.trained, settings.max_length, pinned=int(begins))
    ids = tuple(chat.ids[t] for t in kept)
    labels = tuple(chat.ids[t] if settings.train_on_prompt or chat.trained[t] else IGNORE for t in kept)
    return Example(
        rows=(TokenRow(ids, labels),),
        where=where,
        evaluation=EvalItem(tuple(chat.prompt_ids[-settings.max_length :]), chat.prompt, (chat.answer,), None),
        cut_prompt=bool(kept) and len(kept) <= kept[-1],
        cut_answer=cut_answer,
    )


def _window(trained: Sequence[bool], max_length: int, *, pinned: int) -> tuple[list[int], bool]:
    """Which tokens stay, and whether the last answer had to be cut.

    Those up to the last trained one, as many as fit counted from there, after the first `pinned` (begin-of-text). An
    answer that does not fit is cut at its right end and keeps one token of context.
    """
    stop = max((t for t, mark in enumerate(trained) if mark), default=len(trained) - 1) + 1
    answer = max((t for t in range(stop) if not trained[t]), default=-1)
    first = max(0, answer)
    if stop <= max_length:
        return list(range(stop)), False
    if stop - first > max_length:
        return list(range(first, first + max_length)), True
    pinned = min(pinned, max_length - (stop - first))
    return [*range(pinned), *range(stop - max_length + pinned, stop)], False


def _encode_choice(sample: Choice, encoder: Encoder, settings: EncodeSettings, where: str) -> Example:
    full = _prompt_ids(sample.prompt, encoder, room=None)
    if settings.option_ids is not None:
        head = _prompt_ids(sample.prompt, encoder, room=settings.max_length)
        rows = [TokenRow(tuple(head), (IGNORE,) * len(head))]
    else:
        options = [encoder.after(sample.prompt.text, option) for option in sample.options]
        _check_options(sample, options, settings, where)
        head = _prompt_ids(sample.prompt, encoder, room=settings.max_length - max(map(len, options)))
        rows = [TokenRow((*head, *ids), (*[IGNORE] * len(head), *ids)) for ids in options]
    return Example(
        rows=tuple(rows),
        where=where,
        gold=sample.gold,
        option_ids=settings.option_ids,
        options=settings.options,
        cut_prompt=len(head) < len(full),
    )


def _check_options(sample: Choice, options: list[list[int]], settings: EncodeSettings, where: str) -> None:
    if len(set(map(tuple, options))) < len(options) or not all(options):
        raise DataError(
            f"{where}: the tokenizer writes two of the options {', '.join(map(repr, sample.options))} alike or as "
            "nothing, so no score can tell them apart; use another model"
        )
    if max(map(len, options)) >= settings.max_length:
        raise DataError(
            f"{where}: an option has {max(map(len, options))} tokens, which leaves no room for its prompt within "
            f"max_length={settings.max_length}; raise max_length"
        )


def _move_space(prompt: Prompt, completion: str) -> tuple[Prompt, str]:
    """The spaces between prompt and answer belong to the answer: tokenizers begin words with them, so a prompt that
    ends in one would ask the model for a split it has never seen."""
    if prompt.passage or prompt.after or not completion or completion[0].isspace():
        return prompt, completion
    stripped = prompt.before.rstrip(" ")
    return Prompt(stripped), prompt.before[len(stripped) :] + completion


def _prompt_ids(prompt: Prompt, encoder: Encoder, *, room: int | None) -> list[int]:
    """Ids of the prompt with the tokenizer's prefix, at most `room` of them: the passage loses its beginning first,
    then the rest does."""
    prefix = list(encoder.prefix)
    whole = encoder.encode(prompt.text)
    if room is None or len(prefix) + len(whole) <= room:
        return prefix + whole
    before = encoder.encode(prompt.before)
    passage = encoder.after(prompt.before, prompt.passage)
    after = encoder.after(prompt.before + prompt.passage, prompt.after)
    left = room - len(prefix) - len(before) - len(after)
    if prompt.passage and left >= 0:
        return prefix + before + passage[max(0, len(passage) - left) :] + after
    prefix = prefix if room > len(prefix) else []
    return prefix + whole[max(0, len(whole) - room + len(prefix)) :]


def _check(example: Example, encoder: Encoder) -> None:
    row = example.rows[0]
    if example.option_ids is None and any(row.trained == 0 for row in example.rows):
        raise DataError(
            f"{example.where}: nothing in this sample would be trained: its answer was cut away or has nothing "
            f"before it; raise max_length, or mend the sample: {encoder.decode(row.ids[:64])!r}"
        )
    bos = encoder.prefix[0] if encoder.prefix else encoder.bos
    if bos is not None and len(row.ids) > 2 and row.ids[0] == row.ids[1] == bos:
        raise DataError(
            f"{example.where}: the sample would begin with the begin-of-text token twice, once from the tokenizer "
            f"or the chat template and once from the text; remove it from the text: {encoder.decode(row.ids[:32])!r}"
        )
