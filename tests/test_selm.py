"""SELM: the published loss and gradient, who is pushed down, and the previous iterate as its reference."""

from pathlib import Path

import pytest
import torch

import train
from ranker import passes
from ranker.asking import Sample
from ranker.config import Rollout
from ranker.data import Answer, Completion, Group
from ranker.draws import optimistic
from ranker.drive import load_ranker
from ranker.engine.sampler import Sampler
from ranker.errors import UserError
from ranker.objectives import selm
from ranker.sources import Source
from ranker.world import queries
from test_train import ROOT, call, records  # noqa: F401  a fixture


def batch_of(own, own_reference):
    """A pair and o: sums of log-probabilities (-10, -12 and `own`) over two tokens, against their references."""
    sums = ((-10.0, -11.0, 1.0, 0.0), (-12.0, -11.5, -1.0, 0.0), (own, own_reference, 0.0, 1.0))
    found = [Completion([1, 2], [], "", True, Answer("ok")) for _ in sums]
    for c, (_, reference, sign, pushed) in zip(found, sums):
        c.signals = {"reference": torch.full((2,), reference / 2, dtype=torch.float64),
                     "sign": torch.full((2,), sign, dtype=torch.float64),
                     "own": torch.full((2,), pushed, dtype=torch.float64)}
    logprobs = torch.tensor([[value / 2] * 2 for value, *_ in sums], dtype=torch.float64, requires_grad=True)
    return passes.Batch(found, [slice(0, 3)], logprobs, None, torch.ones(3, 2, dtype=torch.bool)), logprobs


def test_the_loss_and_its_gradient_are_the_published_ones():
    batch, logprobs = batch_of(-9.0, -9.5)
    loss, parts = selm.loss(batch, selm.Options(beta=0.01, alpha=0.001))
    loss.backward()
    assert loss.item() == pytest.approx(0.685680, abs=1e-6)
    assert logprobs.grad[:, 0].tolist() == pytest.approx([-0.0049625, 0.0049625, 1e-5], abs=1e-7)
    assert parts["own_logprob"] == -4.5 and parts["optimism"] == 0.5
    assert selm.loss(batch, selm.Options(beta=0.01, alpha=0.0))[0].item() == pytest.approx(0.685675, abs=1e-6)
    other, moved = batch_of(-9.0, -5.0)  # the reference of o moves the loss and no gradient
    changed, _ = selm.loss(other, selm.Options(beta=0.01, alpha=0.001))
    changed.backward()
    assert changed.item() != pytest.approx(loss.item(), abs=1e-6)
    torch.testing.assert_close(moved.grad, logprobs.grad)
    with pytest.raises(UserError, match="ran away: what the previous iterate says has -50.0 nats"):
        selm.loss(batch_of(-100.0, -9.5)[0], selm.Options())


def group(*rewards, own=None) -> Group:
    found = [Completion([k], [-1.0], "", True, Answer("ok")) for k in range(len(rewards))]
    for c, reward in zip(found, rewards):
        c.returns = {"task": reward, "total": reward}
    if own is not None:
        found[-1].ids = [own]
        found[-1].signals["optimism"] = torch.ones(1)
    return Group(None, [0], found)


@pytest.mark.parametrize("rewards, own, alpha, skip, signs, pushed", [
    ((1.0, 0.0, 0.5), 7, 0.001, True, [1, -1, 0], [0, 0, 1]),   # o beside the pair
    ((1.0, 0.5, 0.0), 7, 0.001, True, [1, 0, -1], [0, 0, 1]),   # o is the worst: pushed twice
    ((0.5, 0.0, 1.0), 7, 0.001, True, [0, -1, 1], [0, 0, 0]),   # o is the best: left alone
    ((0.5, 0.0, 1.0), 7, 0.001, False, [0, -1, 1], [0, 0, 1]),  # as published
    ((1.0, 0.0, 1.0), 0, 0.001, True, [1, -1, 0], [0, 0, 0]),   # o says what the best one says
    ((1.0, 0.0, 0.5), 7, 0.0, True, [1, -1, 0], [0, 0, 0]),     # online DPO: o is not computed
])
def test_who_is_pushed(rewards, own, alpha, skip, signs, pushed):
    found = group(*rewards, own=own)
    selm.alive([found], selm.Options(alpha=alpha, skip_chosen=skip))
    said = lambda name: [c.signals[name][0].item() if name in c.signals else 0 for c in found.completions]  # noqa: E731
    assert said("sign") == signs and said("own") == pushed
    assert [c.alive for c in found.completions] == [bool(s or p) for s, p in zip(signs, pushed)]
    assert selm.targets([found], selm.Options())["pairs"] == 1


def test_equal_groups_give_no_pair_and_a_draw_without_o_is_refused():
    even = group(0.5, 0.5, 0.5, own=7)
    selm.alive([even], selm.Options())
    assert not any(c.alive for c in even.completions) and selm.targets([even], selm.Options())["pairs"] == 0
    with pytest.raises(UserError, match="needs draw.name=optimistic"):
        selm.alive([group(1.0, 0.0)], selm.Options())


def test_a_right_answer_may_join_the_samples_where_no_thought_is_asked_for(make_policy):
    source = Source("queries", item=queries("passage-5", "train", 4).__getitem__)
    ranker, rollout = load_ranker({"name": "elimination"}), Rollout(prompts_per_step=2, completions_per_prompt=2,
                                                                     max_new_tokens=6)
    for think in False, True:
        sample = Sample(Sampler(make_policy(think=think), rollout), ranker, rollout, 0)
        draw = lambda: optimistic.draw(source, sample, list, {}, optimistic.Options(gold=True))  # noqa: E731, B023
        if think:
            with pytest.raises(UserError, match="add model.think=false"):
                draw()
            continue
        for group in draw():
            *_, said, gold = group.completions
            assert len(group.completions) == 4 and "optimism" in said.signals and gold.cohort == said.cohort
            worst = min(group.ask.query.rel[c] for c in group.ask.pool)
            assert gold.answer.ok and group.ask.query.rel[gold.answer.value[0]] == worst


@pytest.mark.slow
def test_the_reference_of_an_iteration_is_the_policy_it_begins_with(call):  # noqa: F811
    """In the first step of an iteration policy and reference are one, whatever was learned before."""
    text = (ROOT / "configs/selm.yaml").read_text().replace("steps: 10}", "steps: 2}")
    Path("short.yaml").write_text(text.replace("steps: 30", "steps: 6"))
    status, _, err = call(train, "short.yaml", "--train.warmup=0", "--rollout.prompts_per_step=8", "--train.lr=0.003",
                          "--rollout.completions_per_prompt=4", "--data.tasks=passage-9", "--eval.every=9",
                          "--eval.queries=1", "--train.schedule=constant")
    assert status == 0, err
    steps = [step for step in records("runs/short/metrics.jsonl") if "optimism" in step]
    assert len(steps) > 3
    for step in steps:
        if step["step"] in (1, 3, 5):
            assert abs(step["optimism"]) < 1e-4 and abs(step["margin"]) < 1e-4
    assert any(abs(step["optimism"]) > 1e-3 for step in steps)
