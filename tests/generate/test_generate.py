"""Decoding against transformers' own, and what a request may rely on."""

from __future__ import annotations

import pytest
import torch
from transformers import MambaConfig, PreTrainedModel

from lowmem.config.generation import GenerationConfig
from lowmem.errors import ConfigError, FormatError
from lowmem.generate.generate import Answer, generate_answers, generate_batch, stream
from lowmem.generate.tokens import end_tokens
from lowmem.models.shapes import random_model
from tests.models.tiny import tiny_model, tiny_tokenizer

FAMILIES = ("opt", "llama", "qwen3", "gpt2", "mistral", "gemma3")
"""Learned positions, rotary, tied head, another layout, a sliding window of 8 tokens, windows in some layers."""
PROMPTS = ((10, 11, 12, 13, 14, 15, 16), (20,), (30, 31, 32), (200, 7, 9, 100))
GREEDY = GenerationConfig(max_new_tokens=24)
SAMPLED = GenerationConfig(max_new_tokens=16, temperature=0.9, top_p=0.95, seed=3)


def by_transformers(model: PreTrainedModel, prompts: tuple[tuple[int, ...], ...], count: int) -> list[list[int]]:
    """Left-padded greedy `generate`, cut at the end-of-text token."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=count, do_sample=False)
    rows = out[:, longest:].tolist()
    return [row[: row.index(1)] if 1 in row else row for row in rows]


def answers(model: PreTrainedModel, prompts: tuple[tuple[int, ...], ...], config: GenerationConfig) -> list[Answer]:
    return generate_answers(model, tiny_tokenizer(), prompts, config)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_for_one_prompt(family: str) -> None:
    model = tiny_model(family)
    for prompt in PROMPTS:
        assert [list(a.tokens) for a in answers(model, (prompt,), GREEDY)] == by_transformers(model, (prompt,), 24)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_for_a_left_padded_batch(family: str) -> None:
    model = tiny_model(family)
    ours = [list(a.tokens) for a in answers(model, PROMPTS, GREEDY)]
    assert ours == by_transformers(model, PROMPTS, 24)
    assert len({tuple(row) for row in ours}) == len(PROMPTS), "the prompts must lead to different answers"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_does_not_depend_on_its_neighbours(family: str) -> None:
    model = tiny_model(family)
    together = answers(model, PROMPTS, SAMPLED)
    alone = [answers(model, (prompt,), SAMPLED)[0] for prompt in PROMPTS]
    assert together == alone


def test_rows_that_end_early_leave_the_others_as_they_were() -> None:
    model = tiny_model("llama")
    full = answers(model, PROMPTS, GREEDY)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [1, full[0].tokens[3], full[2].tokens[7]]
    ended = answers(model, PROMPTS, GREEDY)
    assert ended[0].finish_reason == "stop"
    assert len(ended[0].tokens) <= 3
    for before, after in zip(full, ended, strict=True):
        assert before.tokens[: len(after.tokens)] == after.tokens


def test_every_end_token_of_the_configs_and_the_tokenizer_counts() -> None:
    model, tokenizer = tiny_model("qwen3"), tiny_tokenizer()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [7, 8]
    model.config.eos_token_id = 9
    assert end_tokens(model, tokenizer) == {1, 7, 8, 9}


def test_different_seeds_draw_different_answers_and_the_same_seed_the_same() -> None:
    model, tokenizer = tiny_model("qwen3"), tiny_tokenizer()
    prompt = [PROMPTS[0]] * 3
    drawn = generate_batch(model, tokenizer, prompt, SAMPLED, seeds=[1, 2, 1])
    assert drawn[0] == drawn[2] != drawn[1]


def test_streamed_pieces_join_to_the_batch_answer() -> None:
    model, tokenizer = tiny_model("qwen3"), tiny_tokenizer()
    for seed in range(4):
        pieces = list(stream(model, tokenizer, "the cat", SAMPLED, seed=seed))
        assert all(pieces)
        assert "".join(pieces) == generate_batch(model, tokenizer, ["the cat"], SAMPLED, seeds=[seed])[0]


def test_text_is_the_decoded_tokens() -> None:
    model, tokenizer = tiny_model("qwen3"), tiny_tokenizer()
    for answer in answers(model, PROMPTS, SAMPLED):
        assert answer.text == tokenizer.decode(list(answer.tokens), skip_special_tokens=True)


def test_generation_stops_before_a_stop_string() -> None:
    model, tokenizer = tiny_model("qwen3"), tiny_tokenizer()
    text = generate_batch(model, tokenizer, ["one two"], SAMPLED)[0]
    stop = text[5:7]
    config = SAMPLED.model_copy(update={"stop": (stop,)})
    answer = generate_answers(model, tokenizer, ["one two"], config)[0]
    assert answer.text == text[: text.index(stop)]
    assert answer.finish_reason == "stop"
    assert len(answer.tokens) < SAMPLED.max_new_tokens


def test_generation_ends_where_the_models_positions_end() -> None:
    model = tiny_model("opt")
    prompt = tuple(range(10, 134 - 10))
    (answer,) = answers(model, (prompt,), GenerationConfig(max_new_tokens=50))
    assert len(answer.tokens) <= 128 - len(prompt)


def test_a_prompt_longer_than_the_model_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match="the prompt has 128 tokens and the model reads at most 128"):
        answers(tiny_model("opt"), (tuple([5] * 128),), GREEDY)


def test_an_empty_prompt_starts_from_the_end_token_or_is_refused() -> None:
    model, tokenizer = tiny_model("qwen3"), tiny_tokenizer()
    assert generate_answers(model, tokenizer, [""], GREEDY) == answers(model, ((1,),), GREEDY)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="prompt is empty and the tokenizer has no begin-of-text token"):
        generate_batch(model, tokenizer, [""], GREEDY)


def test_generating_inside_training_neither_sees_dropout_nor_changes_modes() -> None:
    model = tiny_model("opt")
    expected = answers(model, PROMPTS, GREEDY)
    model.train()
    model.model.decoder.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert answers(model, PROMPTS, GREEDY) == expected
    assert [module.training for module in model.modules()] == modes


def test_no_prompts_give_no_answers() -> None:
    assert generate_batch(tiny_model("qwen3"), tiny_tokenizer(), [], GREEDY) == []


def test_a_model_without_a_cache_or_without_positions_is_refused() -> None:
    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}
    mamba = random_model(MambaConfig(**sizes), dtype=torch.float32, attn_implementation="eager")
    for model in (mamba, tiny_model("bloom")):
        with pytest.raises(FormatError, match=f"{type(model).__name__} takes no explicit positions or no key-value"):
            generate_batch(model, tiny_tokenizer(), [[5, 6]], GREEDY)
