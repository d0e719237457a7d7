from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lowmem.config.dataset import (
    AlpacaData,
    AutoData,
    CompletionData,
    MessagesData,
    ProceduralData,
    QaData,
    TaskData,
    TextData,
)
from lowmem.data import dataset as dataset_module
from lowmem.data.dataset import EncodedDataset, open_dataset
from lowmem.data.preview import preview
from lowmem.data.procedural import generate
from lowmem.data.samples import Example
from lowmem.errors import DataError
from tests.data.conftest import Heard

Write = Callable[..., str]
PAIRS = [{"prompt": f"What is {n}?", "completion": f" The answer is {n}"} for n in range(30)]


def _shown(dataset: EncodedDataset, index: int, tokenizer: PreTrainedTokenizerFast) -> str:
    return preview(dataset[index], tokenizer).partition("\n")[2]


def test_completion_dataset_shows_what_is_trained(jsonl: Write, plain: PreTrainedTokenizerFast) -> None:
    dataset = open_dataset(CompletionData(path=jsonl(PAIRS)), tokenizer=plain, max_length=64)
    assert (len(dataset), dataset.name, dataset.kind, dataset.verifier) == (30, "train", "tokens", None)
    assert _shown(dataset, 7, plain) == "What is 7?⟦ The answer is 7<eos>⟧"
    assert preview(dataset[7], plain).startswith(dataset[7].where + ": ")
    assert dataset[7].where.endswith("train.jsonl:8")


def test_auto_names_the_format_it_chose(jsonl: Write, plain: PreTrainedTokenizerFast, heard: Heard) -> None:
    rows = [{"question": "2+2?", "answer": "Add.\n#### 4"}]
    dataset = open_dataset(AutoData(path=jsonl(rows)), tokenizer=plain, max_length=64, sink=heard)
    assert dataset.verifier == "gsm8k"
    assert "recognised as format: completion, prompt_column: 'question', completion_column: 'answer'" in heard.text


def test_limit_draws_the_same_rows_for_the_same_seed(jsonl: Write, plain: PreTrainedTokenizerFast) -> None:
    path = jsonl(PAIRS)

    def drawn(seed: int) -> list[str]:
        section = CompletionData(path=path, limit=5, shuffle_seed=seed)
        dataset = open_dataset(section, tokenizer=plain, max_length=64)
        return [dataset[n].where for n in range(len(dataset))]

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(6)}) > 1
    assert len(set(drawn(1))) == 5


def test_limit_above_the_size_is_told(jsonl: Write, plain: PreTrainedTokenizerFast, heard: Heard) -> None:
    section = CompletionData(path=jsonl(PAIRS), limit=31)
    assert len(open_dataset(section, tokenizer=plain, max_length=64, sink=heard)) == 30
    assert heard.messages == ["train: limit 31 exceeds its 30 rows; all are used"]


def test_cut_answers_and_prompts_are_counted(jsonl: Write, plain: PreTrainedTokenizerFast, heard: Heard) -> None:
    rows = [*PAIRS[:2], {"prompt": "Q" * 60, "completion": "A"}, {"prompt": "Q", "completion": "x" * 60}]
    open_dataset(CompletionData(path=jsonl(rows)), tokenizer=plain, max_length=40, sink=heard)
    assert "train: 1 of 4 rows have an answer longer than max_length=40; its end is cut off" in heard.text
    assert "train: 1 of 4 rows have a prompt that is cut to fit max_length=40" in heard.text


def test_empty_answers_are_counted(jsonl: Write, plain: PreTrainedTokenizerFast, heard: Heard) -> None:
    rows = [*PAIRS[:2], {"prompt": "Q", "completion": " "}]
    open_dataset(CompletionData(path=jsonl(rows)), tokenizer=plain, max_length=40, sink=heard)
    assert heard.messages == ["train: 1 of 3 rows have an empty answer; they teach to say nothing"]
    heard.messages.clear()
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]
    open_dataset(MessagesData(path=jsonl([{"messages": turns}])), tokenizer=plain, max_length=40, sink=heard)
    assert "1 of 1 rows have an empty answer" in heard.text


def test_rows_are_tokenized_on_access_only(
    jsonl: Write, plain: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "SURVEY_ROWS", 4)
    encoded: list[str] = []

    def counted(*arguments: Any) -> Example:
        encoded.append(arguments[3])
        return original(*arguments)

    original = dataset_module.encode_sample
    monkeypatch.setattr(dataset_module, "encode_sample", counted)
    dataset = open_dataset(CompletionData(path=jsonl(PAIRS)), tokenizer=plain, max_length=64)
    assert len(encoded) == 4
    assert dataset[29] is dataset[29]
    assert len(encoded) <= 5


def test_survey_ranks_by_length(jsonl: Write, plain: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "Q", "completion": "x" * n} for n in (3, 9, 1, 9)]
    dataset = open_dataset(CompletionData(path=jsonl(rows)), tokenizer=plain, max_length=64)
    assert dataset.survey.longest(3) == [1, 3, 0]


def test_index_outside_is_refused(jsonl: Write, plain: PreTrainedTokenizerFast) -> None:
    dataset = open_dataset(CompletionData(path=jsonl(PAIRS)), tokenizer=plain, max_length=64)
    with pytest.raises(IndexError, match="train has 30 examples, not an example 30"):
        dataset[30]


def test_alpaca_uses_the_chat_template_where_there_is_one(
    jsonl: Write, chat: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast, heard: Heard
) -> None:
    section = AlpacaData(path=jsonl([{"instruction": "Add.", "input": "", "output": "four"}]))
    dataset = open_dataset(section, tokenizer=chat, max_length=64, sink=heard)
    assert heard.messages == []
    assert _shown(dataset, 0, chat) == "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n⟦four<|im_end|>⟧"
    dataset = open_dataset(section, tokenizer=plain, max_length=256, sink=heard)
    assert heard.messages == ["train: the tokenizer has no chat template; lowmem's plain wording is used"]
    assert _shown(dataset, 0, plain).endswith("### Answer:\n⟦four<eos>⟧")


def test_training_on_prompts_marks_all_but_the_first_token(jsonl: Write, plain: PreTrainedTokenizerFast) -> None:
    section = CompletionData(path=jsonl([{"prompt": "It was", "completion": " great"}]))
    dataset = open_dataset(section, tokenizer=plain, max_length=64, train_on_prompt=True)
    assert _shown(dataset, 0, plain) == "It⟦ was great<eos>⟧"


def test_task_of_one_token_options(jsonl: Write, plain: PreTrainedTokenizerFast) -> None:
    rows = [{"sentence": "a mess", "label": 0}, {"sentence": "a gem", "label": 1}]
    dataset = open_dataset(TaskData(path=jsonl(rows), task="sst2"), tokenizer=plain, max_length=64)
    assert (dataset.name, dataset.kind, dataset.verifier) == ("sst2", "options", None)
    assert [dataset[n].gold for n in range(2)] == [0, 1]
    assert _shown(dataset, 1, plain) == "a gem It was →  terrible | ⟦ great⟧"


def test_task_of_longer_options(jsonl: Write, plain: PreTrainedTokenizerFast) -> None:
    row = {"premise": "It rained.", "question": "effect", "choice1": "The cat sat.", "choice2": "I slept.", "label": 1}
    dataset = open_dataset(TaskData(path=jsonl([row]), task="copa"), tokenizer=plain, max_length=64)
    assert dataset[0].option_ids is None
    assert _shown(dataset, 0, plain) == "wrong: It rained so⟦ the cat sat.⟧\nright: It rained so⟦ I slept.⟧"


def test_qa_prompt_loses_its_context_first(jsonl: Write, plain: PreTrainedTokenizerFast) -> None:
    row = {"context": "It was great. " * 30, "question": "Yes or No?", "answers": {"text": ["Yes"]}}
    dataset = open_dataset(QaData(path=jsonl([row])), tokenizer=plain, max_length=60)
    shown = _shown(dataset, 0, plain)
    assert shown.startswith("Context: ")
    assert shown.endswith("\nQuestion: Yes or No?\nAnswer:⟦ Yes<eos>⟧")
    assert dataset.verifier == "qa"


def test_procedural_problems_bring_their_verifier(plain: PreTrainedTokenizerFast) -> None:
    dataset = open_dataset(ProceduralData(family="add", size=5, data_seed=2), tokenizer=plain, max_length=200)
    problem = generate("add", 3, 2)
    assert _shown(dataset, 3, plain) == f"{problem.prompt}⟦{problem.completion}<eos>⟧"
    item = dataset[3].evaluation
    assert item is not None
    assert (item.verifier, item.references, item.prompt) == ("add", (problem.answer,), problem.prompt)
    assert (len(dataset), dataset.name, dataset[3].where) == (5, "add", "add, problem 3 of seed 2")


DOCUMENTS = [{"text": "It was great."}, {"text": ""}, {"text": "The cat sat on the mat because it was tired."}]


def test_text_is_packed_for_architectures_that_keep_documents_apart(
    jsonl: Write, plain: PreTrainedTokenizerFast, heard: Heard
) -> None:
    section = TextData(path=jsonl(DOCUMENTS))
    packed = open_dataset(section, tokenizer=plain, max_length=200, sink=heard, model_type="llama")
    assert heard.messages == []
    assert len(packed) == 1
    assert _shown(packed, 0, plain) == ("It⟦ was great.<eos>⟧The⟦ cat sat on the mat because it was tired.<eos>⟧")
    apart = open_dataset(section, tokenizer=plain, max_length=200, sink=heard, model_type="opt")
    assert [_shown(apart, n, plain) for n in range(len(apart))] == [
        "It⟦ was great.<eos>⟧",
        "The⟦ cat sat on the mat because it was tired.<eos>⟧",
    ]
    assert heard.messages == ["train: documents are not packed: this model would see across their borders"]


def test_limit_of_text_counts_rows(tmp_path: Path, plain: PreTrainedTokenizerFast) -> None:
    (tmp_path / "book.txt").write_text("The cat sat on the mat.\n" * 50)
    section = TextData(path=str(tmp_path / "book.txt"), limit=3)
    dataset = open_dataset(section, tokenizer=plain, max_length=16, model_type="qwen3")
    assert (len(dataset), {dataset[n].length for n in range(3)}) == (3, {16})


def test_text_without_anything_to_predict_is_refused(jsonl: Write, plain: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl: no row of text has two tokens or more"):
        open_dataset(TextData(path=jsonl([{"text": " "}])), tokenizer=plain, max_length=16)


def test_packed_row_of_borders_only_is_refused(jsonl: Write, plain: PreTrainedTokenizerFast) -> None:
    """a, b, <eos> | a, <eos> | b, <eos> in rows of two: the third holds an end and a beginning."""
    section = TextData(path=jsonl([{"text": "ab"}, {"text": "a"}, {"text": "b"}]))
    with pytest.raises(DataError, match=r"packed row 3: nothing in this row would be trained: raise max_length=2"):
        open_dataset(section, tokenizer=plain, max_length=2, model_type="llama")


DATA = Path("../shared/data")
REAL: list[tuple[Any, int]] = [
    (AutoData(path="gsm8k/train.jsonl"), 7473),
    (AutoData(path="instructions/alpaca_1100.jsonl"), 1100),
    (TaskData(path="sst2", task="sst2", split="validation"), 872),
    (TaskData(path="superglue/rte/validation.jsonl", task="rte"), 277),
    (TaskData(path="superglue/cb/train.jsonl", task="cb"), 32),
    (TaskData(path="superglue/copa/validation.jsonl", task="copa"), 100),
    (TaskData(path="superglue/wsc/dev32.jsonl", task="wsc"), 32),
    (AutoData(path="wikitext2/validation.txt", limit=50), 50),
    (AutoData(path="shakespeare", limit=50), 50),
]


@pytest.mark.slow
@pytest.mark.skipif(not (Path(__file__).parents[2] / DATA).is_dir(), reason="needs the folder of real data sets")
@pytest.mark.parametrize(("section", "size"), REAL, ids=[section.path for section, _ in REAL])
def test_real_data_sets_open(section: Any, size: int, repository: Path, chat: PreTrainedTokenizerFast) -> None:
    section = section.model_copy(update={"path": str(repository / DATA / section.path)})
    dataset = open_dataset(section, tokenizer=chat, max_length=256, model_type="llama")
    assert len(dataset) == size
    assert dataset[size - 1].rows
    assert json.dumps(preview(dataset[0], chat))


@pytest.mark.slow
def test_real_tokenizer_keeps_its_promises(jsonl: Write) -> None:
    from lowmem.data.encoder import Encoder
    from lowmem.models.load import load_tokenizer
    from lowmem.models.source import ModelSource

    tokenizer = load_tokenizer(ModelSource("smollm2-135m-instruct"))
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It was great."}]
    dataset = open_dataset(MessagesData(path=jsonl([{"messages": turns * 2}])), tokenizer=tokenizer, max_length=128)
    assert _shown(dataset, 0, tokenizer).count("⟦It was great.<|im_end|>⟧") == 2
    rows = [{"sentence": "a gem", "label": 1}]
    task = open_dataset(TaskData(path=jsonl(rows), task="sst2"), tokenizer=tokenizer, max_length=64)
    assert task[0].option_ids == tuple(Encoder(tokenizer).encode(" terrible great"))
