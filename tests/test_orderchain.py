"""OrderChain-style: chains of ranges, what a chain is worth, and rankings by turns, in one pass, by probabilities."""

import math
import random

import pytest

from ranker import drive, llms
from ranker.answers import parse
from ranker.data import Answer, Ask, Candidate, Completion, Query
from ranker.decisions import range as ranges
from ranker.errors import UserError
from rewards import range_steps


def query(relevance, name="q") -> Query:
    return Query(name, "rank", "c", tuple(Candidate(f"c{i}", f"text {i}") for i in range(len(relevance))),
                 tuple(map(float, relevance)))


def test_the_trees_of_eight_and_of_five_grades():
    assert [ranges.halves(span) for span in ((0, 7), (0, 3), (4, 7), (6, 7))] == [
        ((0, 3), (4, 7)), ((0, 1), (2, 3)), ((4, 5), (6, 7)), ((6, 6), (7, 7))]
    assert ranges.halves((0, 4)) == ((0, 2), (3, 4)) and ranges.halves((0, 2)) == ((0, 1), (2, 2))
    assert [len(ranges.chain(y, 5)) - 1 for y in range(5)] == [3, 3, 2, 2, 2]
    assert [len(ranges.chain(y, 8)) - 1 for y in range(8)] == [3] * 8 and ranges.chain(0, 1) == [(0, 0)]
    assert ranges.chain(6, 8) == [(0, 7), (4, 7), (6, 7), (6, 6)]
    for classes in (2, 5, 8, 11):
        for y in range(classes):
            found = ranges.chain(y, classes)
            assert found[-1] == (y, y) and all(b in ranges.halves(a) for a, b in zip(found, found[1:]))


GRADED = query([6, 0, 7, 3])


def ask(candidate, decision="range_chain", span=(0, 7)) -> Ask:
    told = ranges.told(8, span)
    return Ask(GRADED, (candidate,), decision, told=told[:1] if decision == "range_chain" else told)


def worth(text, candidate="c0", decision="range_chain", span=(0, 7)) -> float:
    question = ask(candidate, decision, span)
    return range_steps.steps(question, parse(f"<answer>{text}</answer>", question))


@pytest.mark.parametrize("text, expected", [
    ("0..7 -> 4..7 -> 6..7 -> 6", 1.0), ("0..7 -> 4..7 -> 4..5 -> 4", 1 / 3), ("0..7 -> 0..3 -> 2..3 -> 3", 0.0),
    ("0..7 -> 4..7 -> 6..7", 2 / 3), ("0..7 -> 4..7 -> 5..7 -> 6", 1 / 3), ("4..7 -> 6..7 -> 6", 0.0), ("six", 0.0),
    ("0..7 -> 4..7 -> 6..7 -> 7", 2 / 3)])
def test_a_chain_is_worth_its_right_divisions_before_the_first_wrong_one(text, expected):
    assert worth(text) == pytest.approx(expected)


def test_a_leaf_that_is_near_has_a_shorter_chain():
    five = query([4, 0, 3])
    state = Ask(five, ("c0",), "range_chain", told=ranges.told(5, (0, 4))[:1])
    read = lambda text: range_steps.steps(state, parse(f"<answer>{text}</answer>", state))  # noqa: E731
    assert read("0..4 -> 3..4 -> 3") == 0.5 and read("0..4 -> 3..4 -> 4") == 1.0


def test_a_division_is_right_or_wrong_and_a_range_that_is_not_allowed_is_an_error():
    assert worth("4..7", decision="range") == 1.0 and worth("0..3", decision="range") == 0.0
    assert worth("6", decision="range", span=(6, 7)) == 1.0 and worth("6..6", decision="range", span=(6, 7)) == 1.0
    read = lambda text: parse(f"<answer>{text}</answer>", ask("c0", "range"))  # noqa: E731
    assert read("4 to 7").value == (4, 7) and read("6..7").status == "not_a_candidate"
    assert not read("likely").ok and not read("-1").ok
    with pytest.raises(UserError, match="take ranker.name=orderchain"):
        range_steps.steps(Ask(GRADED, GRADED.ids, "pick"), Answer("ok"))


def ranked(question, model, **options):
    [ranking] = drive.run(drive.load_ranker({"name": "orderchain"} | options), [question], model)
    return ranking


@pytest.mark.parametrize("chain", ["turns", "one_pass"])
def test_an_oracle_finds_every_grade(chain):
    ranking = ranked(GRADED, llms.scripted(llms.right_answer), chain=chain)
    assert ranking.scores == {"c2": 7.0, "c0": 6.0, "c3": 3.0, "c1": 0.0} and ranking.order == ["c2", "c0", "c3", "c1"]
    assert ranking.calls == (12 if chain == "turns" else 4) == drive.load_ranker(
        {"name": "orderchain", "chain": chain}).calls(4)
    mute = ranked(GRADED, llms.scripted(lambda ask: "no idea"), chain=chain)
    assert mute.order == list(GRADED.ids) and mute.failed == mute.calls


def test_soft_ranges_multiply_along_the_chain_and_rank_by_the_mean_grade():
    question = query([1, 0])
    share = {"c0": 0.8, "c1": 0.4}  # of every upper half

    def model(asks):
        found = []
        for a in asks:
            p = share[a.pool[0]]
            answer = Answer("ok", a.pool, scores=(math.log(1 - p) - 3, math.log(p) - 3), lengths=(1, 1))
            found.append((0, Completion([], [], "", True, answer)))
        return found

    ranking = ranked(question, model, classes=4, mask="soft")
    for c, p in share.items():
        mean = sum(y * p ** bin(y).count("1") * (1 - p) ** (2 - bin(y).count("1")) for y in range(4))
        assert ranking.scores[c] == pytest.approx(mean)
    assert ranking.order == ["c0", "c1"] and ranking.calls == 6
    with pytest.raises(UserError):
        drive.load_ranker({"name": "orderchain", "chain": "one_pass", "mask": "soft"})


def test_training_states_stand_on_the_way_to_the_right_grade():
    ranker, seen = drive.load_ranker({"name": "orderchain"}), set()
    for seed in range(200):
        [state] = ranker.sampled_asks(GRADED, random.Random(seed), None)
        now = ranges.read(dict(state.told)["now"])
        grade = ranges.grade(state, 8)
        assert state.decision == "range" and now[0] <= grade <= now[1] and now[0] < now[1]
        seen.add((state.pool[0], now))
    assert len(seen) == 12


def test_a_tree_says_how_grades_are_divided():
    pairs = [0, [[1, 2], [3, 4]]]  # Ord2Seq's own for five grades
    tree = ranges.tree_of(pairs, 5)
    assert tree == {(0, 4): ((0, 0), (1, 4)), (1, 4): ((1, 2), (3, 4)), (1, 2): ((1, 1), (2, 2)),
                    (3, 4): ((3, 3), (4, 4))}
    assert [len(ranges.chain(y, 5, tree)) - 1 for y in range(5)] == [1, 3, 3, 3, 3]
    five = query([4, 0, 3, 1])
    ranking = ranked(five, llms.scripted(llms.right_answer), classes=5, tree=pairs)
    assert ranking.scores == {"c0": 4.0, "c1": 0.0, "c2": 3.0, "c3": 1.0} and ranking.calls == 1 + 3 * 3
    assert drive.load_ranker({"name": "orderchain", "classes": 5, "tree": pairs}).calls(4) == 12
    state = Ask(five, ("c0",), "range", told=ranges.told(5, (0, 4), tree))
    assert parse("<answer>1..4</answer>", state).ok and not parse("<answer>3..4</answer>", state).ok
    for wrong, message in (([0, 1], "0 to 4"), ([0, [2, 3]], "does not follow"), ([0, 1, 2], "nested pairs")):
        with pytest.raises(UserError, match=message):
            drive.load_ranker({"name": "orderchain", "classes": 5, "tree": wrong})
    with pytest.raises(UserError, match="turn by turn"):
        drive.load_ranker({"name": "orderchain", "classes": 5, "tree": pairs, "chain": "one_pass"})


def test_wrong_divisions_are_counted_by_level_where_the_grade_is_known():
    upper = llms.scripted(lambda ask: f"<answer>{dict(ask.told)['upper']}</answer>")
    ranking = ranked(query([7, 6, 4, 0]), upper)  # right to the end, wrong at the third, second and first division
    assert ranking.notes == {f"wrong at level {k}": 1 for k in (1, 2, 3)}
    assert not ranked(query([0, 0, 0, 0]), upper).notes  # nobody knows


def test_a_scale_of_one_grade_is_worth_one():
    state = Ask(GRADED, ("c0",), "range_chain", told=(("scale", "0"),))
    assert range_steps.steps(state, parse("<answer>0</answer>", state)) == 1.0
