"""Behind the driver, one who knows ranks perfectly, one who is silent ranks at chance with every query failed, and a
liar ranks worst; what a query gets depends on its own answers and seed, not on its neighbours. Sampled training states
always hold a positive, at every place alike."""

import random
from collections import Counter
from importlib import import_module
from types import SimpleNamespace

import pytest

from ranker import drive, llms, metrics, world
from ranker.answers import parse
from ranker.data import Ask, Candidate, Query
from ranker.errors import UserError
from ranker.prompting import messages

elimination = drive.load_ranker({"name": "elimination"})
oracle, liar = llms.scripted(llms.right_answer), llms.scripted(llms.wrong_answer)
mute, babbler = llms.scripted(lambda ask: ""), llms.scripted(lambda ask: "<answer>pppppp</answer>")


def query(name, relevance, texts=None) -> Query:
    texts = texts or [f"text {i}" for i in range(len(relevance))]
    candidates = tuple(Candidate(f"{name}-{i}", text) for i, text in enumerate(texts))
    return Query(name, "rank", "context", candidates, tuple(map(float, relevance)))


def one_positive(n, name="q", place=None) -> Query:
    place = random.Random(name).randrange(n) if place is None else place
    return query(name, [float(i == place) for i in range(n)])


def mrr(ranking) -> float:
    return metrics.of(ranking.gains)["MRR"]


@pytest.mark.parametrize("n", range(2, 21))
def test_an_oracle_ranks_the_positive_first_and_a_liar_last(n):
    queries = [one_positive(n, f"q{place}", place) for place in range(n)]
    assert all(mrr(r) == 1 for r in drive.run(elimination, queries, oracle))
    assert all(mrr(r) == 1 / n for r in drive.run(elimination, queries, liar))


def test_an_oracle_orders_graded_and_tied_relevance_perfectly_and_a_liar_the_other_way_round():
    rng = random.Random(0)
    queries = [query(f"q{i}", [rng.choice((0, 0.25, 0.5, 1, 3)) for _ in range(rng.randint(2, 15))] + [1])
               for i in range(60)]
    for right, wrong in zip(drive.run(elimination, queries, oracle), drive.run(elimination, queries, liar)):
        assert (right.gains == sorted(right.gains, reverse=True)
                and metrics.of(right.gains)["nDCG@20"] == pytest.approx(1))
        assert wrong.gains == sorted(wrong.gains)


def test_every_built_in_task_is_solved_by_an_oracle():
    queries = [q for task in world.TASKS for q in world.queries(task, "test", 3)]
    for ranking in drive.run(elimination, queries, oracle):
        assert metrics.of(ranking.gains) == pytest.approx(dict.fromkeys(metrics.NAMES, 1.0)) and ranking.failed == 0


@pytest.mark.parametrize("model, status", [(mute, "missing_answer"), (babbler, "not_a_candidate")])
def test_a_model_that_decides_nothing_ranks_at_chance_and_fails_every_query(model, status):
    n, queries = 5, [one_positive(5, f"q{i}") for i in range(400)]
    rankings = drive.run(elimination, queries, model)
    # H_n / n; one query's RR has an sd of 0.28, the mean 0.014
    chance = metrics.random_order(queries[0].relevance)["MRR"]
    assert sum(map(mrr, rankings)) / 400 == pytest.approx(chance, abs=0.045)
    assert all(r.failed == r.calls == n - 1 and r.statuses == {status: n - 1} for r in rankings)


def test_chance_does_not_depend_on_where_the_positive_stands():
    for place in (0, 4):
        rankings = drive.run(elimination, [one_positive(5, f"q{i}", place) for i in range(400)], mute)
        assert sum(map(mrr, rankings)) / 400 == pytest.approx(metrics.random_order([1, 0, 0, 0, 0])["MRR"], abs=0.045)


@pytest.mark.parametrize("n", [2, 3, 7, 20])
def test_n_candidates_cost_n_minus_1_asks_with_pools_that_shrink_by_the_named(n):
    asked = []
    [ranking] = drive.run(elimination, [one_positive(n)], oracle,
                          on_ask=lambda ask, round, _: asked.append((round, ask)))
    assert ranking.calls == elimination.calls(n) == n - 1 == len(asked)
    assert [round for round, _ in asked] == list(range(n - 1))
    assert [len(ask.pool) for _, ask in asked] == list(range(n, 1, -1))
    dropped = [set(a.pool) - set(b.pool) for (_, a), (_, b) in zip(asked, asked[1:])]
    assert [d.pop() for d in dropped] == ranking.order[:1:-1]  # the first dropped is ranked last


def test_one_candidate_needs_no_ask():
    [ranking] = drive.run(elimination, [query("lonely", [1])], mute)
    assert ranking.order == ["lonely-0"] and ranking.calls == ranking.failed == 0
    assert elimination.calls(1) == elimination.calls(0) == 0 and drive.run(elimination, [], mute) == []


def test_a_ranking_depends_on_seed_and_query_alone():
    queries = [one_positive(2 + i % 9, f"q{i}") for i in range(30)]
    orders = lambda chosen, seed=0: {r.query.id: r.order  # noqa: E731
                                     for r in drive.run(elimination, chosen, mute, seed)}
    together = orders(queries)
    assert orders(queries[::-1]) == together
    for q in queries[::7]:
        assert orders([q]) == {q.id: together[q.id]}
    assert orders(queries, seed=1) != together


def test_one_failed_ask_fails_its_query_and_costs_only_its_own_decision():
    def sometimes(ask):
        return "" if len(ask.pool) == 3 and ask.query.id == "b" else llms.right_answer(ask)

    a, b = drive.run(elimination, [one_positive(6, "a"), one_positive(6, "b")], llms.scripted(sometimes))
    assert (a.failed, b.failed) == (0, 1) and b.statuses == {"ok": 4, "missing_answer": 1} and mrr(a) == 1
    assert set(b.order) == set(b.query.ids)


def test_equal_texts_are_two_candidates():
    twins = query("twins", [0, 1, 0, 0], ["Heat", "Heat", "Heat", "Jaws"])
    [ranking] = drive.run(elimination, [twins], oracle)
    assert ranking.order[0] == "twins-1" and sorted(ranking.order) == sorted(twins.ids) and ranking.failed == 0
    by_name = llms.scripted(lambda ask: f"<answer>{ask.query.texts[ask.pool[0]]}</answer>")
    [named] = drive.run(elimination, [query("pair", [0, 1], ["Heat", "Heat"])], by_name)
    assert sorted(named.order) == ["pair-0", "pair-1"] and named.failed == 1  # a name that two have names no one


def test_all_queries_of_a_round_are_asked_in_one_batch():
    sizes = []

    def model(asks):
        sizes.append(len(asks))
        return oracle(asks)

    drive.run(elimination, [one_positive(n, f"q{n}") for n in (2, 4, 4, 5)], model)
    assert sizes == [4, 3, 3, 1]


def test_costs_are_counted_for_the_query_that_caused_them():
    def model(asks):
        return [(len(ask.pool), SimpleNamespace(tokens=3, cut=None, answer=c.answer, seconds=0.5))
                for ask, (_, c) in zip(asks, oracle(asks))]

    short, long = drive.run(elimination, [one_positive(2, "a"), one_positive(4, "b")], model)
    assert (short.calls, short.prompt_tokens, short.completion_tokens) == (1, 2, 3)
    assert (long.calls, long.prompt_tokens, long.completion_tokens) == (3, 4 + 3 + 2, 9)
    assert (short.seconds, long.seconds) == (0.5, 1.5)


def pointwise(query, rng):
    """Scores all candidates at once, then picks between the best two: a list of asks, then a single one."""
    answers = yield [Ask(query, (c,), "score") for c in query.ids]
    score = dict(zip(query.ids, (a.value[0] for a in answers)))
    order = sorted(query.ids, key=lambda c: -score[c])
    answer = yield Ask(query, tuple(order[:2]), "pick")
    return [answer.value[0], *[c for c in order if c != answer.value[0]]]


def test_a_ranker_may_ask_many_things_at_once_beside_one_that_asks_one():
    both = SimpleNamespace(name="both",
                           rank=lambda q, rng: (pointwise if q.id[0] == "p" else elimination.rank)(q, rng))
    queries = [query("p1", [0, 2, 4, 1]), query("e1", [0, 2, 4, 1]), query("p2", [3, 0])]
    rankings = drive.run(both, queries, oracle)
    assert [r.gains for r in rankings] == [[4, 2, 1, 0], [4, 2, 1, 0], [3, 0]]
    assert [r.calls for r in rankings] == [5, 3, 3]


def test_a_ranker_may_ask_nothing_for_a_round():
    def rank(query, rng):
        assert (yield []) == []
        answer = yield Ask(query, query.ids, "pick")
        assert (yield []) == []
        return [answer.value[0], *(c for c in query.ids if c != answer.value[0])]

    queries = world.queries("passage-5", "test", 2)
    rankings = drive.run(SimpleNamespace(rank=rank, name="quiet"), queries, llms.scripted(llms.right_answer))
    assert all(r.order[0] in r.query.positives and r.calls == 1 for r in rankings)


def test_a_list_of_one_ask_receives_a_list_of_one_answer():
    def rank(query, rng):
        [answer] = yield [Ask(query, query.ids, "order")]
        return answer.value

    [ranking] = drive.run(SimpleNamespace(name="listwise", rank=rank), [query("q", [0, 1, 2])], oracle)
    assert ranking.gains == [2, 1, 0] and ranking.calls == 1


@pytest.mark.parametrize("result", [[], ["q-0"], ["q-0", "q-0", "q-1"], ["q-0", "q-1", "q-2", "q-3"],
                                    ["text 0", "text 1"]])
def test_a_ranker_that_loses_or_doubles_a_candidate_is_a_bug(result):
    def rank(query, rng):
        yield Ask(query, query.ids, "order")
        return result

    with pytest.raises(UserError, match="'toy' did not return a permutation of the candidates of query q"):
        drive.run(SimpleNamespace(name="toy", rank=rank), [query("q", [1, 0, 0])], oracle)


def test_a_model_that_loses_an_answer_is_a_bug():
    with pytest.raises(ValueError):
        drive.run(elimination, [one_positive(3, "a"), one_positive(3, "b")], lambda asks: oracle(asks)[:1])


def test_rankers_are_found_by_the_name_of_their_file_and_take_options():
    assert elimination.rank.func is import_module("ranker.rankers.elimination").rank
    sliding = drive.load_ranker({"name": "sliding", "window": "4", "step": 2})
    assert sliding.calls(10) == 4 and len(sliding.sampled_asks(one_positive(9), random.Random(0), None)[0].pool) == 4
    for section, words in (({"name": "elimination", "window": 4}, "ranker 'elimination' has no option 'window'"),
                           ({"name": "sliding", "step": 20}, r"step \(20\) must be below window \(20\)"),
                           ({"name": "sliding", "windw": 4}, "did you mean 'window'"),
                           ({"name": "sliding", "window": 1.5}, "ranker.window must be a whole number")):
        with pytest.raises(UserError, match=words):
            drive.load_ranker(section, "my.yaml")


def chi_square(counts, cells) -> float:
    expected = sum(counts.values()) / len(cells)
    return sum((counts[cell] - expected) ** 2 / expected for cell in cells)


def test_a_sampled_state_holds_one_positive_among_distinct_negatives():
    rng = random.Random(0)
    graded = query("q", [0.2, 0.9, 0.9, 0.0, 0.5])
    for _ in range(300):
        ask = elimination.sampled_asks(graded, rng, None)[0]
        assert ask.decision == "eliminate" and 2 <= len(ask.pool) <= 4 and len(set(ask.pool)) == len(ask.pool)
        assert sum(c in graded.positives for c in ask.pool) == 1


def test_a_query_of_one_grade_gives_a_pool_of_any():
    same = query("q", [1, 1, 1])
    sizes = {len(set(elimination.sampled_asks(same, random.Random(i), None)[0].pool)) for i in range(50)}
    assert sizes == {2, 3}


def test_sampled_pools_have_every_size_and_the_positive_every_place_and_each_negative_alike():
    n, rng, q = 6, random.Random(0), one_positive(6)
    asks = [elimination.sampled_asks(q, rng, None)[0] for _ in range(6000)]
    sizes = Counter(len(ask.pool) for ask in asks)
    assert set(sizes) == set(range(2, n + 1)) and chi_square(sizes, range(2, n + 1)) < 18.5  # 4 df, p = 0.001
    for size, limit in ((2, 10.8), (4, 16.3), (6, 20.5)):  # 1, 3 and 5 df, p = 0.001
        places = Counter(ask.pool.index(q.positives[0]) for ask in asks if len(ask.pool) == size)
        assert chi_square(places, range(size)) < limit
    negatives = Counter(c for ask in asks if len(ask.pool) == 3 for c in ask.pool if c not in q.positives)
    assert len(negatives) == n - 1 and chi_square(negatives, negatives) < 18.5


def test_sampled_states_repeat_for_a_seed():
    q = one_positive(8)
    draw = lambda seed: [elimination.sampled_asks(q, random.Random(f"{seed}/{i}"), None)  # noqa: E731
                         for i in range(20)]
    assert draw(0) == draw(0) != draw(1)


# the options of elimination: lists that stay, several at a time, logits at the end

OPTIONS = [{"pool": "append"}, {"drop": 3}, {"pool": "append", "drop": 4}, {"final": 5},
           {"pool": "append", "drop": 2, "final": 6}]


def knowing_logits(ask):
    """What the scripted oracle says where only logits are read: every candidate, the least likely first."""
    worst_first = sorted(ask.pool, key=lambda c: ask.query.rel[c])
    return f"<answer>{' > '.join(f'[{ask.pool.index(c) + 1}]' for c in worst_first)}</answer>"


@pytest.mark.parametrize("options", OPTIONS)
def test_an_oracle_ranks_perfectly_however_elimination_asks(options):
    ranker = drive.load_ranker({"name": "elimination", **options})
    model = llms.scripted(lambda ask: knowing_logits(ask) if ask.by_logits else llms.right_answer(ask))
    rng = random.Random(0)
    queries = [query(f"q{n}-{i}", [rng.choice((0, 1, 2, 4)) for _ in range(n - 1)] + [1]) for n in range(1, 21)
               for i in range(3)]
    for ranking in drive.run(ranker, queries, model):
        assert ranking.gains == sorted(ranking.gains, reverse=True)
        assert ranking.calls == ranker.calls(len(ranking.query.ids)) and ranking.failed == 0


def test_what_is_asked_once_the_list_stays_and_several_leave():
    asked = []
    ranker = drive.load_ranker({"name": "elimination", "pool": "append", "drop": 3, "final": 3})
    model = llms.scripted(lambda ask: asked.append(ask)
                          or (knowing_logits(ask) if ask.by_logits else llms.right_answer(ask)))
    one = query("q", [5, 1, 0, 2, 4, 3, 6])
    [ranking] = drive.run(ranker, [one], model)
    assert [(ask.out, ask.drop, ask.by_logits) for ask in asked] == [
        ((), 3, False), (("q-2", "q-1", "q-3"), 3, False)]  # one is left
    assert all(ask.pool == one.ids for ask in asked) and asked[1].left == ("q-0", "q-4", "q-5", "q-6")
    assert ranking.gains == [6, 5, 4, 3, 2, 1, 0]
    text = messages(asked[1])[-1]["content"]
    assert text.endswith("\nOut already: [3], [2], [4]") and "at most 3" in text
    assert messages(asked[0])[-1]["content"].endswith("\nOut already: none")


def test_a_candidate_that_is_out_can_not_be_named_again_nor_more_than_asked_for():
    one = query("q", [5, 1, 0, 2, 4], ["red", "blue", "green", "black", "white"])
    ask = Ask(one, one.ids, "eliminate", out=("q-2",), drop=2)
    status = lambda answer: parse(f"<answer>{answer}</answer>", ask).status  # noqa: E731
    assert ([status(answer) for answer in ("[1]", "[2] > [5]", "2, 5", "red > blue", "[3]", "green", "[1] > [3]",
                                           "[1] > [2] > [4]", "[1] > [1]")]
            == ["ok", "ok", "ok", "ok", "not_a_candidate", "not_a_candidate", "not_a_candidate", "repetition",
                "repetition"])
    assert parse("<answer>[4] > [1]</answer>", ask).value == ("q-3", "q-0")


@pytest.mark.parametrize("options", OPTIONS)
def test_training_draws_the_form_that_ranking_asks_in(options):
    ranker = drive.load_ranker({"name": "elimination", **options})
    one, seen = one_positive(8), Counter()
    for seed in range(300):
        ask = ranker.sampled_asks(one, random.Random(seed), None)[0]
        assert set(ask.left) & set(one.positives) and len(ask.left) >= 2 and not ask.by_logits
        assert ask.drop == min(options.get("drop", 1), len(ask.left) - 1)
        if options.get("pool") == "append":
            assert sorted(ask.pool) == sorted(one.ids) and sorted((*ask.left, *ask.out)) == sorted(one.ids)
        else:
            assert ask.out is None
        seen[len(ask.left)] += 1
    assert set(seen) == set(range(2, 9))


@pytest.mark.parametrize("options, words", [({"pool": "both"}, "one of rewrite, append"), ({"drop": 0}, "at least 1"),
                                            ({"final": 1}, "at least 2")])
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        drive.load_ranker({"name": "elimination", **options})
