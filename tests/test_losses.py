"""Advantages and the clipped loss against direct formulas and the papers' numbers."""

import math

import pytest
import torch

from ranker.losses import (cohort_advantages, explained_variance, gae, kl_terms, leave_one_out, live, policy_loss,
                           returns_to_go, value_loss, whiten)

R = torch.tensor([1, 0, 0.5, 0.2])
ONE = torch.zeros(4, dtype=torch.long)
NAN = float("nan")


def test_advantages_are_mean_only_or_divided_by_the_population_deviation():
    torch.testing.assert_close(cohort_advantages(R, ONE), R - 0.425)
    expected = torch.tensor([1.526564, -1.128330, 0.199117, -0.597351])
    torch.testing.assert_close(cohort_advantages(R, ONE, "std"), expected, atol=1e-3, rtol=0)
    assert cohort_advantages(R, ONE).sum().abs() < 1e-6


def test_mean_only_is_leave_one_out_up_to_its_constant():
    expected = torch.tensor([0.766667, -0.566667, 0.1, -0.3])
    torch.testing.assert_close(cohort_advantages(R, ONE) * 4 / 3, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(leave_one_out(R, ONE), expected, atol=1e-6, rtol=0)


def test_cohorts_of_any_size_and_order_are_compared_among_themselves_only():
    rewards, cohorts = torch.tensor([1.0, 5.0, 0.0, 3.0, 9.0, 0.5]), torch.tensor([0, 1, 0, 1, 2, 0])
    torch.testing.assert_close(cohort_advantages(rewards, cohorts), torch.tensor([0.5, 1.0, -0.5, -1.0, 0.0, 0.0]))
    assert live(rewards, cohorts, 1e-4).tolist() == [True, True, True, True, False, True]


def test_an_unscored_completion_is_left_out_of_the_mean_and_gets_advantage_zero():
    rewards = torch.tensor([1, NAN, 0.5, 0])
    torch.testing.assert_close(cohort_advantages(rewards, ONE), torch.tensor([0.5, 0, 0, -0.5]))
    assert live(rewards, ONE, 1e-4).tolist() == [True, False, True, True]
    assert not live(torch.tensor([NAN, NAN]), ONE[:2], 1e-4).any()


def test_a_cohort_is_dead_when_its_task_reward_spreads_less_than_epsilon():
    task = torch.tensor([1.0, 1.0, 1.0, 1.0 + 1e-6, 1.0, 0.99])
    assert live(task, torch.tensor([0, 0, 1, 1, 2, 2]), 1e-4).tolist() == [False, False, False, False, True, True]


def test_the_return_of_a_step_is_its_reward_and_those_that_follow_in_its_episode():
    rewards = torch.tensor([1.0, 0.0, NAN, 2.0, 5.0])  # episodes 0 -> 2 -> 4 and 1 -> 3
    returns = returns_to_go(rewards, [2, 3, 4, -1, -1])
    assert returns[[0, 1, 3, 4]].tolist() == [6.0, 2.0, 2.0, 5.0] and returns[2].isnan()
    assert returns_to_go(rewards, [-1] * 5)[[0, 1, 3, 4]].tolist() == [1.0, 0.0, 2.0, 5.0]


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (0.95, 0.9), (0.9, 0.0), (1.0, 0.5)])
def test_gae_and_returns_equal_the_direct_double_sum_on_padded_data(gamma, lam):
    torch.manual_seed(0)
    lengths = torch.tensor([6, 1, 4])
    mask = torch.arange(6) < lengths[:, None]
    # values beyond the mask are junk
    rewards, values = torch.randn(3, 6, dtype=torch.double) * mask, torch.randn(3, 6, dtype=torch.double)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for i, n in enumerate(lengths.tolist()):
        value = lambda t, i=i, n=n: values[i, t] if t < n else 0.0  # noqa: E731
        for t in range(n):
            direct = sum((gamma * lam) ** (s - t) * (rewards[i, s] + gamma * value(s + 1) - value(s))
                         for s in range(t, n))
            torch.testing.assert_close(advantages[i, t], direct)
            torch.testing.assert_close(returns[i, t], direct + values[i, t])
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_undiscounted_gae_of_a_final_reward_is_the_reward_minus_the_value():
    values = torch.tensor([[0.1, 0.4, 0.2]])
    advantages, returns = gae(torch.tensor([[0.0, 0.0, 1.0]]), values, torch.ones(1, 3), 1.0, 1.0)
    torch.testing.assert_close(advantages, 1 - values)
    torch.testing.assert_close(returns, torch.ones(1, 3))


def test_whitened_advantages_have_mean_zero_and_deviation_one_over_the_mask():
    values, mask = torch.randn(4, 5) * 3 + 2, torch.arange(5) < torch.tensor([5, 2, 3, 1])[:, None]
    white = whiten(values, mask)
    kept = white[mask]
    assert (kept.mean().abs() < 1e-5 and kept.std(unbiased=False) == pytest.approx(1, abs=1e-4)
            and not white[~mask].any())


def test_the_value_loss_is_clipped_around_the_old_value_and_takes_the_larger_error():
    old, returns, mask = torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 9.0]]), torch.tensor([[1, 1, 1, 0]])
    values = torch.tensor([[0.1, 0.9, 0.9, 5.0]]).requires_grad_()
    loss, sums = value_loss(values, old, returns, mask, 3.0, clip=0.2)
    assert loss.item() == pytest.approx((0.9**2 + 0.8**2 + 0.9**2) / 2 / 3) and sums["clip_value"] == 1
    gradient = torch.autograd.grad(loss, values)[0][0]
    assert gradient[0] < 0 and gradient[1] == 0 and gradient[2] > 0 and gradient[3] == 0


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one():
    returns = torch.tensor([0.0, 1.0, 3.0])
    assert (explained_variance(returns, returns) == 1
            and explained_variance(torch.full((3,), 7.0), returns) == pytest.approx(0))


def direct_loss(logprobs, old, advantages, mask, denominator, low, high, reference, beta, kind):
    """The formula token by token."""
    total = 0.0
    for i in range(len(logprobs)):
        for t in range(logprobs.shape[1]):
            if mask[i, t]:
                ratio = torch.exp(logprobs[i, t] - old[i, t])
                a = advantages[i, 0]
                surrogate = min(ratio * a, max(min(ratio, 1 + high), 1 - low) * a)
                d = logprobs[i, t] - reference[i, t]
                kl = d * d / 2 if kind == "k2" else ratio * (torch.exp(-d) + d - 1)
                total = total - surrogate + beta * kl
    return total / denominator


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_the_loss_and_its_gradient_equal_the_direct_formula_on_random_tensors(kind):
    torch.manual_seed(0)
    logprobs = (-torch.rand(5, 7, dtype=torch.double) * 3).requires_grad_()
    old, reference = (logprobs.detach() + 0.3 * torch.randn(5, 7, dtype=torch.double) for _ in range(2))
    advantages, lengths = torch.randn(5, 1, dtype=torch.double), torch.tensor([7, 3, 5, 1, 6])
    mask = torch.arange(7) < lengths[:, None]
    loss, sums = policy_loss(logprobs, old, advantages, mask, 22.0, clip_low=0.2, clip_high=0.28, reference=reference,
                             beta=0.1, kl=kind)
    expected = direct_loss(logprobs, old, advantages, mask, 22.0, 0.2, 0.28, reference, 0.1, kind)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logprobs)[0], torch.autograd.grad(expected, logprobs)[0])
    assert sums["clip_low"] + sums["clip_high"] > 0 and sums["kl"] > 0


def test_clipping_stops_the_gradient_on_the_side_that_went_far_enough():
    old = torch.zeros(1, 4)
    logprobs = torch.log(torch.tensor([[1.5, 0.5, 1.5, 0.5]])).requires_grad_()
    sign = torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    loss, sums = policy_loss(logprobs, old, sign, torch.ones(1, 4), 1.0)
    gradient = torch.autograd.grad(loss, logprobs)[0][0]
    assert gradient[0] == 0 and gradient[1] == 0 and gradient[2] == 1.5 and gradient[3] == -0.5
    assert (sums["clip_low"] == sums["clip_high"] == 1.0
            and sums["drift"] == pytest.approx(2 * (0.5 - math.log(1.5)) + 2 * (-0.5 - math.log(0.5))))


def kl_gradients(kind, samples=200_000):
    """Exact gradient of KL(policy, reference) on a categorical policy, and the mean gradient of the loss term on its
    samples."""
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.double).requires_grad_()
    reference = torch.randn(5, dtype=torch.double).log_softmax(0)
    policy = logits.log_softmax(0)
    exact = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)[0]
    tokens = torch.multinomial(policy.detach().exp(), samples, replacement=True,
                               generator=torch.Generator().manual_seed(1))
    chosen = policy[tokens][None]
    ratio = (chosen - chosen.detach()).exp()
    found = torch.autograd.grad(kl_terms(chosen, reference[tokens][None], ratio, kind).mean(), logits)[0]
    return exact, found


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_the_kl_term_has_the_gradient_of_kl_from_policy_to_reference(kind):
    exact, found = kl_gradients(kind)
    torch.testing.assert_close(found, exact, atol=0.01, rtol=0.02)


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_a_step_on_the_kl_term_pulls_the_policy_toward_the_reference_from_both_sides(kind):
    for start in (-1.0, -3.0):
        logprobs = torch.full((1, 1), start, requires_grad=True)
        reference = torch.full((1, 1), -2.0)
        loss, _ = policy_loss(logprobs, logprobs.detach(), torch.zeros(1, 1), torch.ones(1, 1), 1.0,
                              reference=reference, beta=1.0, kl=kind)
        gradient = torch.autograd.grad(loss, logprobs)[0].item()
        assert (gradient > 0) == (start > -2.0)  # descent lowers what is above the reference and raises what is below


def test_the_logged_kl_is_k3():
    logprobs = torch.tensor([[0.0, 0.1, -0.1, -0.5]])
    for i, value in enumerate((0.0, 0.004837, 0.005171, 0.148721)):
        one = logprobs[:, i:i + 1]
        assert (policy_loss(one, one, torch.zeros(1, 1), torch.ones(1, 1), 1.0, reference=torch.zeros(1, 1))[1]["kl"]
                == pytest.approx(value, abs=1e-6))


def test_one_micro_batch_of_eight_equals_eight_of_one():
    torch.manual_seed(0)
    logprobs = (-torch.rand(8, 6)).requires_grad_()
    mask = torch.arange(6) < torch.tensor([6, 1, 4, 2, 5, 3, 6, 2])[:, None]
    advantages, tokens = torch.randn(8, 1), mask.sum().item()
    whole = torch.autograd.grad(policy_loss(logprobs, logprobs.detach(), advantages, mask, tokens)[0], logprobs)[0]
    rows = [slice(i, i + 1) for i in range(8)]
    alone = [policy_loss(logprobs[i], logprobs[i].detach(), advantages[i], mask[i], tokens)[0] for i in rows]
    parts = sum(torch.autograd.grad(loss, logprobs)[0] for loss in alone)
    torch.testing.assert_close(whole, parts)
