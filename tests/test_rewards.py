"""The step reward pays what the paper published, form never pays and never outweighs being right, and no known hack
earns more than an honest try. Every completion goes through the real parser, as in training."""

import random
from itertools import combinations, permutations, product
from types import SimpleNamespace

import pytest

from ranker import llms, rewarding
from ranker.answers import parse
from ranker.data import Answer, Ask, Candidate, Completion, Group, Query
from ranker.errors import UserError
from ranker.templates import template
from rewards import format as form, top1_hit


def ask(relevance, decision="eliminate", pool=None) -> Ask:
    query = Query("q", "rank", "context", tuple(Candidate(f"c{i}", f"title of {i + 1}") for i in range(len(relevance))),
                  tuple(map(float, relevance)))
    return Ask(query, pool or query.ids, decision)


def group(question, *texts, finished=True) -> Group:
    return Group(question, [], [Completion([], [], text, finished, parse(text, question, finished)) for text in texts])


def say(span) -> str:
    return f"<think>weigh them</think>\n<answer>{span}</answer>"


def paid(question, *texts, **options) -> list[float]:
    return top1_hit.reward([group(question, *texts)], top1_hit.Options(**options))[0]


def formed(*groups) -> list[list[float]]:
    return form.reward(list(groups), form.Options())


def scored(parts, *groups) -> list[list[dict[str, float]]]:
    rewarding.score(parts, groups)
    return [[c.rewards for c in group.completions] for group in groups]


ONE = ask([0, 0, 1, 0])  # [3] is the positive


@pytest.mark.parametrize("text, value", [
    (say("[1]"), 1.0), (say("[4]"), 1.0),  # a negative is dropped
    (say("[3]"), 0.0),  # the positive is dropped
    (say("[5]"), -0.5), (say("[0]"), -0.5), (say("Casablanca"), -0.5),  # no candidate
    (say("[1] [2]"), -0.5), (say("[1] [9]"), -0.5),  # not one candidate
    ("", -1.0), (say(""), -1.0), ("<think>[1]</think>", -1.0), ("<think>a</think><answer>[1]", -1.0),  # no answer
])
def test_an_elimination_is_paid_as_published(text, value):
    assert paid(ONE, text) == [value]


def test_a_truncated_completion_is_paid_as_no_answer():
    cut, whole = (group(ONE, text, finished=False) for text in ("<think>a</think><answer>[1]", say("[1]")))
    assert top1_hit.reward([cut, whole], top1_hit.Options()) == [[-1.0], [1.0]]  # it was whole before the cut


@pytest.mark.parametrize("decision, relevance, graded, values", [
    ("eliminate", [0, 0, 1], False, [1, 1, 0]),
    ("pick", [0, 0, 1], False, [0, 0, 1]),
    ("eliminate", [0.2, 0.6, 1.0, 0.2], False, [1, 0, 0, 1]),  # ties at the bottom are all right
    ("pick", [0.2, 1.0, 1.0, 0.6], False, [0, 1, 1, 0]),  # ties at the top are all right
    ("eliminate", [0.2, 0.6, 1.0, 0.2], True, [1, 0.5, 0, 1]),
    ("pick", [0.2, 0.6, 1.0, 0.2], True, [0, 0.5, 1, 0]),
    ("pick", [0, 1, 3, 4], True, [0, 0.25, 0.75, 1]),
    ("eliminate", [0, 1, 3, 4], True, [1, 0.75, 0.25, 0]),
    ("eliminate", [0, 0, 1], True, [1, 1, 0]),  # with one positive both are the published reward
    ("pick", [0.5, 0.5], True, [1, 1]), ("eliminate", [0.5, 0.5], False, [1, 1]),  # among equals no one is wrong
])
def test_right_is_relative_to_the_pool_and_graded_reward_is_linear(decision, relevance, graded, values):
    question = ask(relevance, decision)
    texts = [say(f"[{k}]") for k in range(1, len(relevance) + 1)]
    assert paid(question, *texts, graded=graded) == pytest.approx(values)


def test_only_the_candidates_shown_are_compared():
    whole = ask([0, 0.5, 1])
    later = Ask(whole.query, ("c2", "c1"), "eliminate")
    assert paid(later, say("[1]"), say("[2]")) == [0, 1] and paid(later, say("[1]"), say("[2]"), graded=True) == [0, 1]


def test_each_completion_of_each_group_is_paid_by_itself():
    groups = [group(ONE, say("[1]"), "", say("[3]")), group(ask([1, 0]), say("[1]"), say("[2]"))]
    assert top1_hit.reward(groups, top1_hit.Options()) == [[1, -1, 0], [0, 1]]
    assert formed(*groups) == [[0, -1, 0], [0, 0]]


@pytest.mark.parametrize("text, exact", [
    ("<think>a</think><answer>[1]</answer>", True),
    ("<think>a</think>\n<answer>[1]</answer>", True),
    (" \n<think>\na\nb\n</think>\n\n<answer>\n[1]\n</answer>\n", True),
    ("<think>a [3] < b</think><answer>anything</answer>", True),
    ("", False),
    ("[1]", False),
    ("<answer>[1]</answer>", False),
    ("<think>a</think>", False),
    ("<think></think><answer>[1]</answer>", False),
    ("<think>a</think><answer></answer>", False),
    ("Sure! <think>a</think><answer>[1]</answer>", False),
    ("<think>a</think> so <answer>[1]</answer>", False),
    ("<think>a</think><answer>[1]</answer> done", False),
    ("<think>a</think><answer>[1]</answer><answer>[1]</answer>", False),
    ("<think>a</think><think>b</think><answer>[1]</answer>", False),
    ("<think>a<think>b</think><answer>[1]</answer>", False),
    ("<think>a <answer>[1]</answer></think>", False),
    ("<answer>[1]</answer><think>a</think>", False),
    ("<think>a</think><answer>[1]", False),
    ("<think>a<answer>[1]</answer>", False),
    ("<THINK>a</THINK><ANSWER>[1]</ANSWER>", False),
    ("<think>a</think>< answer>[1]</answer>", False),
])
def test_form_is_one_thought_then_one_answer_and_nothing_else(text, exact):
    assert formed(group(ONE, text)) == [[0.0 if exact else -1.0]]


def test_form_reads_the_completion_and_not_the_prompt():
    bad, good = group(ONE, "[1]"), group(ONE, say("[1]"))
    bad.prompt = good.prompt = [1, 2, 3]
    assert formed(bad, good) == [[-1.0], [0.0]]


HACKS = {
    "silence": "",
    "the system prompt copied": template("system"),
    "tags copied, filled by nothing": "<think> </think><answer> </answer>",
    "the example of the prompt copied": say("[k]"),
    "identifier 0": say("[0]"),
    "identifier n + 1": say("[5]"),
    "a row of letters": say("pppppp"),
    "a row of brackets": say("(((("),
    "every identifier": say("[1] [2] [3] [4]"),
    "every identifier but one": say("[1] [2] [4]"),
    "a count": say("4 candidates"),
    "none of them": say("none of them"),
    "all titles": say("title of 1, title of 2, title of 4"),
    "the word all share": say("title of"),
    "identifier in the thought only": "<think>[1]</think>",
    "a safe and a foreign identifier": say("[1] [9]"),
    "answers until one is right": "<answer>[1]</answer>" * 3 + "<answer>[9]</answer>",
}


@pytest.mark.parametrize("text", HACKS.values(), ids=HACKS)
@pytest.mark.parametrize("options", [{}, {"graded": True}], ids=["published", "graded"])
def test_a_known_hack_earns_less_than_the_worst_honest_choice(text, options):
    parts = rewarding.load({"top1_hit": {"weight": 1.0} | options, "format": {"weight": 0.2}})
    [[hack, worst]] = scored(parts, group(ONE, text, say("[3]")))
    assert hack["task"] < worst["task"] == 0 and hack["total"] < worst["total"]


@pytest.mark.parametrize("decision", ["order", "narrow", "score"])
def test_the_step_reward_refuses_asks_that_name_more_or_less_than_one(decision):
    query = Query("q", "rank", "c", (Candidate("a", "x"), Candidate("b", "y")), (0.0, 1.0))
    with pytest.raises(UserError, match=decision):
        top1_hit.step_reward(Ask(query, query.ids, decision), Answer("ok", query.ids[:1]))


@pytest.mark.parametrize("n, mean", [(20, 0.863277), (10, 0.785670), (9, 0.771379), (5, 0.679167)])
def test_a_random_valid_policy_earns_the_published_mean(n, mean):
    """Over pools of the positive and k = 1..n-1 negatives; the positive's place does not matter, so it stands first."""
    whole, means = ask([1] + [0] * (n - 1)), []
    for k in range(1, n):
        pool = Ask(whole.query, whole.pool[:k + 1], "eliminate")
        means.append(sum(top1_hit.step_reward(pool, Answer("ok", (c,))) for c in pool.pool) / (k + 1))
    assert sum(means) / len(means) == pytest.approx(mean, abs=1e-6)


def test_an_oracle_earns_everything_and_a_liar_nothing():
    rng = random.Random(0)
    for _ in range(100):
        question = ask([rng.choice((0, 1, 2)) for _ in range(rng.randint(2, 9))] + [3, 0],
                       rng.choice(("eliminate", "pick")))
        for graded in (False, True):
            assert paid(question, llms.right_answer(question), llms.wrong_answer(question), graded=graded) == [1, 0]


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("drop", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_of_all_answers_the_least_relevant_ones_and_no_others_earn_the_most(size, drop, graded):
    """Every pool of the grades 0 to 2, whole or with somebody out, and every answer to it, in any order."""
    for relevance in product(range(3), repeat=size):
        whole = ask(relevance)
        for left in (some for count in range(2, size + 1) for some in combinations(whole.pool, count)):
            out = tuple(c for c in whole.pool if c not in left)
            question = Ask(whole.query, whole.pool, "eliminate", out=out, drop=drop)
            answers = [named for count in range(1, min(drop, len(left)) + 1) for named in permutations(left, count)]
            texts = [say(" ".join(f"[{whole.pool.index(c) + 1}]" for c in named)) for named in answers]
            rel = whole.query.rel
            low, high = min(rel[c] for c in left), max(rel[c] for c in left)
            for named, value in zip(answers, paid(question, *texts, graded=graded)):
                best = max(rel[c] for c in named)
                ideal = best <= min((rel[c] for c in left if c not in named), default=best)
                assert value == 1 if ideal else 0 <= value < 1 if graded else value == 0, (relevance, left, named)
                if graded and low < high and len(named) == 1:
                    assert value == (high - best) / (high - low)  # whatever `drop` would have allowed


def test_a_right_answer_in_wrong_form_is_worth_more_than_a_wrong_one_in_right_form():
    for weight in (0.0, 0.2, 0.99):
        parts = rewarding.load({"top1_hit": 1.0, "format": weight})
        [rows] = scored(parts, group(ONE, "so: <answer>[1]</answer>", say("[3]"), say("[1]"), say("[9]"), ""))
        totals = [row["total"] for row in rows]
        assert totals == pytest.approx([1 - weight, 0, 1, -0.5, -1 - weight])
        assert totals[2] >= totals[0] > totals[1] > totals[3] > totals[4]


def test_parts_are_named_unweighted_and_summed_by_weight():
    parts = rewarding.load({"format": {"weight": 0.5}, "top1_hit": {"weight": 2.0, "graded": True}})
    [[row]] = scored(parts, group(ask([0, 1, 4]), "<answer>[2]</answer>"))
    assert row == pytest.approx({"format": -1.0, "top1_hit": 0.75, "task": 1.5, "total": 1.0})


def test_a_reward_that_could_not_be_computed_stays_one():
    judge = SimpleNamespace(name="judge", TASK=True, reward=lambda groups: [[float("nan"), 0.5]])
    [[missing, there]] = scored([rewarding.Part(judge, 1.0)], group(ONE, say("[1]"), say("[2]")))
    assert missing["total"] != missing["total"] and there["total"] == 0.5


def test_the_reward_looks_at_relevance_and_not_at_places_or_ids():
    for positive, named in combinations(range(5), 2):
        question = ask([float(i == positive) for i in range(5)])
        assert paid(question, say(f"[{named + 1}]"), say(f"[{positive + 1}]")) == [1, 0]
