"""The policy gradient over permutations: against the enumeration of all permutations of four."""

from itertools import permutations

import pytest
import torch

from ranker import losses, metrics, passes
from ranker.data import Answer, Completion
from ranker.objectives import plackett_luce

SCORES = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64)
RELEVANCE = torch.tensor([1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
ALL = torch.tensor(list(permutations(range(4))))  # [24, 4]


def test_the_probabilities_of_all_permutations_sum_to_one_and_are_those_of_the_definition():
    found = losses.plackett_luce(SCORES, ALL).exp()
    assert found.sum().item() == pytest.approx(1.0)
    for order, probability in zip(ALL.tolist(), found.tolist()):
        left, expected = list(range(4)), 1.0
        for item in order:
            expected *= (SCORES[item].exp() / SCORES[left].exp().sum()).item()
            left.remove(item)
        assert probability == pytest.approx(expected)


def test_drawn_permutations_are_distributed_so():
    drawn = losses.draw_permutations(SCORES, 60000, torch.Generator().manual_seed(0))
    counts = {tuple(order): 0 for order in ALL.tolist()}
    for order in drawn.tolist():
        counts[tuple(order)] += 1
    found = torch.tensor([counts[tuple(order)] for order in ALL.tolist()]) / len(drawn)
    torch.testing.assert_close(found.double(), losses.plackett_luce(SCORES, ALL).exp(), atol=0.006, rtol=0.0)


@pytest.mark.parametrize("k", [1, 2, 10])
def test_the_reward_is_the_ndcg_of_the_metrics(k):
    found = losses.ndcg_of(ALL, RELEVANCE, k)
    for order, value in zip(ALL.tolist(), found.tolist()):
        gains = [RELEVANCE[item].item() for item in order]
        assert value == pytest.approx(metrics.of(gains, names=[f"nDCG@{k}"])[f"nDCG@{k}"])


def exact_gradient(k):
    """d/ds of minus the expected nDCG@k, by enumeration."""
    scores = SCORES.clone().requires_grad_()
    (-(losses.plackett_luce(scores, ALL).exp() * losses.ndcg_of(ALL, RELEVANCE, k)).sum()).backward()
    return scores.grad


def batch_of(logprobs, relevance, seed):
    made = [Completion([1], [], "", True, Answer("ok")) for _ in relevance]
    for c, value in zip(made, relevance):
        c.signals = {"relevance": value[None]}
    return passes.Batch(made, [slice(0, len(made))], logprobs[:, None], None,
                        torch.ones(len(made), 1, dtype=torch.bool), 1, seed)


def test_the_gradient_is_on_average_that_of_the_expected_reward():
    """Unbiased, since the baseline of a permutation is the mean of the others."""
    options, found = plackett_luce.Options(permutations=8, k=3), torch.zeros(4, dtype=torch.float64)
    for seed in range(4000):
        scores = SCORES.clone().requires_grad_()
        loss, _ = plackett_luce.loss(batch_of(scores, RELEVANCE, seed), options)
        loss.backward()
        found += scores.grad / 4000
    torch.testing.assert_close(found, exact_gradient(3), atol=0.006, rtol=0.0)


def test_the_estimator_over_all_permutations_is_the_exact_gradient():
    """With every permutation weighed by its probability, sum p (r - b) grad log p is the gradient, whatever b is."""
    scores = SCORES.clone().requires_grad_()
    logprobs, rewards = losses.plackett_luce(scores, ALL), losses.ndcg_of(ALL, RELEVANCE, 3)
    (-(logprobs.detach().exp() * (rewards - 0.7) * logprobs).sum()).backward()
    torch.testing.assert_close(scores.grad, exact_gradient(3))


def test_steps_along_it_put_the_best_first():
    scores = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for step in range(300):
        loss, parts = plackett_luce.loss(batch_of(scores, RELEVANCE, step), plackett_luce.Options())
        loss.backward()
        with torch.no_grad():
            scores -= 0.5 * scores.grad
            scores.grad = None
    assert scores.argsort(descending=True).tolist() == [3, 0, 2, 1] and parts["drawn_reward"] > 0.9


def test_the_same_seed_draws_the_same():
    one, two, other = (plackett_luce.loss(batch_of(SCORES, RELEVANCE, seed), plackett_luce.Options())[0].item()
                       for seed in (3, 3, 4))
    assert one == two != other
