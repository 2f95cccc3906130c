"""RLOO: leave-one-out advantages of whole completions, and a loss whose mean is over completions."""

import pytest
import torch

from ranker import credit, losses, passes
from ranker.data import Answer, Completion, Group
from ranker.objectives import rloo


def test_advantages_are_the_published_ones_and_sum_to_zero():
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.2, 3.0, float("nan"), 1.0])
    found = losses.leave_one_out(rewards, torch.tensor([0, 0, 0, 0, 1, 1, 1]))
    assert found.tolist() == pytest.approx([0.766667, -0.566667, 0.1, -0.3, 2.0, 0.0, -2.0], abs=1e-6)
    assert losses.leave_one_out(torch.tensor([2.0]), torch.tensor([0])).tolist() == [0.0]


def completions(*rewards):
    made = [Completion([7] * (k + 1), [-1.0] * (k + 1), "", True, Answer("ok")) for k in range(len(rewards))]
    for c, reward in zip(made, rewards):
        c.rewards = {"task": reward, "total": reward}
    return made


def test_a_completion_is_one_action_whatever_its_length(asks):
    made = completions(1.0, 0.0, 0.5)
    groups = [Group(asks[0], [1], made)]
    credit.add_returns(groups, 1.0)
    rloo.alive(groups, rloo.Options())
    assert rloo.targets(groups, rloo.Options()) == {}
    mask = torch.arange(3) < torch.tensor([1, 2, 3])[:, None]
    logprobs = torch.randn(3, 3, requires_grad=True)
    loss, parts = rloo.loss(passes.Batch(made, [slice(0, 3)], logprobs, None, mask), rloo.Options())
    loss.backward()
    advantages = torch.tensor([0.75, -0.75, 0.0])
    torch.testing.assert_close(logprobs.grad, -(advantages[:, None] * mask))
    assert parts["logprob"] == pytest.approx((logprobs.detach() * mask).sum().item(), abs=1e-6)
    assert rloo.UNIT == "text"


def test_the_reward_pays_for_the_distance_to_the_reference(asks):
    made = completions(1.0, 0.0)
    for c, old, reference in zip(made, (-1.0, -2.0), (-2.0, -2.0)):
        c.signals = {"old": torch.tensor([old] * len(c.ids)), "reference": torch.tensor([reference] * len(c.ids))}
    groups = [Group(asks[0], [1], made)]
    credit.add_returns(groups, 1.0)
    rloo.alive(groups, rloo.Options())
    assert rloo.passes(rloo.Options()) == set() and rloo.passes(rloo.Options(beta=0.5)) == {"old", "reference"}
    assert rloo.targets(groups, rloo.Options(beta=0.5)) == {"log_ratio": pytest.approx(0.5)}
    assert [c.advantage for c in made] == pytest.approx([0.5, -0.5])  # 1 - 0.5 * 1 against 0


def test_equal_task_rewards_are_dead(asks):
    made = completions(0.5, 0.5)
    made[0].rewards["total"] = 0.3  # the form alone differs
    groups = [Group(asks[0], [1], made)]
    credit.add_returns(groups, 1.0)
    rloo.alive(groups, rloo.Options())
    assert not any(c.alive for c in made)
