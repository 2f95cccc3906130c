"""PPO: the critic, its warm-up, where the reward and the KL stand, and that every completion takes part."""

import pytest
import torch

from ranker import config as settings
from ranker.objectives import grpo, ppo
from ranker.engine.score import pack, score

TRAIN = settings.Train(objective="ppo", value_lr=1e-2, beta=0.1, kl_in="reward", value_warmup=2)


def before(lengths, seed=0):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randn(n, generator=rng)  # noqa: E731
    return {name: {k: draw(n) for k, n in enumerate(lengths)} for name in ("old", "reference", "value")}


def test_values_stand_where_their_token_is_predicted_and_start_at_zero(make_policy, asks):
    policy = make_policy()
    policy.add_critic()
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
    policy = make_policy()
    policy.add_critic()
    _, values, mask = score(policy, pack([policy.prompter.encode(asks[0])], [[[5, 6, 7]]], 4000), 1.0)
    loss, _ = ppo.loss(TRAIN, 1, None, values, mask, {"value": torch.zeros(1, 3), "return": torch.ones(1, 3)}, 3)
    loss.backward()
    assert policy.critic.weight.grad.norm() > 0 and all(p.grad is None for p in policy.adapter_parameters().values())


def test_in_the_warm_up_only_values_learn():
    logprobs, values = torch.zeros(1, 3, requires_grad=True), torch.zeros(1, 3, requires_grad=True)
    signal = {name: torch.ones(1, 3) for name in ("value", "return", "advantage", "old", "reference")}
    for step, moves in ((2, False), (3, True)):
        loss, _ = ppo.loss(TRAIN, step, logprobs, values, torch.ones(1, 3), signal, 3)
        gradients = torch.autograd.grad(loss, (logprobs, values), allow_unused=True)
        assert gradients[1].norm() > 0 and (gradients[0] is not None and gradients[0].norm() > 0) == moves


def test_the_reward_stands_on_the_last_token_and_the_kl_on_every_one():
    lengths, rewards = (3, 1), (1.0, -0.5)
    passes = before(lengths)
    credit = {k: torch.full((n,), r) for k, (n, r) in enumerate(zip(lengths, rewards))}
    signals, log = ppo.signals(TRAIN, credit, passes)
    for k, n in enumerate(lengths):
        paid = -0.1 * (passes["old"][k] - passes["reference"][k])
        paid[-1] += rewards[k]
        torch.testing.assert_close(signals["return"][k], paid.flip(0).cumsum(0).flip(0))  # gamma = lambda = 1
    advantages = torch.cat([signals["return"][k] - passes["value"][k] for k in (0, 1)])
    white = torch.cat([signals["advantage"][k] for k in (0, 1)])
    torch.testing.assert_close(white, (advantages - advantages.mean()) / (advantages.std(unbiased=False) + 1e-6))
    assert log["explained_variance"] < 1


def test_the_kl_counts_in_the_reward_or_in_the_loss_never_in_both():
    passes, credit = before((4,)), {0: torch.ones(4)}
    logprobs = torch.randn(1, 4, requires_grad=True)
    signal = {"advantage": torch.zeros(1, 4), "old": logprobs.detach(), "reference": torch.randn(1, 4),
              "value": torch.zeros(1, 4), "return": torch.zeros(1, 4)}
    for kl_in in ("loss", "reward"):
        train = settings.Train(objective="ppo", beta=0.1, kl_in=kl_in)
        returns = ppo.signals(train, credit, passes)[0]["return"][0]
        loss, _ = ppo.loss(train, 1, logprobs, torch.zeros(1, 4), torch.ones(1, 4), signal, 4)
        pulled = torch.autograd.grad(loss, logprobs)[0].any()  # the advantage is zero
        assert torch.allclose(returns, torch.ones(4)) == (kl_in == "loss") and bool(pulled) == (kl_in == "loss")


def test_ppo_learns_from_groups_that_grpo_drops():
    reward, cohorts = torch.tensor([1.0, 1.0, float("nan")]), torch.zeros(3, dtype=torch.long)
    assert not grpo.credit(settings.Train(), reward, reward, cohorts)[1].any()
    credit, alive = ppo.credit(TRAIN, reward, reward, cohorts)
    assert alive.tolist() == [True, True, False] and credit.tolist() == [1, 1, 0]


def test_on_a_bandit_of_one_token_ppo_finds_the_arm_that_pays():
    """The objective alone, without a language model: a categorical policy, a constant critic, the loop of train.py."""
    torch.manual_seed(0)
    train = settings.Train(objective="ppo", beta=0.0, value_clip=10.0)
    logits, value = torch.zeros(4, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([logits, value], lr=0.1)
    for step in range(60):
        arms = torch.multinomial(logits.detach().softmax(0), 16, replacement=True)
        old = logits.detach().log_softmax(0)[arms]
        passes = {"old": {k: old[k:k + 1] for k in range(16)}, "value": {k: value.detach().clone() for k in range(16)}}
        signals, _ = ppo.signals(train, {k: (arms[k:k + 1] == 2).float() for k in range(16)}, passes)
        signal = {name: torch.stack([tensors[k] for k in range(16)]) for name, tensors in signals.items()}
        for _ in range(2):
            loss, _ = ppo.loss(train, step, logits.log_softmax(0)[arms][:, None], value.expand(16)[:, None],
                               torch.ones(16, 1), signal, 16)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert logits.softmax(0)[2] > 0.9 and 0.5 < value.item() <= 1.2


@pytest.mark.parametrize("override, named",
                         [("--train.value_lr=0", "value head"), ("--train.gamma=1.5", "train.gamma")])
def test_ppo_without_what_it_needs_is_refused(override, named, tmp_path):
    path = tmp_path / "ppo.yaml"
    path.write_text("train: {objective: ppo, value_lr: 0.01}")
    with pytest.raises(Exception, match=named):
        settings.load(path, [override])
