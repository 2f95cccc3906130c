"""Learning from the logits of identifiers: the losses against published oracles, the objective, the draw, the ranker,
a teacher."""

import math
import random

import pytest
import torch

import train
from ranker import config as settings, credit, losses, passes, rewarding
from ranker.asking import Sample, local_model
from ranker.data import Candidate, Query
from ranker.drive import load_ranker, run
from ranker.engine.sampler import Sampler
from ranker.errors import UserError
from ranker.lessons import teacher
from ranker.plugins import load
from ranker.sources import Source
from ranker.stages import Stage

SCORES, RANKS = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([2.0, 1.0, 3.0])  # the teacher has the second item first
FIRST = {"name": "first"}


@pytest.mark.parametrize("kind, expected", [
    ("ranknet", 0.584484), ("weighted_ranknet", 0.180485), ("lambdarank", 0.112013), ("ndcg2", 0.128598),
    ("listnet", 1.252908)])
def test_the_losses_of_a_list_equal_the_published_functions(kind, expected):
    assert losses.rank_loss(SCORES, RANKS, kind).item() == pytest.approx(expected, abs=1e-6)


def test_tied_scores_keep_their_pairs_since_those_come_from_integer_ranks():
    assert (losses.rank_loss(torch.tensor([1.0, 1.0, 0.0]), RANKS, "weighted_ranknet").item()
            == pytest.approx(0.124006, abs=1e-6))


def test_the_lambda_loss_without_weights_is_ranknet_in_bits():
    assert (losses.rank_loss(SCORES, RANKS, "ranknet").item() / torch.log(torch.tensor(2.0)).item()
            == pytest.approx(0.843232, abs=1e-6))


KINDS = ("ranknet", "weighted_ranknet", "lambdarank", "ndcg2", "listnet", "top1", "pointwise")


@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_score_of_the_best_lowers_every_loss_and_inputs_stay(kind):
    scores = torch.tensor([0.2, 0.3, 0.5]).log().requires_grad_()
    before = scores.detach().clone()
    losses.rank_loss(scores, RANKS, kind).backward()
    assert scores.grad[1] < 0 and torch.equal(scores.detach(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_without_a_pair_costs_nothing_and_tied_scores_are_no_nan(kind):
    assert losses.rank_loss(torch.tensor([1.0]), torch.tensor([1.0]), kind) == 0
    assert losses.rank_loss(SCORES, torch.ones(3), kind) == 0
    assert losses.rank_loss(torch.full((3,), -1.0), RANKS, kind).isfinite()


def test_scores_and_log_probabilities_give_the_same_loss():
    for kind in KINDS[:-1]:
        torch.testing.assert_close(losses.rank_loss(SCORES, RANKS, kind),
                                   losses.rank_loss(SCORES.log_softmax(0), RANKS, kind))


def test_equal_relevance_shares_a_rank_and_what_is_unscored_has_none():
    values = torch.tensor([3.0, 1.0, 1.0, 0.0, float("nan"), 5.0, 7.0])
    assert losses.ranks(values, torch.tensor([0, 0, 0, 0, 0, 1, 1])).tolist() == [1, 2, 2, 4, 0, 2, 1]


def drawn(policy, queries, ranker=FIRST):
    """Return the groups that the draw gives for all of `queries`, rewarded by their relevance."""
    rollout = settings.Rollout(prompts_per_step=len(queries), max_new_tokens=8)

    def judge(groups, discount=1.0):
        rewarding.score(rewarding.load({"relevance": {}}), groups)
        credit.add_returns(groups, discount)
        return groups

    sample = Sample(Sampler(policy, rollout), load_ranker(ranker), rollout, 0)
    return load("draw", {"name": "identifiers"}).draw(Source("queries", item=queries.__getitem__), sample, judge, {})


def nine(n=5, name="q"):
    relevance = (0.0,) * (n - 2) + (1.0, 2.0)
    return Query(name, "rank", "wanted", tuple(Candidate(f"{name}-{k}", f"thing {k}") for k in range(n)), relevance)


def taught(objective, groups):
    """Return the rows of the groups, all signals set."""
    objective.alive(groups), objective.targets(groups)
    return passes.rows_of(groups, math.inf)


def mean_loss(policy, objective, rows, budget=10**9):
    """The objective's loss over the rows, in one micro-batch or in several."""
    total = sum(objective.loss(batch)[0] for batch in passes.batched(policy, rows, 1.0, budget))
    return total / passes.units(rows, objective.UNIT)


def test_the_joint_loss_is_the_mean_over_lists_of_what_the_logits_and_the_written_list_say(make_policy):
    policy, objective = make_policy(), load("objective", {"name": "ranknet", "rank_weight": 10.0, "lm_weight": 1.0})
    groups, expected = drawn(policy, [nine(), nine(7, "r")]), 0.0
    for group in groups:
        ask, prompt = group.ask, group.prompt
        with torch.no_grad():
            logits = policy.causal_lm(input_ids=torch.tensor([prompt])).logits[0, -1]
            written = group.completions[-1].ids
            both = policy.causal_lm(input_ids=torch.tensor([prompt + written])).logits[0]
            whole = both[len(prompt) - 1:-1].log_softmax(-1)
        scores = logits[policy.prompter.identifier_tokens(len(ask.pool))]
        relevance = torch.tensor([ask.query.rel[c] for c in ask.pool])
        ranks = 1.0 + (relevance[:, None] < relevance).sum(1)
        lm = -whole.gather(-1, torch.tensor(written)[:, None]).mean()
        expected += (10 * losses.rank_loss(scores, ranks, "weighted_ranknet") + lm) / 2
    rows = taught(objective, groups)
    together, apart = mean_loss(policy, objective, rows), mean_loss(policy, objective, rows, 1)
    assert together.item() == pytest.approx(expected.item(), rel=1e-4) == apart.item()


def test_the_written_list_is_the_right_order_and_is_not_taught_with_a_weight_of_zero(make_policy):
    policy = make_policy()
    [group] = drawn(policy, [nine()])
    written = group.completions[-1]
    assert (written.text.startswith("<answer>[")
            and [group.ask.query.rel[c] for c in written.answer.value] == [2, 1, 0, 0, 0])
    begun = policy.prompter.to_answer.rpartition("<answer>")[2]
    assert begun + policy.tokenizer.decode(written.ids) == written.text.removeprefix("<answer>")
    for weight, learned in ((1.0, True), (0.0, False)):
        load("objective", {"name": "ranknet", "lm_weight": weight}).alive([group])
        assert written.alive == learned and all(c.alive for c in group.completions[:-1])


class Recorder:
    """An optimizer that keeps the gradients of its steps and changes nothing."""

    def __init__(self, policy):
        self.parameters, self.seen = list(policy.adapter_parameters().values()), []

    def step(self):
        self.seen.append(gradient(self.parameters))


def gradient(parameters):
    return torch.cat([p.grad.flatten() for p in parameters])


@pytest.mark.parametrize("budget", [10**6, 16])
def test_a_minibatch_of_lists_is_divided_by_its_own_lists_and_means_are_logged_per_list(make_policy, budget):
    policy, objective = make_policy(), load("objective", {"name": "ranknet"})
    groups, config = drawn(policy, [nine(), nine(7, "r"), nine(3, "s")]), settings.Config()
    config.train.minibatches, config.train.tokens_per_batch, config.train.grad_clip = 2, budget, 0.0
    rows, optimizer, alone, losses_of = taught(objective, groups), Recorder(policy), [], []
    with policy.training_graph():
        for row in rows:
            loss = mean_loss(policy, objective, [row])
            loss.backward()
            losses_of.append(loss.item()), alone.append(gradient(optimizer.parameters))
            for parameter in optimizer.parameters:
                parameter.grad = None
    stage = Stage(1, config, [], objective, load("draw", {"name": "identifiers"}), None)
    record = train.update(stage, policy, optimizer, groups, 1)
    order = [[rows.index(row) for row in part] for part in train.minibatches(rows, config.train, "0/minibatch/1")]
    assert sorted(map(len, order)) == [1, 2]
    for part, found in zip(order, optimizer.seen, strict=True):
        torch.testing.assert_close(found, sum(alone[i] for i in part) / len(part), atol=1e-5, rtol=1e-4)
    assert record["lists"] == 3 and record["loss"] == pytest.approx(sum(losses_of) / 3, rel=1e-4)
    assert 10 * record["rank_loss"] + record["lm_loss"] == pytest.approx(record["loss"], rel=1e-4)


def test_the_ranker_reads_the_order_off_the_logits_and_slides_over_more_than_a_window(make_policy):
    policy = make_policy()
    query = nine(9)
    model = local_model(Sampler(policy, settings.Rollout(max_new_tokens=8)))
    [ranking] = run(load_ranker(FIRST), [query], model)
    prompt = policy.prompter.encode(next(load_ranker(FIRST).rank(query, random.Random(0))))
    with torch.no_grad():
        logits = policy.causal_lm(input_ids=torch.tensor([prompt])).logits[0, -1]
    scores = logits[policy.prompter.identifier_tokens(9)]
    assert ranking.order == [query.ids[k] for k in scores.argsort(descending=True).tolist()]
    assert (ranking.calls, ranking.failed) == (1, 0) and load_ranker(FIRST).calls(100) == 9
    [ranking] = run(load_ranker(FIRST | {"window": 4, "step": 2}), [query], model)
    assert ranking.calls == 4 and sorted(ranking.order) == sorted(query.ids)


def test_only_rankers_that_ask_for_an_order_can_be_taught_by_logits(make_policy):
    with pytest.raises(UserError, match="asks for an order"):
        drawn(make_policy(), [nine()], {"name": "elimination"})


def test_a_teachers_run_replaces_the_relevance_of_what_is_learned_from(tmp_path):
    run_file = tmp_path / "run.trec"
    run_file.write_text("".join(f"q Q0 q-{c} {r} {9 - r} t\n" for r, c in enumerate((3, 0, 4, 1, 2), 1)))
    source = Source("queries", [nine(), nine(5, "unranked")], "0")
    [query] = load("lesson", {"name": "teacher", "run": str(run_file)}).lesson(source, source.items).items
    assert (sorted(query.ids, key=query.rel.get, reverse=True) == [f"q-{c}" for c in (3, 0, 4, 1, 2)]
            and set(query.relevance) == {1, 2, 3, 4, 5})


@pytest.mark.parametrize("lines, message", [("q Q0 q-0 1 9 t\n", "without its candidate 'q-1'"),
                                            ("x Q0 q-0 1 9 t\n", "none of the training queries")])
def test_a_teacher_that_ranks_in_part_or_something_else_is_refused(tmp_path, lines, message):
    (tmp_path / "run.trec").write_text(lines)
    with pytest.raises(UserError, match=message):
        teacher.by_teacher([nine()], tmp_path / "run.trec")


def test_a_teacher_needs_a_file_of_queries(tmp_path):
    config = settings.Config()
    config.data.lessons = [{"name": "teacher", "run": "run.trec"}]
    with pytest.raises(UserError, match="data.lessons need a file"):
        settings.check(config, "config")
