"""Packed scoring equals scoring one completion at a time: values and gradients, first token, end token, splits, NF4."""

from dataclasses import replace

import pytest
import torch

from ranker.engine.attention import equal_groups, layout
from ranker.engine.scoring import batches, chunk_of, head_logprobs, pack, score, score_all
from ranker.losses import cohort_advantages, policy_loss
from ranker.passes import stack

BUDGET = 4000


def completions_of(policy, groups=3, seed=0):
    """Random completions of unequal length, the end token last."""
    generator = torch.Generator().manual_seed(seed)
    end = policy.tokenizer.eos_token_id
    draw = lambda n: torch.randint(3, len(policy.tokenizer), (n,), generator=generator).tolist()  # noqa: E731
    return [[draw(n) + [end] for n in (4, 9, 1, 6)] for _ in range(groups)]


def one_by_one(policy, prompt, completion, temperature):
    """The plain way: the whole row through the model, logits shifted by one."""
    with policy.attend("sdpa"):
        logits = (policy.causal_lm(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0].float()
                  / temperature)
    places = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return logits.log_softmax(-1)[places, torch.tensor(completion)]


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("budget", [BUDGET, 300])  # one row per group; groups split with their prompt repeated
def test_packed_log_probabilities_and_gradients_equal_one_by_one(make_policy, asks, quantize, budget):
    policy = make_policy(quantize)
    prompts = [policy.prompter.encode(ask) for ask in asks[:3]]
    groups = completions_of(policy)
    flat = [c for group in groups for c in group]
    weights = torch.linspace(-1, 1, len(flat))
    rows = pack(prompts, groups, budget)
    assert (len(rows) == 3) == (budget == BUDGET)
    with policy.training_graph():
        for batch in batches(rows, budget):
            logprobs, _, mask = score(policy, batch, 0.7)
            assert logprobs.dtype == torch.float32
            keys = [k for row in batch for k in row.keys]
            for line, kept, k in zip(logprobs, mask, keys):
                expected = one_by_one(policy, prompts[k // 4], flat[k], 0.7)
                torch.testing.assert_close(line[kept], expected, atol=2e-5, rtol=1e-5)
            (logprobs * mask * weights[keys, None]).sum().backward()
    packed = {name: p.grad.clone() for name, p in policy.adapter_parameters().items()}
    policy.model.zero_grad()
    sum(one_by_one(policy, prompts[k // 4], c, 0.7).sum() * weights[k] for k, c in enumerate(flat)).backward()
    for name, parameter in policy.adapter_parameters().items():
        assert (packed[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm() + 1e-7, name


def test_gradient_checkpointing_changes_nothing(make_policy, asks):
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy(gradient_checkpointing=checkpointing)
        with policy.training_graph():
            assert any(module.training for module in policy.model.modules()) == checkpointing
            logprobs, _, mask = score(policy,
                                      pack([policy.prompter.encode(asks[0])], completions_of(policy, 1), BUDGET), 1.0)
            (logprobs * mask).sum().backward()
        assert not any(module.training for module in policy.model.modules())
        gradients.append(torch.cat([p.grad.flatten() for p in policy.adapter_parameters().values()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[0].norm()


@pytest.mark.parametrize(("limit", "value"), [("CHUNK", 5), ("LOGITS", 4 * 50 * 5 + 3)])
def test_the_head_in_chunks_equals_one_log_softmax(monkeypatch, limit, value):
    torch.manual_seed(0)
    head, states = torch.nn.Linear(8, 50, bias=False), torch.randn(23, 8, requires_grad=True)
    targets = torch.randint(0, 50, (23,))
    plain = (head(states) / 0.5).log_softmax(-1)[torch.arange(23), targets]
    expected = torch.autograd.grad(plain.sum(), states)[0]
    monkeypatch.setattr(f"ranker.engine.scoring.{limit}", value)
    assert chunk_of(head) == 5
    chunked = head_logprobs(head, states, targets, 0.5)
    torch.testing.assert_close(chunked, plain)
    torch.testing.assert_close(torch.autograd.grad(chunked.sum(), states)[0], expected)


def test_equal_groups_share_their_prompt_by_expanding_it_as_on_cuda(make_policy, asks, monkeypatch):
    """There the gradient of index_select is added up by atomics, in any order; that of `expand` is a sum."""
    policy, found = make_policy(), []
    prompts, groups = [policy.prompter.encode(ask) for ask in asks[:3]], completions_of(policy)
    for group in (0, 4):
        monkeypatch.setattr("ranker.engine.scoring.layout",
                            lambda *arguments, group=group: replace(layout(*arguments), group=group))
        policy.model.zero_grad()
        with policy.training_graph():
            logprobs, _, mask = score(policy, pack(prompts, groups, BUDGET), 1.0)
            (logprobs * mask).sum().backward()
        found.append((logprobs.detach(), torch.cat([p.grad.flatten() for p in policy.adapter_parameters().values()])))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=0)
    assert (found[0][1] - found[1][1]).norm() <= 1e-5 * found[0][1].norm()


def test_only_equal_groups_on_cuda_are_expanded():
    owners = [0, 0, 1, 1], [0, 1, 1], [0, 1, 0, 1]
    assert [equal_groups(owner, 2, "cuda") for owner in owners] == [2, 0, 0]
    assert equal_groups([0, 0, 1, 1], 2, "cpu") == 0


def gradient_of_step(policy, prompts, groups, advantages, budget):
    rows = pack(prompts, groups, budget)
    tokens = sum(len(c) for group in groups for c in group)
    policy.model.zero_grad()
    for batch in batches(rows, budget):
        logprobs, _, mask = score(policy, batch, 1.0)
        keys = [k for row in batch for k in row.keys]
        policy_loss(logprobs, logprobs.detach(), advantages.flatten()[keys][:, None], mask, tokens)[0].backward()
    return torch.cat([p.grad.flatten() for p in policy.adapter_parameters().values()])


def test_the_step_does_not_depend_on_how_it_is_cut_into_micro_batches(make_policy, asks):
    policy = make_policy()
    prompts, groups = [policy.prompter.encode(ask) for ask in asks[:3]], completions_of(policy)
    advantages = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    whole, *others = (gradient_of_step(policy, prompts, groups, advantages, budget) for budget in (10**6, 500, 1))
    for other in others:
        assert (whole - other).norm() <= 1e-5 * whole.norm()


def test_a_group_of_equal_rewards_contributes_exactly_nothing(make_policy, asks):
    policy = make_policy()
    prompts, groups = [policy.prompter.encode(ask) for ask in asks[:2]], completions_of(policy, 2)
    rewards = torch.tensor([[1.0, 0, 0, 1], [0.5, 0.5, 0.5, 0.5]])
    advantages = cohort_advantages(rewards.flatten(), torch.arange(2).repeat_interleave(4)).view(2, 4)
    assert (advantages[1] == 0).all()
    rows = pack(prompts[1:], groups[1:], BUDGET)
    logprobs, _, mask = score(policy, rows, 1.0)
    policy_loss(logprobs, logprobs.detach(), advantages[1][:, None], mask, 20)[0].backward()
    assert all((p.grad == 0).all() for p in policy.adapter_parameters().values())


def test_the_ratio_is_one_on_the_first_step_packed_or_not(make_policy, asks):
    policy = make_policy()
    rows = pack([policy.prompter.encode(asks[0])], completions_of(policy, 1), BUDGET)
    split = pack([policy.prompter.encode(asks[0])], completions_of(policy, 1), 1)
    old, _ = score_all(policy, split, 0.9, 1)
    logprobs, _, mask = score(policy, rows, 0.9)
    ratio = (logprobs - stack([old[k] for k in rows[0].keys], mask)).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-4, rtol=0)


def test_the_end_token_is_in_the_loss(make_policy, asks):
    policy = make_policy()
    prompt, completion = policy.prompter.encode(asks[0]), [10, 11, policy.tokenizer.eos_token_id]
    logprobs, _, mask = score(policy, pack([prompt], [[completion]], BUDGET), 1.0)
    assert mask.sum() == 3
    assert logprobs[0, 2].item() == pytest.approx(one_by_one(policy, prompt, completion, 1.0)[2].item(), abs=1e-5)


def test_masks_come_from_lengths_so_pad_and_end_tokens_inside_count(make_policy, asks):
    policy = make_policy()
    prompt = policy.prompter.encode(asks[0])
    completion = [policy.tokenizer.pad_token_id, policy.tokenizer.eos_token_id, 0, 10]
    logprobs, _, mask = score(policy, pack([prompt], [[completion, [10]]], BUDGET), 1.0)
    assert mask.sum(1).tolist() == [4, 1]
    torch.testing.assert_close(logprobs[0], one_by_one(policy, prompt, completion, 1.0), atol=2e-5, rtol=1e-5)


def test_no_gradient_is_added_up_in_an_order_of_chance(make_policy, asks):
    policy = make_policy()
    with policy.training_graph():
        logprobs, _, _ = score(policy, pack([policy.prompter.encode(ask) for ask in asks[:2]],
                                            completions_of(policy, 2), BUDGET), 1.0)
    seen, todo = set(), [logprobs.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    names = {type(node).__name__ for node in seen}
    # The backward pass of plain indexing adds with several threads at once; that of index_select does not.
    assert "IndexSelectBackward0" in names and "IndexBackward0" not in names
