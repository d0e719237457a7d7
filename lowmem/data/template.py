"""Wording: the instruction text and the chat template for tokenizers that bring none."""

from __future__ import annotations

from lowmem.data.samples import Prompt

PLAIN_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] }}"
    "{{ eos_token + '\n' if message['role'] == 'assistant' else '\n\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '### Assistant:\n' }}{%- endif -%}"
)
"""Used for conversations when the tokenizer has no chat template: a heading per turn, end-of-text after each answer."""


def instruction_prompt(instruction: str, given: str) -> Prompt:
    """An instruction, with material to work on when there is some, for models without a chat template."""
    opening = f"Carry out the task below.\n\n### Task:\n{instruction.strip()}\n\n"
    material = f"### Material:\n{given.strip()}\n\n" if given.strip() else ""
    return Prompt(f"{opening}{material}### Answer:\n")


def instruction_message(instruction: str, given: str) -> str:
    """The same as one user turn, for models with a chat template."""
    return f"{instruction.strip()}\n\n{given.strip()}" if given.strip() else instruction.strip()


def question_prompt(context: str, question: str, title: str) -> Prompt:
    """A question about a text; the text is what gives way when it is too long."""
    heading = f"Title: {title.strip()}\n" if title.strip() else ""
    return Prompt(f"{heading}Context: ", context.strip(), f"\nQuestion: {question.strip()}\nAnswer:")
