"""A run whose activations are larger than planned: a hook holds memory in proportion to the micro-batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lowmem.config.load import load_run
from lowmem.errors import BudgetError, OutOfMemoryError
from lowmem.events import Event, Notice, StepDone
from lowmem.jobs import train as job
from lowmem.jobs.plan import this_device
from lowmem.train.limits import HALVINGS, Halvings
from tests.jobs.test_train import write_config
from tests.models.tiny import save_tiny

HELD_PER_ROW = 2**20
HELD_PER_TOKEN = 2**17


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def hungry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every forward of the input embedding holds 1 MiB per row, and more for long rows, until the next forward."""
    load = job.load_model

    def load_hungry(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        held: list[torch.Tensor] = []

        def hold(module: Any, args: Any, output: torch.Tensor) -> None:
            rows, tokens = output.shape[:2]
            nbytes = max(HELD_PER_ROW, (tokens - 24) * HELD_PER_TOKEN)
            held[:] = [torch.empty(rows * nbytes, dtype=torch.uint8)]

        loaded.model.get_input_embeddings().register_forward_hook(hold)
        return loaded

    monkeypatch.setattr(job, "load_model", load_hungry)


def budget(tensors: int, *, adapters: bool = True) -> str:
    """A budget that leaves `tensors` bytes besides the process itself."""
    return str(this_device("cpu").bill(tensors, adapters=adapters))


def run(folder: Path, model: Path, **changes: Any) -> tuple[list[float], list[str]]:
    """Losses by step and notices."""
    folder.mkdir()
    events: list[Event] = []
    settings = {
        "max_steps": 6,
        "save_steps": None,
        "eval_steps": None,
        "gradient_accumulation_steps": 1,
        "eval_dataset": [],
        "max_length": 32,
    }
    path = write_config(folder, model, **(settings | changes))
    job.train(load_run(path).config, sink=events.append)
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    return losses, [event.message for event in events if isinstance(event, Notice)]


@pytest.mark.parametrize("method", [{"kind": "lora", "lora_r": 4}, {"kind": "zo"}])
def test_the_micro_batch_is_halved_and_the_loss_curve_stays(
    tmp_path: Path, model: Path, hungry: None, method: dict[str, Any]
) -> None:
    base: dict[str, Any] = {"method": method}
    limit = budget(4 * HELD_PER_ROW - 1, adapters=method["kind"] == "lora")
    tight, notices = run(tmp_path / "tight", model, per_device_train_batch_size=4, memory_budget=limit, **base)
    small, _ = run(
        tmp_path / "small", model, per_device_train_batch_size=2, **base | {"gradient_accumulation_steps": 2}
    )
    assert any("micro-batches of at most 2" in notice for notice in notices)
    assert tight == pytest.approx(small, rel=1e-5)


def test_checkpointing_comes_after_the_halvings_and_then_the_bill(tmp_path: Path, model: Path, hungry: None) -> None:
    enough_by_plan = HELD_PER_ROW  # the plan knows nothing of what the hook holds for even one row
    with pytest.raises(
        OutOfMemoryError, match=r"the longest batch: live tensors need .* of a budget of .*nothing lossless is left"
    ):
        run(tmp_path / "run", model, per_device_train_batch_size=2, memory_budget=budget(enough_by_plan))
    records = (tmp_path / "run" / "run" / "metrics.jsonl").read_text()
    assert 0 < records.index("going on with micro-batches of at most 1") < records.index("gradient_checkpointing: true")


def test_a_long_row_late_in_the_data_is_met_before_the_first_step(tmp_path: Path, model: Path, hungry: None) -> None:
    """Sixty short rows, of which the only step trains one, and a long one that alone outgrows the budget."""
    rows = [{"prompt": "the cat", "completion": " sat"} for _ in range(60)]
    rows.append({"prompt": "the cat", "completion": " sat on the mat" * 15})
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [{"format": "completion", "path": str(tmp_path / "long.jsonl")}]
    tight: dict[str, Any] = {"memory_budget": budget(4 * HELD_PER_ROW), "per_device_train_batch_size": 1}
    with pytest.raises(OutOfMemoryError, match="the longest batch: live tensors need"):
        run(tmp_path / "long", model, dataset=data, max_steps=1, max_length=64, **tight)
    assert "StepDone" not in (tmp_path / "long" / "run" / "metrics.jsonl").read_text()
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    losses, _ = run(tmp_path / "short", model, dataset=data, max_steps=1, max_length=64, **tight)
    assert len(losses) == 1


def test_a_micro_batch_is_halved_at_most_three_times() -> None:
    sizes = iter([32, 16, 8, 4, 2])
    halvings = Halvings(lambda: next(sizes))
    said = [halvings() for _ in range(5)]
    assert [text.split(",")[0] for text in said if text] == [f"micro-batches of at most {n}" for n in (32, 16, 8)]
    assert said[HALVINGS:] == [None, None]


def test_a_budget_that_nothing_fits_is_refused_with_the_bill_before_loading(tmp_path: Path, model: Path) -> None:
    with pytest.raises(BudgetError, match="nothing that the config allows fits"):
        run(tmp_path / "run", model, memory_budget="10MiB")
    assert not (tmp_path / "run" / "run").exists()


def test_a_run_that_conceded_resumes_with_its_concessions(tmp_path: Path, model: Path, hungry: None) -> None:
    tight: dict[str, Any] = {"memory_budget": budget(4 * HELD_PER_ROW - 1), "per_device_train_batch_size": 4}
    whole, _ = run(tmp_path / "whole", model, save_steps=3, **tight)
    settings = {
        "save_steps": 3,
        "max_steps": 6,
        "eval_steps": None,
        "gradient_accumulation_steps": 1,
        "eval_dataset": [],
        "max_length": 32,
    }
    (tmp_path / "part").mkdir()
    path = write_config(tmp_path / "part", model, **settings, **tight)

    class Killed(BaseException):
        """Stands for a crash."""

    def kill(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 4:
            raise Killed

    with pytest.raises(Killed):
        job.train(load_run(path).config, sink=kill)
    rest: list[Event] = []
    job.train(load_run(path).config, sink=rest.append, resume=True)
    assert [event.loss for event in rest if isinstance(event, StepDone)] == whole[3:]
    assert not any("micro-batches" in event.message for event in rest if isinstance(event, Notice))
