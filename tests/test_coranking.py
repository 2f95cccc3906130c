"""CoRanking-style: who is asked what and how often, the controls, what an arrangement earns, and labels first."""

import inspect

import pytest

from ranker import config as settings, drive, llms, rewarding
from ranker.answers import parse
from ranker.config import Data
from ranker.data import Ask, Candidate, Completion, Group, Query, write_queries
from ranker.errors import UserError
from ranker.evaluation import inputs
from ranker.lessons import labelled_first
from ranker.objectives import dpo
from ranker.sources import training
from rewards import downstream_ndcg


def query(n, name="q") -> Query:
    return Query(name, "rank", "c", tuple(Candidate(f"c{i}", f"text {i}") for i in range(n)),
                 tuple(float(i == n - 1) for i in range(n)))


ORACLE, KEEPS = llms.scripted(llms.right_answer), llms.scripted(
    lambda ask: f"<answer>{' > '.join(f'[{k}]' for k in range(1, len(ask.pool) + 1))}</answer>")
REVERSES = llms.scripted(lambda ask: f"<answer>{' > '.join(f'[{k}]' for k in range(len(ask.pool), 0, -1))}</answer>")
MUTE = llms.scripted(lambda ask: "no idea")


def ranked(query, small=KEEPS, adjuster=KEEPS, large=KEEPS, **options):
    section = {"name": "coranking", "small_role": "small", "adjuster_role": "adjuster", "large_role": "large"} | options
    [ranking] = drive.run(drive.load_ranker(section), [query], {"small": small, "adjuster": adjuster, "large": large})
    return ranking


@pytest.mark.parametrize("n, small", [(100, 9), (20, 1), (5, 1), (2, 1), (1, 0)])
def test_a_hundred_documents_cost_the_small_one_nine_calls_and_the_others_one(n, small):
    ranking = ranked(query(n))
    counts = {role: cost.calls for role, cost in ranking.roles.items()}
    assert counts == ({"small": small, "adjuster": 1, "large": 1} if n > 1 else {})
    assert sum(counts.values()) == drive.load_ranker({"name": "coranking"}).calls(n)
    assert sorted(ranking.order) == sorted(ranking.query.ids)


def test_the_large_one_has_the_last_word_over_the_head_and_the_tail_stays():
    n = query(30)
    assert ranked(n, large=ORACLE, head=10).order == list(n.ids)  # the best one stands at the end, out of reach
    assert ranked(n, small=ORACLE, adjuster=REVERSES, head=10).order[:10] == ranked(n, small=ORACLE).order[:10][::-1]
    assert ranked(n, small=ORACLE, head=10, head_order="reversed").order[9] == "c29"
    assert ranked(n, small=ORACLE, adjuster=MUTE, head=10).order[0] == "c29"  # repaired, and counted:
    assert ranked(n, small=ORACLE, adjuster=MUTE, head=10).failed == 1
    control = ranked(n, small=ORACLE, head_order="small")
    assert "adjuster" not in control.roles and control.roles["large"].calls == 1


def test_with_an_oracle_behind_it_any_arrangement_is_as_good():
    assert ranked(query(20), adjuster=REVERSES, large=ORACLE).order[0] == "c19"


def group(*orders) -> Group:
    asked = query(3)
    ask = Ask(asked, asked.ids, "arrange")
    texts = [f"<answer>{' > '.join(f'[{k}]' for k in order)}</answer>" for order in orders]
    return Group(ask, [], [Completion([k], [-1.0], text, True, parse(text, ask)) for k, text in enumerate(texts)])


def paid(found, models) -> list[float]:
    asked, counted = [], lambda model: lambda asks: (asked.extend(asks), model(asks))[1]
    part = rewarding.load({"downstream_ndcg": {}})
    rewarding.score(part, [found], {"base": counted(models)})
    return [c.rewards["task"] for c in found.completions], len(asked)


def test_an_arrangement_earns_what_the_large_ranker_makes_of_it_and_equal_ones_are_asked_about_once():
    found = group((3, 1, 2), (1, 2, 3), (3, 1, 2), ())
    values, asked = paid(found, KEEPS)
    assert values == [pytest.approx(1.0), pytest.approx(0.5), pytest.approx(1.0), -1.0] and asked == 2
    assert inspect.isgeneratorfunction(downstream_ndcg.reward)


def test_a_large_ranker_that_does_not_care_leaves_no_pair():
    found = group((3, 1, 2), (1, 2, 3), (2, 3, 1))
    values, _ = paid(found, ORACLE)
    assert values == [1.0] * 3
    for c in found.completions:
        c.returns = {"task": c.rewards["task"], "total": c.rewards["total"]}
    dpo.alive([found], dpo.Options())
    assert not any(c.alive for c in found.completions)
    with pytest.raises(UserError, match="take ranker.name=coranking"):
        paid(Group(Ask(query(3), query(3).ids, "pick"), [], found.completions), ORACLE)


def test_the_large_ranker_of_training_is_that_of_ranking():
    [part] = rewarding.load({"downstream_ndcg": {"role": "large"}})
    part.plugin.fits(drive.load_ranker({"name": "coranking", "large_role": "large"}))
    part.plugin.fits(drive.load_ranker({"name": "listwise"}))  # which has none
    with pytest.raises(UserError, match="ranker.large_role is 'base', and reward.downstream_ndcg.role 'large'"):
        part.plugin.fits(drive.load_ranker({"name": "coranking"}))


def test_labels_move_to_the_top_and_both_parts_keep_the_teachers_order(tmp_path):
    ids = [Candidate(str(i), f"t{i}") for i in range(1, 5)]
    taught = Query("q", "rank", "c", tuple(ids), (3.0, 1.0, 4.0, 2.0))  # the teacher: 3, 1, 4, 2
    order = lambda q: sorted(q.ids, key=lambda c: -q.rel[c])  # noqa: E731
    human = {"1": 1.0, "2": 0.0, "3": 0.0, "4": 2.0}
    assert order(labelled_first.labelled_first(taught, human)) == ["1", "4", "3", "2"]
    assert order(labelled_first.labelled_first(taught, dict.fromkeys(human, 0.0))) == ["3", "1", "4", "2"]
    many = [Query(f"q{i}", "rank", "c", tuple(ids), (0.0, 0.0, 0.0, 1.0)) for i in range(40)]
    write_queries(tmp_path / "data.jsonl", many)
    (tmp_path / "teacher.trec").write_text("".join(
        f"q{i} Q0 {c} {place} {9 - place} t\n" for i in range(40) for place, c in enumerate("3142", 1)))
    data = Data(train=str(tmp_path / "data.jsonl"),
                lessons=[{"name": "labelled_first", "run": str(tmp_path / "teacher.trec")}])
    assert all(order(q) == ["4", "3", "1", "2"] for q in training(data, 0).items)


def test_an_adjuster_that_is_used_with_another_head_or_large_ranker_is_told_of():
    trained = {"ranker": {"name": "coranking", "head": 10, "large_role": "large"},
               "roles": {"large": {"adapter": "a", "llm": {}}}}
    now = lambda adapter="a", **options: settings.Config(  # noqa: E731
        ranker=trained["ranker"] | options, roles={"large": {"adapter": adapter, "llm": {}}})
    assert inputs.unfit(trained, now()) == []
    assert inputs.unfit(trained, now(head=20)) == ["ranker.head=10, and is used with 20"]
    [text] = inputs.unfit(trained, now(adapter="b"))
    assert text == "ranker.large_role=large, and is used with large, which is another model now"
    assert inputs.unfit(trained, settings.Config(ranker={"name": "sliding"})) == []
