"""Which tokens of a conversation are the assistant's.

Templates rarely say it themselves (`{% generation %}`). So the conversation is written down up to the point where each
answer begins and up to where it ends; what lies between is the answer, with the mark that ends its turn. That is
right only if a longer conversation begins with the text of the shorter one, which is checked.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowmem.data.encoder import Encoder
from lowmem.data.samples import Chat
from lowmem.errors import DataError


@dataclass(frozen=True)
class EncodedChat:
    """`trained[t]` tells whether `ids[t]` is the assistant's. `prompt` and `answer` belong to the last answer."""

    ids: list[int]
    trained: list[bool]
    prompt: str
    prompt_ids: list[int]
    answer: str


def encode_chat(chat: Chat, encoder: Encoder, where: str) -> EncodedChat:
    """The conversation as tokens. Raises `DataError` when the template rewrites earlier turns."""
    last = max(n for n, turn in enumerate(chat.turns) if turn.role == "assistant")
    if encoder.marks_answers:
        ids, trained = encoder.answer_mask(chat.turns, where)
        prompt = encoder.render(chat.turns[:last], where, ask=True)
    else:
        ids, trained, prompt = _by_difference(chat, encoder, where, last)
    return EncodedChat(ids, trained, prompt, encoder.encode(prompt), chat.turns[last].content)


def _by_difference(chat: Chat, encoder: Encoder, where: str, last: int) -> tuple[list[int], list[bool], str]:
    """Ids up to the last answer, which of them are trained, and the text before the last answer."""
    ids: list[int] = []
    trained: list[bool] = []
    written = prompt = ""
    for number, turn in enumerate(chat.turns):
        if turn.role != "assistant":
            continue
        prompt = encoder.render(chat.turns[:number], where, ask=True)
        through = encoder.render(chat.turns[: number + 1], where)
        _check_prefix(written, prompt, chat, number, where)
        _check_prefix(prompt, through, chat, number, where)
        given = encoder.after(written, prompt[len(written) :])
        ids += given
        trained += [False] * len(given)
        answer, rest = _answer_ids(prompt, through, encoder, is_last=number == last)
        ids += answer + rest
        trained += [True] * len(answer) + [False] * len(rest)
        written = through
    return ids, trained, prompt


def _answer_ids(prompt: str, through: str, encoder: Encoder, *, is_last: bool) -> tuple[list[int], list[int]]:
    """Ids of an answer up to the token that ends the turn, and of the white space that a template puts behind it.

    After the last answer comes the end-of-text token if the template ends it with none: a model must learn to stop.
    """
    span = through[len(prompt) :]
    text = span.rstrip()
    answer = encoder.after(prompt, text)
    if is_last and (not answer or answer[-1] not in encoder.special):
        return [*answer, encoder.eos], []
    return answer, encoder.after(prompt + text, span[len(text) :])


def _check_prefix(shorter: str, longer: str, chat: Chat, number: int, where: str) -> None:
    if not longer.startswith(shorter):
        raise DataError(
            f"{where}: the chat template writes turn {number} ({chat.turns[number].role}) differently once the "
            "conversation goes on, so its trained tokens cannot be told; keep one assistant turn per sample, or set "
            "chat_template to one that marks answers with {% generation %} or leaves earlier turns alone: "
            f"{chat.turns[number].content[:60]!r}"
        )
