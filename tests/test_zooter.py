"""Zooter: soft labels, their smoothing by tags, and the KL to them, by the paper's formulas (methods.md section 16)."""

import math
from dataclasses import replace

import pytest
import torch

from ranker import plugins
from ranker.data import Answer, Ask, Candidate, Completion, Group, Query
from ranker.errors import UserError
from ranker.lessons import soft_labels
from ranker.objectives import zooter
from ranker.passes import Batch
from ranker.sources import Source

THREE = (("q1", (1, 0, 0), ("a",)), ("q2", (0, 2, 0), ("a", "b")), ("q3", (0, 0, 1), ("b",)))


def query(name, relevance, tags=(), ids=None) -> Query:
    ids = ids or [f"m{i}" for i in range(len(relevance))]
    return Query(name, "router-balance", "which model", tuple(Candidate(i, i) for i in ids),
                 tuple(map(float, relevance)), tags=tags)


def smoothed(queries, extra=(), **options) -> dict[str, tuple]:
    source = Source("queries", [*queries, *extra])
    return {q.id: q.relevance for q in
            soft_labels.lesson(source, queries, soft_labels.Options(**options)).items}


def test_the_papers_example():
    found = smoothed([query(*q) for q in THREE])
    assert found["q1"] == pytest.approx([0.411753, 0.413207, 0.175039], abs=1e-6)
    assert found["q2"] == pytest.approx([0.207140, 0.585720, 0.207140], abs=1e-6)
    assert found["q3"] == pytest.approx([0.175039, 0.413207, 0.411753], abs=1e-6)
    alone = smoothed([query(*q) for q in THREE], beta=1.0)
    assert alone["q1"] == pytest.approx([0.576117, 0.211942, 0.211942], abs=1e-6)
    tags = smoothed([query(*q) for q in THREE], beta=0.0)
    assert tags["q1"] == pytest.approx([0.341312, 0.499464, 0.159224], abs=1e-6)
    assert tags["q3"] == pytest.approx([0.159224, 0.499464, 0.341312], abs=1e-6)


def test_labels_sum_to_one_whatever_the_rewards_and_a_constant_changes_nothing():
    many = [query("a", (1000, 0, 3)), query("b", (5, 5, 5)), query("c", (1, 2), ids=["m0", "m2"])]
    found = smoothed(many)
    assert all(sum(label) == pytest.approx(1) and all(map(math.isfinite, label)) for label in found.values())
    moved = [query("a", (1007, 7, 10)), query("b", (5, 5, 5)), query("c", (3, 4), ids=["m0", "m2"])]
    for name, label in smoothed(moved).items():
        assert label == pytest.approx(found[name])
    assert smoothed(many, beta=1.0)["b"] == pytest.approx([1 / 3] * 3)
    assert smoothed(many, beta=1.0, tau=1e-3)["a"] == pytest.approx([1, 0, 0])  # small tau: the hard label
    assert smoothed([query("x", (1, 1, 0))], hard=True)["x"] == pytest.approx([0.5, 0.5, 0])


def test_tags_are_fitted_on_the_given_queries_alone_and_one_may_be_left_out_of_its_own():
    fit = [query(*q) for q in THREE]
    poisoned = query("test", (0, 0, 1000), ("a",))
    assert smoothed(fit, [poisoned])["q1"] == pytest.approx(smoothed(fit)["q1"])
    assert smoothed(fit, [query("new", (1, 0, 0), ("unseen",))])["new"] == pytest.approx(
        smoothed([query("new", (1, 0, 0))], beta=1.0)["new"])  # a tag that nobody has: its own label
    lone = [query("q", (1, 0), ("only",))]
    assert smoothed(lone, leave_one_out=True)["q"] == pytest.approx(smoothed(lone, beta=1.0)["q"])
    others = smoothed(fit, leave_one_out=True, beta=0.0)
    assert others["q1"] == pytest.approx(smoothed([fit[1]], beta=1.0)["q2"])  # q2 alone has the tag beside q1


def group_of(*shares) -> Group:
    asked = query("q", shares)
    found = [Completion([7], [math.nan], f"[{k}]", True, Answer("ok", (c,), 1)) for k, c in enumerate(asked.ids)]
    for c, share in zip(found, shares):
        c.returns = {"task": share, "total": share}
    return Group(Ask(asked, asked.ids, "order", by_logits=True), [], found)


@pytest.mark.parametrize("kind", ["target_first", "policy_first"])
def test_the_loss_is_the_divergence_and_vanishes_at_the_label(kind):
    label, options = torch.tensor([0.5, 0.3, 0.2]), zooter.Options(kl=kind)
    group = group_of(*label.tolist())
    zooter.alive([group], options)
    zooter.targets([group], options)
    logits = torch.tensor([[0.3], [-1.0], [2.0]], requires_grad=True)
    batch = Batch(group.completions, [slice(0, 3)], logits, None, torch.ones(3, 1, dtype=torch.bool))
    value, sums = zooter.loss(batch, options)
    policy = logits.detach()[:, 0].softmax(0)
    one, two = (label, policy) if kind == "target_first" else (policy, label)
    assert value.item() == pytest.approx((one * (one / two).log()).sum().item(), abs=1e-6) and value > 0
    value.backward()
    if kind == "target_first":
        torch.testing.assert_close(logits.grad[:, 0], policy - label)
    batch.logprobs = label.log()[:, None] + 3.0  # any constant beside the label's logarithm
    assert zooter.loss(batch, options)[0].item() == pytest.approx(0, abs=1e-6) and sums["right"] == 0


def test_a_written_list_is_not_learned_and_a_label_of_zeros_is_refused():
    group = group_of(1.0, 0.0)
    group.completions[1].returns = {"task": math.nan, "total": math.nan}
    zooter.alive([group], zooter.Options())
    assert [c.alive for c in group.completions] == [True, False]
    with pytest.raises(UserError, match="worth 0 together"):
        nothing = group_of(0.0, 0.0)
        zooter.alive([nothing], zooter.Options())
        zooter.targets([nothing], zooter.Options())


def test_a_temperature_of_zero_is_refused_and_a_candidate_that_is_gone_has_no_share():
    with pytest.raises(UserError, match="tau"):
        plugins.load("lesson", {"name": "soft_labels", "tau": 0})
    fit = [query("a", (1, 0, 0), ("t",)), query("b", (0, 1), ("t",), ["m0", "m2"])]
    found = smoothed(fit, beta=0.0)
    assert len(found["b"]) == 2 and sum(found["b"]) == pytest.approx(1)


def test_objectives_of_one_benchmark_are_smoothed_apart():
    fit = [query("a", (1, 0), ("t",)), replace(query("b", (0, 1), ("t",)), task="router-cost")]
    for name, label in smoothed(fit, beta=0.0).items():
        assert label == pytest.approx(smoothed([q for q in fit if q.id == name], beta=1.0)[name])
