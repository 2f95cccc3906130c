"""The rewards of Rank-R1, ReasonRank, ERank and GR2: the oracles, the invariants, and what their published forms got
wrong."""

import itertools
import math
import random

import pytest
import torch

from ranker import llms, losses, metrics, rewarding
from ranker.answers import parse
from ranker.data import Ask, Candidate, Completion, Group, Query
from ranker.drive import load_ranker
from ranker.errors import UserError
from rewards import multi_view, rank_gain, rank_pool, right_label


def query(relevance, name="q") -> Query:
    candidates = tuple(Candidate(f"{name}-{i}", f"text {i}") for i in range(1, len(relevance) + 1))
    return Query(name, "rank", "context", candidates, tuple(map(float, relevance)))


def say(span) -> str:
    return f"<think>weigh them</think>\n<answer>{span}</answer>"


def listed(order) -> str:
    return " > ".join(f"[{k}]" for k in order)


def group(ask, *spans) -> Group:
    texts = [span if "<" in span else say(span) for span in spans]
    return Group(ask, [], [Completion([], [], text, True, parse(text, ask)) for text in texts])


# Rank-R1: the label of the best


def picked(relevance, *spans):
    question = query(relevance)
    return labelled(Ask(question, question.ids, "pick"), *spans)


def labelled(ask, *spans):
    return right_label.reward([group(ask, *spans)], right_label.Options())[0]


def test_only_the_exact_label_of_the_best_earns_anything_and_nothing_costs():
    assert picked([0, 0, 1, 0], "[3]", " [3]\n", "[2]", "[4]") == [1, 1, 0, 0]
    assert picked([0, 0, 1, 0], "3", "[3] and [4]", "[3] [3]", "[03]", "[3].", "text 3", "the best is [3]", "[9]",
                  "［3］", "", "[]") == [0] * 11


def test_a_label_without_its_form_earns_nothing():
    assert picked([0, 0, 1, 0], "<answer>[3]</answer>", "<think>a</think>[3]<answer>",
                  "so <think>a</think><answer>[3]</answer>", "<think>a</think><answer>[1]</answer><answer>[3]</answer>",
                  "<THINK>a</THINK><ANSWER>[3]</ANSWER>", "<think></think><answer>[3]</answer>") == [0] * 6


def test_each_of_the_best_of_the_pool_is_right():
    assert picked([2, 0, 2, 1], "[1]", "[2]", "[3]", "[4]") == [1, 0, 1, 0]
    question = query([2, 0, 2, 1])
    later = Ask(question, (question.ids[3], question.ids[1]), "pick")
    assert labelled(later, "[1]", "[2]") == [1, 0]


def test_somebody_who_knows_earns_the_label_and_a_liar_does_not():
    ranker = load_ranker({"name": "setwise", "children": 4})
    for seed in range(30):
        question = query([random.Random(seed).choice((0, 1, 2)) for _ in range(8)] + [3, 0])
        [ask] = ranker.sampled_asks(question, random.Random(seed), None)
        assert labelled(ask, llms.right_answer(ask), llms.wrong_answer(ask)) == [1, 0]


# ReasonRank: three views of a list

TWENTY = list(range(1, 21))


def views(order, relevant=(1, 2, 3), **options):
    options = {"phi": 0.2, "gamma": 0.1, "rbo_p": 1.0} | options
    return multi_view.views(order, TWENTY, {k: float(k in relevant) for k in TWENTY}, **options)


def ordered(relevance, *spans, pool=None, **options):
    question = query(relevance)
    asked = group(Ask(question, pool or question.ids, "order"), *spans)
    return multi_view.reward([asked], multi_view.Options(**options))[0]


def test_the_gold_order_earns_everything_and_the_reverse_next_to_nothing():
    assert views(TWENTY) == pytest.approx(1.3)
    assert (views(TWENTY[::-1]) == pytest.approx(0.033123, abs=1e-6)
            and multi_view.rbo(TWENTY[::-1], TWENTY) == pytest.approx(0.331229, abs=1e-6))


def placed(first, second):
    """1 and 2 at two places, the others in order."""
    order = [k for k in TWENTY if k > 2]
    order.insert(first - 1, 1)
    order.insert(second - 1, 2)
    return order


@pytest.mark.parametrize("places, ndcg, recall, overlap, whole", [
    ((1, 11), 0.613147, 0.5, 0.903552, 0.803502), ((9, 10), 0.361815, 1.0, 0.772659, 0.639081)])
def test_two_relevant_ones_far_down_are_seen_three_ways(places, ndcg, recall, overlap, whole):
    order, relevant = placed(*places), (1, 2)
    assert [order.index(k) + 1 for k in relevant] == list(places)
    found = metrics.of([float(k in relevant) for k in order], names=["nDCG@10", "Recall@10"])
    assert found == pytest.approx({"nDCG@10": ndcg, "Recall@10": recall}, abs=1e-6)
    assert (multi_view.rbo(order, TWENTY) == pytest.approx(overlap, abs=1e-6)
            and views(order, relevant) == pytest.approx(whole, abs=1e-6))
    assert views(order, relevant, gamma=0.5) - views(order, relevant) == pytest.approx(0.4 * overlap, abs=1e-6)


def test_overlap_is_an_average_for_one_and_cut_short_below():
    assert multi_view.rbo([1, 2, 3], [1, 3, 2]) == pytest.approx(0.833333, abs=1e-6)
    assert multi_view.rbo([1, 2, 3], [1, 3, 2], 0.9) == pytest.approx(0.226)
    assert (multi_view.rbo(TWENTY, TWENTY, 0.9) == pytest.approx(0.878423, abs=1e-6)
            and multi_view.rbo(TWENTY, TWENTY) == 1)


def test_what_is_no_ranking_is_worth_nothing_and_what_has_no_form_less():
    full, rel = listed(TWENTY), [1.0] * 3 + [0.0] * 17
    right, *nothing = ordered(rel, full, listed(TWENTY[:-1]), listed([*TWENTY[:-1], 1]), listed([*TWENTY[:-1], 21]),
                              listed([*TWENTY, 20]), "the third, I think", "9", listed([1, 2, 3, *range(101, 118)]),
                              listed([0, *TWENTY[1:]]))
    assert right == pytest.approx(1.3) and nothing == [0] * 8
    for read in (full.replace(" > ", "\n"), " ".join(map(str, TWENTY))):  # what the parser reads as a list is one
        assert ordered(rel, read)[0] == pytest.approx(1.3)
    assert ordered(rel, f"<answer>{full}</answer>", f"<think>a</think>{full}<", f"<think>a</think><answer>{full}",
                   say(full) * 2, "<") == [-1] * 5


def test_candidates_of_equal_relevance_may_stand_anyhow_in_prompt_data_and_answer():
    rng, rel = random.Random(0), [2, 0, 0, 1, 0, 1, 0]
    perfect = []
    for _ in range(30):
        pairs = rng.sample(list(enumerate(rel, 1)), 7)  # a prompt
        perfect.append(listed(pairs.index(pair) + 1
                              for pair in sorted(pairs, key=lambda pair: (-pair[1], rng.random()))))
        question = query([r for _, r in pairs])
        [value] = multi_view.reward([group(Ask(question, question.ids, "order"), perfect[-1])], multi_view.Options())[0]
        assert value == pytest.approx(1.3)
    assert len(set(perfect)) > 20
    question, order = query([1, 0, 0, 0]), ["q-2", "q-1", "q-4", "q-3"]
    prompts = [Ask(question, pool, "order") for pool in itertools.permutations(question.ids)]
    groups = [group(ask, listed(ask.pool.index(c) + 1 for c in order)) for ask in prompts]
    assert len({row[0] for row in multi_view.reward(groups, multi_view.Options())}) == 1


def test_of_all_teachers_that_relevance_allows_the_nearest_one_is_asked():
    rel = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0, "e": 2.0}
    teachers = [t for t in itertools.permutations(rel) if [rel[c] for c in t] == [2, 1, 1, 0, 0]]
    assert len(teachers) == 4
    for order in itertools.permutations(rel):
        ours = sorted(order, key=lambda c: -rel[c])
        for p in (1.0, 0.9):
            assert multi_view.rbo(order, ours, p) == pytest.approx(max(multi_view.rbo(order, t, p) for t in teachers))


def test_a_pool_without_anything_relevant_pays_every_ranking_the_same():
    question = query([1, 0, 0, 0])
    ask = Ask(question, question.ids[1:], "order")
    both = group(ask, "[1] > [2] > [3]", "[3] > [1] > [2]")
    assert multi_view.reward([both], multi_view.Options()) == [[pytest.approx(0.1)] * 2]


# ERank: a score by its rank among all scores of its query


def scores_of(question, *members):
    """A group for each (candidate from 1, the answers of its completions)."""
    return [group(Ask(question, (question.ids[k - 1],), "score"), *map(str, spans)) for k, spans in members]


def pooled(question, *members, c_above=0.5, c_format=1.0, **options):
    return rank_pool.reward(scores_of(question, *members), rank_pool.Options(c_above, c_format, **options))


PAIR = query([1, 0])


def test_ranks_are_counted_over_all_completions_about_a_query_and_ties_share_the_best():
    # ranks 1, 2 and 2, 4
    assert pooled(PAIR, (1, [8, 5]), (2, [5, 3])) == [[1.0, 0.5], [pytest.approx(0.75), pytest.approx(0.91)]]
    assert pooled(query([1, 1]), (1, [8, 5]), (2, [5, 3])) == [[1.0, 0.5], [0.5, 0.25]]
    assert pooled(PAIR, (1, [4, 4]), (2, [4, 4]))[0] == [1.0, 1.0]


def test_queries_do_not_meet_in_a_pool():
    one, other = query([1, 0], "a"), query([1, 0], "b")
    alone = pooled(one, (1, [3, 2]), (2, [1, 0])), pooled(other, (1, [9, 8]), (2, [7, 10]))
    groups = [scores_of(one, (1, [3, 2])), scores_of(other, (1, [9, 8])), scores_of(one, (2, [1, 0])),
              scores_of(other, (2, [7, 10]))]
    together = rank_pool.reward([g for part in groups for g in part], rank_pool.Options(0.5, 1.0))
    assert together == [alone[0][0], alone[1][0], alone[0][1], alone[1][1]]


@pytest.mark.parametrize("threshold, punished", [("worst_positive", [True, True, False, False]),
                                                 ("best_positive", [True, False, False, False])])
def test_a_negative_above_a_positive_is_punished_by_the_threshold(threshold, punished):
    [_, negative] = pooled(PAIR, (1, [8, 3]), (2, [9, 5, 3, 1]), threshold=threshold)
    assert negative == pytest.approx([-0.5 if bad else 1 - (s / 10) ** 2 for s, bad in zip((9, 5, 3, 1), punished)])


def test_a_negative_below_the_positives_is_paid_by_its_distance_from_the_target_of_its_relevance():
    graded = query([3, 1, 0])
    _, middle, low = pooled(graded, (1, [10]), (2, [0, 3, 4, 9]), (3, [0, 1, 10]))
    assert (middle == pytest.approx([1 - ((s - 10 / 3) / 10) ** 2 for s in (0, 3, 4, 9)])
            and low == pytest.approx([1.0, 0.99, 0.0]))
    assert max(middle) == middle[1]


@pytest.mark.parametrize("bad", ["11", "-1", "7.5", "seven", "", "<answer>7</answer>", "<think>a</think>7<",
                                 "<think>a</think><answer>7"])
@pytest.mark.parametrize("form", ["rr", "se", "ndcg"])
def test_what_is_malformed_has_no_rank_and_is_worth_the_least(bad, form):
    with_it = pooled(PAIR, (1, [8, bad, 5]), (2, [5, 3]), form=form)
    without = pooled(PAIR, (1, [8, 5]), (2, [5, 3]), form=form)
    assert with_it == [[without[0][0], -1.0, without[0][1]], without[1]]


@pytest.mark.parametrize("form", ["rr", "se", "ndcg"])
@pytest.mark.parametrize("c_above, c_format", [(0.0, 0.0), (0.3, 0.3), (1.0, 4.0)])
def test_a_malformed_one_is_never_better_than_any_well_formed_one(form, c_above, c_format):
    rng = random.Random(0)
    for _ in range(50):
        question = query([rng.choice((0, 1, 2)) for _ in range(4)] + [2])
        members = [(k, [rng.choice([*range(11), "?"]) for _ in range(4)]) for k in range(1, 6)]
        paid = pooled(question, *members, c_above=c_above, c_format=c_format, form=form,
                      threshold=rng.choice(("best_positive", "worst_positive")))
        values = [(value, span) for row, (_, spans) in zip(paid, members) for value, span in zip(row, spans)]
        assert (all(value == -c_format for value, span in values if span == "?")
                and min(value for value, _ in values) >= -c_format)


@pytest.mark.parametrize("form", ["rr", "ndcg"])
def test_a_positive_earns_strictly_less_the_more_scores_are_above_it(form):
    values = [pooled(query([1, 0, 0]), (1, [5]), (2, [9] * above), (3, [1] * (8 - above)), form=form)[0][0]
              for above in range(8)]
    assert all(a > b > 0 for a, b in itertools.pairwise(values)) and values[0] == 1


def test_the_ndcg_form_pays_a_positive_its_share():
    [positive, _] = pooled(PAIR, (1, [8, 5]), (2, [6, 3]), form="ndcg")
    ideal = 1 + 1 / math.log2(3)
    assert positive == pytest.approx([1 / ideal, 1 / math.log2(4) / ideal])
    assert sum(positive) == pytest.approx(metrics.of([1, 0, 1, 0], names=["nDCG"])["nDCG"])


def test_the_squared_error_form_looks_at_no_rank():
    assert pooled(PAIR, (1, [8, 10]), (2, [9, 0]), form="se") == [pytest.approx([0.96, 1.0]),
                                                                  pytest.approx([0.19, 1.0])]


def test_without_a_readable_positive_no_negative_is_above_one():
    assert pooled(query([1, 0, 0]), (2, [10, 0]), (3, [5, 5])) == [pytest.approx([0.0, 1.0]),
                                                                   pytest.approx([0.75, 0.75])]
    assert pooled(PAIR, (1, ["?", "?"]), (2, [10, 0])) == [[-1.0, -1.0], pytest.approx([0.0, 1.0])]


def test_the_pool_is_that_of_the_query_and_the_comparison_that_of_the_prompt():
    question = query([1, 0, 0])
    rewards = torch.tensor(pooled(question, (1, [9, 4]), (2, [5, 0]), (3, [2, 7]))).flatten()
    advantages = losses.cohort_advantages(rewards, torch.arange(3).repeat_interleave(2)).view(3, 2)
    assert advantages.sum(1).tolist() == pytest.approx([0, 0, 0], abs=1e-6) and (advantages.abs() > 1e-3).all()
    assert rewards.view(3, 2).mean(1).unique().numel() == 3


# GR2: what a list gains over the order shown, and form only with it


def gained(relevance, *spans, alpha=0.1, invalid_reward=-1.0, **options):
    question, options = query(relevance), rank_gain.Options(alpha, invalid_reward, **options)
    return rank_gain.reward([group(Ask(question, question.ids, "order"), *spans)], options)[0]


def moved(before, after, n=10):
    """(relevance of n shown candidates, the target at `before`; the list that puts it to `after`)."""
    order = [k for k in range(1, n + 1) if k != before]
    return [float(k == before) for k in range(1, n + 1)], listed([*order[:after - 1], before, *order[after - 1:]])


@pytest.mark.parametrize("before, after, value", [(4, 1, 0.4), (4, 4, 0.0), (1, 1, 0.1), (1, 3, -0.1), (3, 5, -0.2)])
def test_form_is_paid_with_a_gain_or_where_nothing_was_left_to_gain(before, after, value):
    assert gained(*moved(before, after)) == [pytest.approx(value)]


def test_the_report_pays_form_to_everything_legal():
    relevance, copy = moved(4, 4)
    shuffled = listed([2, 1, 3, 4, *range(5, 11)])
    assert gained(relevance, copy, shuffled) == [0, 0]
    assert gained(relevance, copy, shuffled, identity_rule="report") == pytest.approx([0.1, 0.1])
    assert gained(*moved(3, 5), identity_rule="report") == [pytest.approx(-0.1)]


def test_a_right_list_in_wrong_form_loses_the_form_alone():
    relevance, best = moved(4, 1)
    assert gained(relevance, best, f"<answer>{best}</answer>") == pytest.approx([0.4, 0.3])


@pytest.mark.parametrize("span", ["[1] > [2]", listed([1, 1, 3, 4]), listed([1, 2, 3, 9]), listed([1, 2, 3, 4, 4]),
                                  "no list", "", "<answer>", '{"recommendations": [1, 2]}'])
@pytest.mark.parametrize("gain", ["rank", "auc"])
def test_what_is_no_permutation_is_worth_less_than_the_worst_one(span, gain):
    worst = min(gained([0, 1, 0, 0], *(listed(order) for order in itertools.permutations(range(1, 5))), gain=gain))
    assert gained([0, 1, 0, 0], span, gain=gain) == [-1.0] and worst > -1


@pytest.mark.parametrize("order, auc", [([1, 2, 3, 4], 0.25), ([2, 4, 1, 3], 1.0), ([2, 1, 4, 3], 0.75),
                                        ([1, 3, 2, 4], 0.0)])
def test_the_report_counts_pairs(order, auc):
    assert rank_gain.auc(order, [2, 4]) == auc
    echo = order == [1, 2, 3, 4]
    assert (gained([0, 1, 0, 1], listed(order), gain="auc", identity_rule="report")
            == [pytest.approx(0.1 if echo else auc + 0.1)])
    assert gained([0, 1, 0, 1], listed(order), gain="auc") == [pytest.approx(auc + 0.1 * (auc > 0.25))]


def test_a_perfect_order_may_be_copied():
    for rule in ("paper", "report"):
        assert gained([1, 1, 0, 0], listed([1, 2, 3, 4]), gain="auc", identity_rule=rule) == [pytest.approx(1.1)]
        assert gained([1, 1, 0, 0], listed([1, 2, 3, 4]), identity_rule=rule) == [pytest.approx(0.1)]


def test_of_several_targets_the_first_one_counts_in_the_rank():
    assert gained([0, 1, 0, 1], listed([4, 1, 2, 3]), listed([1, 3, 4, 2])) == pytest.approx([0.25 + 0.1, -0.25])


def test_a_list_of_one_grade_teaches_nothing():
    values = torch.tensor(gained([1, 1, 1], listed([1, 2, 3]), "no list"))
    assert values.isnan().all() and not losses.live(values, torch.zeros(2, dtype=torch.long), 1e-4).any()


def test_the_order_shown_is_the_one_that_is_compared_with():
    ranker = load_ranker({"name": "listwise", "order": "given"})
    question = query([0, 0, 0, 1, 0, 0])
    for seed in range(20):
        assert ranker.sampled_asks(question, random.Random(seed), None)[0].pool == question.ids
        few = ranker.sampled_asks(question, random.Random(seed), 3)[0].pool
        assert len(few) == 3 and "q-4" in few and list(few) == sorted(few)
    ask = Ask(question, question.ids[::-1], "order")
    both = group(ask, listed(range(1, 7)), listed([3, 1, 2, 4, 5, 6]))
    assert rank_gain.reward([both], rank_gain.Options(0.1, -1.0))[0] == pytest.approx([0.0, 2 / 6 + 0.1])


# all four


@pytest.mark.parametrize("name, options, ranker", [
    ("right_label", {}, "setwise"), ("multi_view", {}, "sliding"),
    ("rank_pool", {"c_above": 0.5, "c_format": 1}, "pointwise"),
    ("rank_gain", {"alpha": 0.1, "invalid_reward": -1}, "listwise")])
def test_each_is_a_task_reward_for_its_ranker_and_pays_who_knows_more_than_who_lies(name, options, ranker):
    [part] = rewarding.load({name: options})
    assert part.task
    question, ranker = query([0, 0, 2, 0, 1, 0]), load_ranker({"name": ranker})
    asks = ranker.sampled_asks(question, random.Random(1), None)

    def earned(write):
        groups = [group(ask, *[write(ask)] * 2) for ask in asks]
        rewarding.score([part], groups)
        return [sum(c.rewards["total"] for c in g.completions) for g in groups]

    right, wrong = earned(llms.right_answer), earned(llms.wrong_answer)
    assert sum(right) > sum(wrong) and all(a >= b for a, b in zip(right, wrong))
    other = Ask(question, question.ids[:1], "eliminate")
    with pytest.raises(UserError, match=f"reward '{name}' judges .* not to eliminate"):
        rewarding.score([part], [group(other, "[1]")])


@pytest.mark.parametrize("section, words", [
    ({"rank_pool": {"c_format": 1}}, "needs its option 'c_above'"),
    ({"rank_gain": {"alpha": 0.1}}, "needs its option 'invalid_reward'"),
    ({"rank_pool": {"c_above": 1, "c_format": 0.5}}, "must be at least c_above"),
    ({"rank_pool": {"c_above": -1, "c_format": 0.5}}, "at least 0"),
    ({"rank_pool": {"c_above": 0, "c_format": 0, "form": "mrr"}}, "form must be one of"),
    ({"rank_pool": {"c_above": 0, "c_format": 0, "threshold": "best"}}, "threshold must be one of"),
    ({"rank_gain": {"alpha": 0.1, "invalid_reward": -0.7}}, "at most -0.75 for 4"),
    ({"rank_gain": {"alpha": -0.1, "invalid_reward": -1}}, "alpha must be at least 0"),
    ({"rank_gain": {"alpha": 0.1, "invalid_reward": -1, "gain": "mrr"}}, "gain must be one of"),
    ({"rank_gain": {"alpha": 0.1, "invalid_reward": -1, "identity_rule": "none"}}, "identity_rule must be one of"),
    ({"multi_view": {"rbo_p": 0}}, "rbo_p must be between 1e-09 and 1.0, got 0.0"),
    ({"multi_view": {"rbo_p": 1.1}}, "rbo_p must be between 1e-09 and 1.0, got 1.1"),
    ({"multi_view": {"phi": -1}}, "at least 0"),
])
def test_constants_that_are_missing_or_make_no_sense_are_refused_in_one_line(section, words):
    question = query([0, 1, 0, 0])
    ask = Ask(question, question.ids[:1], "score") if "rank_pool" in section else Ask(question, question.ids, "order")
    with pytest.raises(UserError, match=words):
        rewarding.score(rewarding.load(section), [group(ask, "[1]")])


def test_the_order_of_a_listwise_state_is_shuffled_or_given():
    with pytest.raises(UserError, match="ranker.order must be one of shuffled, given"):
        load_ranker({"name": "listwise", "order": "random"})
