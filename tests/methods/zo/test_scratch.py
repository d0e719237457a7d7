from __future__ import annotations

import torch

from lowmem.methods.zo.scratch import ALIGNMENT, Scratch, padded_bytes


def test_tensors_pushed_together_do_not_overlap_and_are_reused_after_a_pop() -> None:
    like = torch.empty(0, dtype=torch.bfloat16)
    scratch = Scratch(padded_bytes([torch.empty(3, 5, dtype=torch.bfloat16), torch.empty(7, dtype=torch.float32)]))
    mark = scratch.mark
    first = scratch.push((3, 5), like).fill_(1)
    second = scratch.push((7,), torch.empty(0)).fill_(2)
    assert (first == 1).all()
    assert (second == 2).all()
    assert second.data_ptr() % ALIGNMENT == first.data_ptr() % ALIGNMENT
    scratch.pop(mark)
    assert scratch.push((3, 5), like).data_ptr() == first.data_ptr()


def test_what_does_not_fit_gets_memory_of_its_own() -> None:
    scratch = Scratch(64)
    small = scratch.push((16,), torch.empty(0)).fill_(1)
    large = scratch.push((1000,), torch.empty(0)).fill_(2)
    assert (small == 1).all()
    assert large.untyped_storage().data_ptr() != small.untyped_storage().data_ptr()


def test_release_gives_the_block_back() -> None:
    scratch = Scratch(64)
    before = scratch.push((4,), torch.empty(0)).untyped_storage()
    scratch.release()
    assert scratch.mark == 0
    assert scratch.push((4,), torch.empty(0)).untyped_storage()._cdata != before._cdata
