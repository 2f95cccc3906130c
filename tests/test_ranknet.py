"""Learning from the logits of identifiers: the losses against published oracles, the objective, the states, the ranker,
a teacher."""

import random

import pytest
import torch

from ranker import config as settings, labels, losses, rewarding, states
from ranker.data import Candidate, Query
from ranker.drive import load_ranker, run
from ranker.errors import UserError
from ranker.objectives import ranknet
from ranker.engine.sampler import Sampler, greedy_model
from ranker.engine.score import pack, score, stack

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


def experience_of(policy, queries, **options):
    ranker = load_ranker(FIRST | options)
    sampler = Sampler(policy, settings.Rollout(max_new_tokens=8))
    return states.identifiers(sampler, ranker, queries, 8, 1.0, 0), rewarding.load({"relevance": {}})


def nine(n=5, name="q"):
    relevance = (0.0,) * (n - 2) + (1.0, 2.0)
    return Query(name, "rank", "wanted", tuple(Candidate(f"{name}-{k}", f"thing {k}") for k in range(n)), relevance)


def batch_loss(policy, train, experience, parts, rows=None):
    """The objective's loss over an experience, in one micro-batch or in several."""
    completions = [c for g in experience.groups for c in g.completions]
    task = torch.tensor([r["task"] for row in rewarding.score(parts, experience.groups) for r in row])
    cohorts = torch.tensor(experience.cohorts)
    credit, alive = ranknet.credit(train, task, task, cohorts)
    spread = lambda values: {k: torch.full((len(completions[k].ids),), float(values[k]))  # noqa: E731
                             for k in alive.nonzero()[:, 0].tolist()}
    signals, _ = ranknet.signals(train, spread(credit), {"cohort": spread(cohorts)})
    total = 0.0
    packed = pack([g.prompt for g in experience.groups], [[c.ids for c in g.completions] for g in experience.groups],
                  10**9, lambda k: bool(alive[k]))
    for batch in [[row] for row in packed] if rows == "apart" else [packed]:
        keys = [k for row in batch for k in row.keys]
        logprobs, _, mask = score(policy, batch, 1.0)
        total = total + ranknet.loss(train, 1, logprobs, None, mask,
                                     {n: stack(s, keys, mask) for n, s in signals.items()}, 999)[0]
    return total


def test_the_joint_loss_is_the_mean_over_lists_of_what_the_logits_and_the_written_list_say(make_policy):
    policy, train = make_policy(), settings.Train(objective="ranknet", rank_weight=10.0, lm_weight=1.0)
    experience, parts = experience_of(policy, [nine(), nine(7, "r")])
    expected = 0.0
    for group in experience.groups:
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
    together, apart = (batch_loss(policy, train, experience, parts),
                       batch_loss(policy, train, experience, parts, "apart"))
    assert together.item() == pytest.approx(expected.item(), rel=1e-4) == apart.item()


def test_the_written_list_is_the_right_order_and_is_not_taught_with_a_weight_of_zero(make_policy):
    policy = make_policy()
    experience, parts = experience_of(policy, [nine()])
    [group] = experience.groups
    written = group.completions[-1]
    assert (written.text.startswith("<answer>[")
            and [group.ask.query.rel[c] for c in written.answer.value] == [2, 1, 0, 0, 0])
    begun = policy.prompter.to_answer.rpartition("<answer>")[2]
    assert begun + policy.tokenizer.decode(written.ids) == written.text.removeprefix("<answer>")
    task = torch.tensor([r["task"] for r in rewarding.score(parts, [group])[0]])
    for weight, learned in ((1.0, True), (0.0, False)):
        _, alive = ranknet.credit(settings.Train(lm_weight=weight), task, task, torch.tensor(experience.cohorts))
        assert bool(alive[-1]) == learned and alive[:-1].all()


def test_the_ranker_reads_the_order_off_the_logits_and_slides_over_more_than_a_window(make_policy):
    policy = make_policy()
    query = nine(9)
    model = greedy_model(Sampler(policy, settings.Rollout(max_new_tokens=8)))
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
    sampler = Sampler(make_policy(), settings.Rollout(max_new_tokens=8))
    with pytest.raises(UserError, match="asks for an order"):
        states.identifiers(sampler, load_ranker({"name": "elimination"}), [nine()], 8, 1.0, 0)


def test_a_teachers_run_replaces_the_relevance_of_what_is_learned_from(tmp_path):
    run_file = tmp_path / "run.trec"
    run_file.write_text("".join(f"q Q0 q-{c} {r} {9 - r} t\n" for r, c in enumerate((3, 0, 4, 1, 2), 1)))
    [query] = labels.by_teacher([nine(), nine(5, "unranked")], run_file)
    assert (sorted(query.ids, key=query.rel.get, reverse=True) == [f"q-{c}" for c in (3, 0, 4, 1, 2)]
            and set(query.relevance) == {1, 2, 3, 4, 5})


@pytest.mark.parametrize("lines, message", [("q Q0 q-0 1 9 t\n", "without its candidate 'q-1'"),
                                            ("x Q0 q-0 1 9 t\n", "none of the training queries")])
def test_a_teacher_that_ranks_in_part_or_something_else_is_refused(tmp_path, lines, message):
    (tmp_path / "run.trec").write_text(lines)
    with pytest.raises(UserError, match=message):
        labels.by_teacher([nine()], tmp_path / "run.trec")


def test_a_teacher_needs_a_file_of_queries(tmp_path):
    config = settings.Config()
    config.data.teacher = "run.trec"
    with pytest.raises(UserError, match="data.teacher needs a file"):
        settings.check(config, "config")
