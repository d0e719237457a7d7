"""Text to token ids for one tokenizer: special tokens known once, continuations encoded in their context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowmem.data.samples import Turn
from lowmem.data.template import PLAIN_CHAT_TEMPLATE
from lowmem.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 64
"""Characters before a continuation that can touch how it is split: more than the longest chat marker or word."""


class Encoder:
    """What the data package asks of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no end-of-text token, so a model could never learn to stop; "
                "set eos_token in its tokenizer_config.json"
            )
        self._tokenizer: Any = tokenizer
        self.eos: int = tokenizer.eos_token_id
        self.bos: int | None = tokenizer.bos_token_id
        self.prefix = self._special_prefix()
        """What the tokenizer puts before every text, such as (bos,)."""
        self.special = frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)
        """Ids of end-of-turn and other control tokens."""

    @property
    def has_chat_template(self) -> bool:
        return self._tokenizer.chat_template is not None

    @property
    def marks_answers(self) -> bool:
        """True when the template says itself which tokens are the assistant's."""
        return self.has_chat_template and "generation %}" in str(self._tokenizer.chat_template)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone, without special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def after(self, context: str, text: str) -> list[int]:
        """Ids of `text` as it continues `context`, whose own ids stay as they are.

        Encoding the two together and cutting is right where no token spans the border, and knows about leading
        spaces; where one does, `text` is encoded apart, for a model that generates sees `context` encoded alone.
        """
        tail = context[-_CONTEXT:]
        head = self.encode(tail)
        both = self.encode(tail + text)
        return both[len(head) :] if both[: len(head)] == head else self.encode(text)

    def render(self, turns: tuple[Turn, ...], where: str, *, ask: bool = False) -> str:
        """The conversation as the chat template writes it; with `ask`, up to where the answer begins."""
        text: str = self._apply(turns, where, tokenize=False, add_generation_prompt=ask)
        return text

    def answer_mask(self, turns: tuple[Turn, ...], where: str) -> tuple[list[int], list[bool]]:
        """Ids of the whole conversation and which of them the template marks as the assistant's."""
        encoded = self._apply(turns, where, return_dict=True, return_assistant_tokens_mask=True)
        return list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]]

    def _apply(self, turns: tuple[Turn, ...], where: str, **how: bool) -> Any:
        from jinja2 import TemplateError

        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        template = None if self.has_chat_template else PLAIN_CHAT_TEMPLATE
        try:
            return self._tokenizer.apply_chat_template(messages, chat_template=template, **how)
        except TemplateError as error:
            roles = ", ".join(turn.role for turn in turns)
            raise DataError(
                f"{where}: the chat template refuses this conversation ({error}); its roles are {roles}; "
                "mend the sample, or set chat_template to one that allows them"
            ) from error

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        """Text of `ids`, special tokens included."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _special_prefix(self) -> tuple[int, ...]:
        plain = self.encode("a")
        dressed: list[int] = self._tokenizer.encode("a", add_special_tokens=True)
        for start in range(len(dressed) - len(plain) + 1):
            if dressed[start : start + len(plain)] == plain:
                return tuple(dressed[:start])
        raise AssertionError(f"special tokens change how a text is split: {plain} within {dressed}")
