"""Online DPO: pairs of a group, and the loss and gradient of the published formula."""

import pytest
import torch

from ranker import credit, losses, passes
from ranker.data import Answer, Completion, Group
from ranker.objectives import dpo


def group(ask, *rewards):
    """A group whose k-th completion is the token k, paid so much."""
    made = [Completion([k], [-1.0], "", True, Answer("ok")) for k in range(len(rewards))]
    for c, reward in zip(made, rewards):
        c.rewards = {"task": reward, "total": reward}
    return Group(ask, [0], made)


def batch_of(chosen, rejected, chosen_reference, rejected_reference):
    """A batch of one pair, whose log-probabilities are sums over two tokens; what is learned from."""
    logprobs = torch.tensor([[chosen / 2] * 2, [rejected / 2] * 2], dtype=torch.float64, requires_grad=True)
    pair = [Completion([1, 2], [], "", True, Answer("ok")) for _ in range(2)]
    for c, reference, sign in zip(pair, (chosen_reference, rejected_reference), (1.0, -1.0)):
        c.signals = {"reference": torch.tensor([reference / 2] * 2, dtype=torch.float64),
                     "sign": torch.full((2,), sign, dtype=torch.float64)}
    return passes.Batch(pair, [slice(0, 2)], logprobs, None, torch.ones(2, 2, dtype=torch.bool)), logprobs


def test_the_loss_and_its_gradient_are_the_published_ones():
    """Oracle: SELM's published trainer with alpha 0 (arXiv 2405.19332), beta 0.01."""
    batch, logprobs = batch_of(-10.0, -12.0, -11.0, -11.5)
    loss, parts = dpo.loss(batch, dpo.Options(beta=0.01))
    loss.backward()
    assert loss.item() == pytest.approx(0.685675, abs=1e-6)
    assert logprobs.grad.tolist() == [pytest.approx([-0.0049625] * 2, abs=1e-7),
                                      pytest.approx([0.0049625] * 2, abs=1e-7)]
    assert parts == {"margin": pytest.approx(1.5), "right": 1}
    assert losses.dpo_loss(torch.tensor(0.0), 0.3).item() == pytest.approx(0.693147, abs=1e-6)


def test_loss_and_gradient_are_those_of_trl(make_policy, tmp_path):
    """Both from the same adapter and reference, on tokens as TRL makes them; skips without
    tests/bench/requirements.txt."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    policy = make_policy()
    pairs = [{"prompt": "which one", "chosen": " the first", "rejected": " the second one"},
             {"prompt": "and which of these two", "chosen": " [2]", "rejected": " [1], I think"}]
    settings = trl.DPOConfig(output_dir=str(tmp_path), beta=0.3, per_device_train_batch_size=2, report_to=[],
                             use_cpu=True, bf16=False, activation_checkpointing=False)
    trainer = trl.DPOTrainer(model=policy.model, args=settings, train_dataset=datasets.Dataset.from_list(pairs),
                             processing_class=policy.tokenizer)
    policy.model.eval()
    policy.freeze()  # TRL keeps a copy of the adapter it was given as its reference
    with torch.no_grad():
        for parameter in policy.adapter_parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(policy.model, batch).backward()
    theirs = {name: parameter.grad.clone() for name, parameter in policy.adapter_parameters().items()}
    policy.model.zero_grad()

    rows = [[ids[seen.bool()].tolist() for ids in (tokens, answer)] for tokens, seen, answer in
            zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])]  # chosen ones first
    groups = []
    for chosen, rejected in zip(rows[:2], rows[2:]):
        made = [Completion(ids[answer.index(1):], [], "", True, Answer("ok"), returns={"total": value})
                for (ids, answer), value in ((chosen, 1.0), (rejected, 0.0))]
        groups.append(Group(None, chosen[0][:chosen[1].index(1)], made))
    options = dpo.Options(beta=0.3)
    dpo.alive(groups, options)
    with policy.training_graph():
        packed = passes.rows_of(groups, float("inf"))
        passes.run(dpo.passes(options), credit.completions(groups), policy, packed, 1.0, 10**6)
        dpo.targets(groups, options)
        [made] = passes.batched(policy, packed, 1.0, 10**6)
        (dpo.loss(made, options)[0] / passes.units(packed, dpo.UNIT)).backward()
    for name, parameter in policy.adapter_parameters().items():
        assert (parameter.grad - theirs[name]).norm() < 1e-4 * theirs[name].norm(), name


def test_a_group_gives_its_best_and_its_worst_where_they_are_apart(asks):
    groups = [group(asks[0], 0.2, 1.0, 0.4, 0.0), group(asks[1], 0.5, 0.5), group(asks[2], float("nan"), 1.0, 0.9)]
    credit.add_returns(groups, 1.0)
    dpo.alive(groups, dpo.Options(margin=0.05))
    assert [[c.alive for c in g.completions] for g in groups] == [
        [False, True, False, True], [False, False], [False, True, True]]
    assert dpo.targets(groups, dpo.Options()) == {"pairs": 2.0}
    signs = [[c.advantage for c in g.completions if c.alive] for g in groups]
    assert signs == [[1.0, -1.0], [], [1.0, -1.0]]
    dpo.alive(groups, dpo.Options(margin=0.2))
    assert [sum(c.alive for c in g.completions) for g in groups] == [2, 0, 0]


def test_equal_texts_and_unscored_groups_are_no_pair(asks):
    same, unscored = group(asks[0], 1.0, 0.0), group(asks[1], float("nan"), float("nan"))
    same.completions[1].ids = same.completions[0].ids
    credit.add_returns([same, unscored], 1.0)
    dpo.alive([same, unscored], dpo.Options())
    assert not any(c.alive for g in (same, unscored) for c in g.completions)
