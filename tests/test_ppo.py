"""PPO: the critic, its warm-up, where the reward and the KL stand, and that every completion takes part."""

import pytest
import torch

from ranker import config as settings
from ranker.data import Answer, Completion, Group
from ranker.engine.scoring import pack, score
from ranker.objectives import grpo, ppo
from ranker.passes import Batch

OPTIONS = ppo.Options(value_lr=1e-2, beta=0.1, kl_in="reward", value_warmup=2)


def group_of(*earned, cohort=0) -> Group:
    """Completions of (tokens, return), all learned from."""
    return Group(None, [], [Completion([0] * n, [], "", True, Answer("ok"), cohort=cohort, alive=True,
                                       returns={"task": reward, "total": reward}) for n, reward in earned])


def passed(group, seed=0) -> Group:
    """The same after the passes before the first optimizer step."""
    rng = torch.Generator().manual_seed(seed)
    for c in group.completions:
        c.signals = {name: torch.randn(len(c.ids), generator=rng) for name in ("old", "reference", "value")}
    return group


def batch(logprobs, values, signals, step=1) -> Batch:
    """One completion with those signals, [1, T]."""
    count = values.shape[1]
    [c] = group_of((count, 0.0)).completions
    c.signals = {name: tensor[0] for name, tensor in signals.items()}
    return Batch([c], [slice(0, 1)], logprobs, values, torch.ones(1, count, dtype=torch.bool), step=step)


def with_critic(policy):
    [(policy.own["critic"], rate)] = ppo.parameters(policy, OPTIONS).values()
    assert rate == OPTIONS.value_lr
    return policy


def test_values_stand_where_their_token_is_predicted_and_start_at_zero(make_policy, asks):
    policy = with_critic(make_policy())
    prompt, completions = policy.prompter.encode(asks[0]), [[5, 6, 7], [8]]
    rows = pack([prompt], [completions], 4000)
    assert not score(policy, rows, 1.0)[1].any()
    torch.nn.init.normal_(policy.critic.weight)
    _, values, mask = score(policy, rows, 1.0)
    for line, kept, completion in zip(values, mask, completions):
        hidden = policy.trunk(input_ids=torch.tensor([prompt + completion]), use_cache=False).last_hidden_state[0]
        expected = policy.critic(hidden[len(prompt) - 1:-1])[:, 0]  # the last prompt token sees the first value
        torch.testing.assert_close(line[kept], expected, atol=2e-5, rtol=1e-5)


def test_the_critic_learns_and_the_adapter_does_not_feel_it(make_policy, asks):
    policy = with_critic(make_policy())
    _, values, _ = score(policy, pack([policy.prompter.encode(asks[0])], [[[5, 6, 7]]], 4000), 1.0)
    loss, _ = ppo.loss(batch(None, values, {"value": torch.zeros(1, 3), "return": torch.ones(1, 3)}), OPTIONS)
    loss.backward()
    assert policy.critic.weight.grad.norm() > 0 and all(p.grad is None for p in policy.adapter_parameters().values())


def test_in_the_warm_up_only_values_learn():
    logprobs, values = torch.zeros(1, 3, requires_grad=True), torch.zeros(1, 3, requires_grad=True)
    signals = {name: torch.ones(1, 3) for name in ("value", "return", "advantage", "old", "reference")}
    for step, moves in ((2, False), (3, True)):
        loss, _ = ppo.loss(batch(logprobs, values, signals, step), OPTIONS)
        gradients = torch.autograd.grad(loss, (logprobs, values), allow_unused=True)
        assert gradients[1].norm() > 0 and (gradients[0] is not None and gradients[0].norm() > 0) == moves
    assert ppo.adapter_waits(OPTIONS) == 2  # so long its schedule waits


def test_the_reward_stands_on_the_last_token_and_the_kl_on_every_one():
    group = passed(group_of((3, 1.0), (1, -0.5)))
    log = ppo.targets([group], OPTIONS)
    found = [c.signals for c in group.completions]
    for c, signals in zip(group.completions, found):
        paid = -0.1 * (signals["old"] - signals["reference"])
        paid[-1] += c.returns["total"]
        torch.testing.assert_close(signals["return"], paid.flip(0).cumsum(0).flip(0))  # gamma = lambda = 1
    advantages = torch.cat([signals["return"] - signals["value"] for signals in found])
    white = torch.cat([signals["advantage"] for signals in found])
    torch.testing.assert_close(white, (advantages - advantages.mean()) / (advantages.std(unbiased=False) + 1e-6))
    assert [c.advantage for c in group.completions] == pytest.approx([s["advantage"].mean().item() for s in found])
    assert log["explained_variance"] < 1


def test_the_kl_counts_in_the_reward_or_in_the_loss_never_in_both():
    logprobs = torch.randn(1, 4, requires_grad=True)
    signals = {"advantage": torch.zeros(1, 4), "old": logprobs.detach(), "reference": torch.randn(1, 4),
               "value": torch.zeros(1, 4), "return": torch.zeros(1, 4)}
    for kl_in in ("loss", "reward"):
        options, group = ppo.Options(value_lr=1e-2, beta=0.1, kl_in=kl_in), passed(group_of((4, 1.0)))
        ppo.targets([group], options)
        loss, _ = ppo.loss(batch(logprobs, torch.zeros(1, 4), signals), options)
        pulled = torch.autograd.grad(loss, logprobs)[0].any()  # the advantage is zero
        returns = group.completions[0].signals["return"]
        assert torch.allclose(returns, torch.ones(4)) == (kl_in == "loss") and bool(pulled) == (kl_in == "loss")


def test_ppo_learns_from_groups_that_grpo_drops():
    group = passed(group_of((1, 1.0), (1, 1.0), (1, float("nan"))))
    grpo.alive([group], grpo.Options())
    assert not any(c.alive for c in group.completions)
    options = ppo.Options(value_lr=1e-2)
    ppo.alive([group], options)
    assert [c.alive for c in group.completions] == [True, True, False]
    ppo.targets([group], options)
    assert [c.signals["return"].item() for c in group.completions[:2]] == pytest.approx([1, 1])
    assert "return" not in group.completions[2].signals and group.completions[2].advantage == 0


def test_on_a_bandit_of_one_token_ppo_finds_the_arm_that_pays():
    """The objective alone, without a language model: a categorical policy, a constant critic, the loop of train.py."""
    torch.manual_seed(0)
    options = ppo.Options(value_lr=0.1, beta=0.0, value_clip=10.0)
    logits, value = torch.zeros(4, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([logits, value], lr=0.1)
    for step in range(60):
        arms = torch.multinomial(logits.detach().softmax(0), 16, replacement=True)
        old, group = logits.detach().log_softmax(0)[arms], group_of(*((1, float(arm == 2)) for arm in arms))
        for k, c in enumerate(group.completions):
            c.signals = {"old": old[k:k + 1], "value": value.detach().clone()}
        ppo.targets([group], options)
        for _ in range(2):
            logprobs, mask = logits.log_softmax(0)[arms][:, None], torch.ones(16, 1, dtype=torch.bool)
            loss, _ = ppo.loss(Batch(group.completions, [slice(0, 16)], logprobs, value.expand(16)[:, None], mask,
                                     step=step), options)
            optimizer.zero_grad()
            (loss / 16).backward()
            optimizer.step()
    assert logits.softmax(0)[2] > 0.9 and 0.5 < value.item() <= 1.2


@pytest.mark.parametrize("override, named", [
    ("--objective.value_lr=0", "objective.value_lr must be at least"), ("--objective.gamma=1.5", "objective.gamma"),
    ("--objective.name=ppo", "objective needs its option 'value_lr'")])
def test_ppo_without_what_it_needs_is_refused(override, named, tmp_path):
    path = tmp_path / "ppo.yaml"
    path.write_text("objective: {name: ppo}" if "name" in override else "objective: {name: ppo, value_lr: 0.01}")
    with pytest.raises(Exception, match=named):
        settings.load(path, [override])
