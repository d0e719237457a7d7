"""How messages become the prompt that a model was trained on, with or without a chat template of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, assert_never

from lowmem.config.run import RunConfig
from lowmem.data.template import PLAIN_CHAT_TEMPLATE, instruction_prompt
from lowmem.generate.tokens import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
"""{"role": "system", "user" or "assistant", "content": text}."""

ChatForm = Literal["template", "plain", "instruction"]
""""template": the tokenizer's own. Without one, a run on conversations was trained on headings ("plain"), and a run
on instructions on a task sheet, which holds one message and no history ("instruction")."""


def chat_form(tokenizer: PreTrainedTokenizerBase, run: RunConfig | None) -> ChatForm | None:
    """The form that the model understands; None when it was never shown messages."""
    if tokenizer.chat_template is not None:
        return "template"
    formats = set() if run is None else {section.format for section in run.dataset}
    if "messages" in formats:
        return "plain"
    return "instruction" if "alpaca" in formats else None


def message_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], form: ChatForm) -> list[int]:
    """Token ids of the prompt that asks for the next answer."""
    match form:
        case "instruction":
            return encode_prompt(tokenizer, instruction_prompt(messages[-1]["content"], "").text)
        case "template" | "plain":
            turns: Any = [dict(message) for message in messages]
            ids: Any = tokenizer.apply_chat_template(
                turns,
                chat_template=PLAIN_CHAT_TEMPLATE if form == "plain" else None,
                add_generation_prompt=True,
                return_dict=False,
            )
            return [int(token) for token in ids]
        case _:
            assert_never(form)
