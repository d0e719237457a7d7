from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lowmem.data.batch import IGNORE, Batch
from lowmem.errors import FormatError
from lowmem.models.loss import ModelLoss
from tests.tiny import ARCHITECTURES, lm_batch, option_batch, tiny_model, tokens


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunked_loss_equals_the_models_own_loss(architecture: str) -> None:
    model = tiny_model(architecture)
    batch = lm_batch()
    own = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    sums = ModelLoss(model, chunk_tokens=5)(batch)
    torch.testing.assert_close((sums.total / sums.counts.sum()).float(), own, rtol=1e-5, atol=1e-6)
    ModelLoss(model).check(tokens(1, 6))


def test_gradients_do_not_depend_on_the_chunk_size() -> None:
    batch, gradients = lm_batch(), []
    for chunk in (1, 7, 10_000):
        model = tiny_model()
        ModelLoss(model, chunk_tokens=chunk)(batch).total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("weights", "runs"), [((1.0, 1.0, 1.0, 1.0), 1), ((1.0, 2.0, 3.0, 4.0), 2)])
def test_a_head_runs_once_where_all_tokens_count_the_same(weights: tuple[float, ...], runs: int) -> None:
    """A frozen one always: its gradients need no sum over tokens. Both give the gradients of the plain computation."""
    batch, heads, others, calls = lm_batch(rows=4), [], [], []
    for frozen in (False, True):
        model = tiny_model("gemma2", tie_word_embeddings=False)  # caps its logits
        head = model.get_output_embeddings().requires_grad_(not frozen)
        seen: list[int] = []
        head.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        (ModelLoss(model, chunk_tokens=7)(batch).per_example * torch.tensor(weights)).sum().backward()
        heads.append(head.weight.grad)
        others.append(model.model.layers[0].mlp.up_proj.weight.grad)
        calls.append(len(seen))
    expected = tiny_model("gemma2", tie_word_embeddings=False)
    logits = expected(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    nll = F.cross_entropy(logits.transpose(1, 2), batch.labels[:, 1:], reduction="none", ignore_index=IGNORE)
    (nll.sum(1) * torch.tensor(weights)).sum().backward()
    torch.testing.assert_close(heads[0], expected.lm_head.weight.grad, rtol=1e-4, atol=1e-6)
    for gradient in others:
        torch.testing.assert_close(gradient, expected.model.layers[0].mlp.up_proj.weight.grad, rtol=1e-4, atol=1e-6)
    assert heads[1] is None
    assert calls[0] == runs * calls[1]


def test_backward_may_come_twice() -> None:
    model, batch = tiny_model(), lm_batch()
    total = ModelLoss(model, chunk_tokens=7)(batch).total
    total.backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters()]
    total.backward()
    for gradient, parameter in zip(once, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient, rtol=1e-4, atol=1e-6)


def test_a_micro_batch_without_trained_tokens_has_gradients_of_zero() -> None:
    model, batch = tiny_model(), lm_batch()
    nothing = Batch(batch.input_ids, batch.attention_mask, torch.full_like(batch.labels, IGNORE))
    ModelLoss(model)(nothing).total.backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_sums_and_counts_are_per_example() -> None:
    model, batch = tiny_model(), lm_batch(rows=3)
    together = ModelLoss(model)(batch)
    assert batch.attention_mask is not None
    for row in range(3):
        alone = ModelLoss(model)(
            Batch(
                batch.input_ids[row : row + 1],
                batch.attention_mask[row : row + 1],
                batch.labels[row : row + 1],
            )
        )
        torch.testing.assert_close(together.per_example[row], alone.per_example[0], rtol=1e-5, atol=1e-6)
    expected = (batch.labels[:, 1:] != IGNORE).sum(1).float()
    assert torch.equal(together.counts, expected)
    assert batch.weight == int(expected.sum())


def test_one_token_options_score_like_the_full_softmax() -> None:
    model, batch = tiny_model(), option_batch(one_token=True)
    scores = ModelLoss(model).option_scores(batch)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids).logits[:, -1].log_softmax(-1)
    torch.testing.assert_close(scores, logits[:, [5, 6]], rtol=1e-5, atol=1e-6)


def test_option_rows_score_by_mean_token_log_probability() -> None:
    model, batch = tiny_model(), option_batch(one_token=False)
    sums = ModelLoss(model)(batch)
    with torch.no_grad():
        logp = model(input_ids=batch.input_ids).logits.log_softmax(-1)
    assert batch.options is not None
    scores = torch.empty(3, 2)
    for row in range(6):
        scores[row // 2, row % 2] = sum(logp[row, t - 1, batch.input_ids[row, t]] for t in (8, 9)) / 2
    torch.testing.assert_close(sums.per_example, F.cross_entropy(scores, batch.options.gold, reduction="none"))
    assert batch.weight == 3


def test_logits_that_are_changed_after_the_head_are_refused() -> None:
    model = tiny_model()
    forward = model.forward

    def doubled(**inputs: object) -> object:
        output = forward(**inputs)
        output.logits = output.logits * 2
        return output

    model.forward = doubled
    with pytest.raises(FormatError, match="changes its logits after the head"):
        ModelLoss(model).check(tokens(1, 6))


def test_models_without_a_head_are_refused() -> None:
    with pytest.raises(FormatError, match="has no output head"):
        ModelLoss(tiny_model().base_model)


def test_option_scores_need_a_task() -> None:
    with pytest.raises(ValueError, match="classification task"):
        ModelLoss(tiny_model()).option_scores(lm_batch())


def test_an_adapter_around_the_head_sees_its_true_output_gradients() -> None:
    """Rules with a metric of tokens observe them there."""
    batch, seen = lm_batch(), []
    model = tiny_model(tie_word_embeddings=False)
    head = torch.nn.Sequential(model.lm_head, torch.nn.Linear(96, 96, bias=False))
    model.set_output_embeddings(head)
    head.register_full_backward_hook(lambda _, __, grads: seen.append(grads[0]))
    (ModelLoss(model, chunk_tokens=7)(batch).total / 5).backward()
    found = torch.cat([g.flatten(0, -2) for g in seen])
    hidden = model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state[:, :-1]
    logits = head(hidden)[batch.labels[:, 1:] != IGNORE].detach().requires_grad_()
    F.cross_entropy(logits, batch.labels[:, 1:][batch.labels[:, 1:] != IGNORE], reduction="sum").div(5).backward()
    assert logits.grad is not None
    torch.testing.assert_close(found.sum(0), logits.grad.sum(0), rtol=1e-4, atol=1e-6)
