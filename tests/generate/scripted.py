"""A model whose next token is any function of the tokens before it, which it reads from its key-value cache.

So a test decides what is said, and whatever the engine does to the cache (rewinding, forcing, sharing) shows.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.models.tiny import VOCABULARY, tiny_tokenizer

END = 1
Script = Callable[[list[int]], int]


class ScriptedModel(nn.Module):
    """`script(history)` is the next token; `seen` collects every history that a forward pass ended with."""

    def __init__(self, script: Script, *, context: int = 100_000) -> None:
        super().__init__()
        self.script, self.seen = script, list[list[int]]()
        self.dtype, self.device = torch.float64, torch.device("cpu")
        text = SimpleNamespace(num_hidden_layers=1, max_position_embeddings=context)
        self.config = SimpleNamespace(get_text_config=lambda: text, eos_token_id=END)
        self.generation_config = SimpleNamespace(eos_token_id=END)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Any,
        use_cache: bool,
    ) -> Any:
        states = input_ids[:, None, :, None].double().expand(-1, -1, -1, 2)
        keys, _ = past_key_values.update(states, states, 0)
        logits = torch.zeros(len(input_ids), 1, VOCABULARY, dtype=torch.float64)
        for row in range(len(input_ids)):
            visible = attention_mask[row, 0, -1] == 0
            history = [int(token) for token in keys[row, 0, :, 0][visible].round()]
            if len(history) > 2:  # an idle slot holds a token or two
                self.seen.append(history)
            logits[row, 0, self.script(history)] = 1.0
        return SimpleNamespace(logits=logits)


def replies(table: dict[str, str], *, prompt: int) -> Script:
    """After the latest cue of `table` in the text comes, token by token, what the table says, and then the end.

    The cue "" is the beginning of the text.
    """
    tokenizer = tiny_tokenizer()

    def script(history: list[int]) -> int:
        text = tokenizer.decode(history[prompt:])
        cue = max(table, key=lambda cue: text.rfind(cue) if cue else -0.5)
        said = text[text.rfind(cue) + len(cue) :] if cue else text
        if cue and cue not in text:
            cue, said = "", text
        if not table[cue].startswith(said):
            return END
        rest = table[cue][len(said) : len(said) + 40]
        return int(tokenizer(rest, add_special_tokens=False)["input_ids"][0]) if rest else END

    return script
