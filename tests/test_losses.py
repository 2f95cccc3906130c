"""Advantages and the clipped loss against direct formulas and the papers' numbers."""

import pytest
import torch

from ranker.losses import group_advantages, kl_terms, live_groups, policy_loss

R = torch.tensor([[1, 0, 0.5, 0.2]])


def test_advantages_are_mean_only_or_divided_by_the_population_deviation():
    torch.testing.assert_close(group_advantages(R), R - 0.425)
    expected = torch.tensor([[1.526564, -1.128330, 0.199117, -0.597351]])
    torch.testing.assert_close(group_advantages(R, "std"), expected, atol=1e-3, rtol=0)
    assert group_advantages(R).sum().abs() < 1e-6


def test_mean_only_is_leave_one_out_up_to_its_constant():
    torch.testing.assert_close(group_advantages(R) * 4 / 3, torch.tensor([[0.766667, -0.566667, 0.1, -0.3]]), atol=1e-6, rtol=0)


def test_an_unscored_completion_is_left_out_of_the_mean_and_gets_advantage_zero():
    nan = float("nan")
    torch.testing.assert_close(group_advantages(torch.tensor([[1, nan, 0.5, 0]])), torch.tensor([[0.5, 0, 0, -0.5]]))
    assert not live_groups(torch.tensor([[nan, nan]]), 1e-4).any()


def test_a_group_is_dead_when_its_task_reward_spreads_less_than_epsilon():
    task = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-6], [1.0, 0.99]])
    assert live_groups(task, 1e-4).tolist() == [False, False, True]


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
    loss, sums = policy_loss(logprobs, old, advantages, mask, 22.0, clip_low=0.2, clip_high=0.28, reference=reference, beta=0.1, kl=kind)
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
    assert sums == {"clip_low": 1.0, "clip_high": 1.0}


def kl_gradients(kind, samples=200_000):
    """Exact gradient of KL(policy, reference) on a categorical policy, and the mean gradient of the loss term on its samples."""
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.double).requires_grad_()
    reference = torch.randn(5, dtype=torch.double).log_softmax(0)
    policy = logits.log_softmax(0)
    exact = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)[0]
    tokens = torch.multinomial(policy.detach().exp(), samples, replacement=True, generator=torch.Generator().manual_seed(1))
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
        loss, _ = policy_loss(logprobs, logprobs.detach(), torch.zeros(1, 1), torch.ones(1, 1), 1.0, reference=reference, beta=1.0, kl=kind)
        gradient = torch.autograd.grad(loss, logprobs)[0].item()
        assert (gradient > 0) == (start > -2.0)  # descent lowers what is above the reference and raises what is below


def test_the_logged_kl_is_k3():
    logprobs = torch.tensor([[0.0, 0.1, -0.1, -0.5]])
    for i, value in enumerate((0.0, 0.004837, 0.005171, 0.148721)):
        one = logprobs[:, i:i + 1]
        assert policy_loss(one, one, torch.zeros(1, 1), torch.ones(1, 1), 1.0, reference=torch.zeros(1, 1))[1]["kl"] == pytest.approx(value, abs=1e-6)


def test_one_micro_batch_of_eight_equals_eight_of_one():
    torch.manual_seed(0)
    logprobs = (-torch.rand(8, 6)).requires_grad_()
    mask = torch.arange(6) < torch.tensor([6, 1, 4, 2, 5, 3, 6, 2])[:, None]
    advantages, tokens = torch.randn(8, 1), mask.sum().item()
    whole = torch.autograd.grad(policy_loss(logprobs, logprobs.detach(), advantages, mask, tokens)[0], logprobs)[0]
    parts = sum(torch.autograd.grad(policy_loss(logprobs[i:i + 1], logprobs[i:i + 1].detach(), advantages[i:i + 1], mask[i:i + 1], tokens)[0],
                                    logprobs)[0] for i in range(8))
    torch.testing.assert_close(whole, parts)
