from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lowmem.batch.schedule import decide, need
from tests.batch.batches import GIB, entry


def test_jobs_start_beside_each_other_as_far_as_memory_allows() -> None:
    sizes = {"a": 1, "b": 1, "c": 2, "d": 3}
    entries = [entry(name, predicted_bytes=size * GIB) for name, size in sizes.items()]
    assert decide(entries, budget=4 * GIB, max_parallel=9).start == ("a", "b", "c")
    entries[:2] = [entry("a", state="running", predicted_bytes=GIB), entry("b", state="done")]
    assert decide(entries, budget=4 * GIB, max_parallel=9).start == ("c",)
    entries[2] = entry("c", state="done")
    assert decide(entries, budget=4 * GIB, max_parallel=9).start == ("d",)


def test_what_a_job_took_counts_where_it_is_more_than_its_plan() -> None:
    assert need(entry(predicted_bytes=5, peak_bytes=7)) == 7
    grown = [entry("a", state="running", predicted_bytes=GIB), entry("b", predicted_bytes=GIB, peak_bytes=4 * GIB)]
    assert decide(grown, budget=4 * GIB, max_parallel=9).start == ()
    assert decide(grown[1:], budget=3 * GIB, max_parallel=9).start == ("b",), "alone it ran before"


def test_what_waits_in_vain_is_blocked_down_the_whole_chain() -> None:
    entries = [entry("a", state="failed"), entry("b", after=("a",)), entry("c", after=("b",)), entry("d")]
    decision = decide(entries, budget=GIB, max_parallel=9)
    assert decision.block == {"b": "waits for a, which failed", "c": "waits for b, which is blocked itself"}
    assert decision.start == ("d",)
    assert decide(entries, budget=GIB, max_parallel=9, continue_on_error=False).start == ()
    assert decide(entries, budget=GIB, max_parallel=9, stopping=True).start == ()


@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["waiting", "running", "done", "failed"])), max_size=12),
    st.integers(9, 20),
    st.integers(1, 6),
)
def test_the_budget_and_the_slots_are_never_exceeded(jobs: list[tuple[int, str]], budget: int, slots: int) -> None:
    entries = [entry(str(i), predicted_bytes=size, state=state) for i, (size, state) in enumerate(jobs)]
    chosen = decide(entries, budget=budget, max_parallel=slots).start
    before = [e for e in entries if e.state == "running"]
    after = before + [e for e in entries if e.name in chosen]
    if sum(map(need, before)) <= budget:
        assert sum(map(need, after)) <= budget
    assert len(after) <= max(slots, len(before))
    if not before and any(e.state == "waiting" for e in entries):
        assert chosen, "something that can run does run"
