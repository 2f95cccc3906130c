"""The built-in world repeats itself for a seed, is right about who fits, and can't be solved by matching words or by
half of the wish: there is something to learn, and a careful reader can learn it."""

import itertools
import re

import pytest

from ranker import metrics, world
from ranker.evaluation import baselines

TASKS = list(world.TASKS)
SIZES = {"rec-movie": 20, "rec-music": 20, "rec-game": 20, "router-performance": 10, "router-balance": 10,
         "router-cost": 10, "passage-5": 5, "passage-7": 7, "passage-9": 9}  # the paper's
N = 60


def readings(task, split="test", count=N):
    return [world.draw(task, split, i) for i in range(count)]


def share_on_top(pairs) -> float:
    """How often the candidate of the highest score is a best one; among equal scores it must be every one of them."""
    hits = 0
    for query, scores in pairs:
        hits += all(query.relevance[i] == max(query.relevance) for i, s in enumerate(scores) if s == max(scores))
    return hits / len(pairs)


def test_the_tasks_are_the_papers():
    assert world.TASKS == SIZES


@pytest.mark.parametrize("task", TASKS)
def test_a_query_is_the_same_every_time_and_alone(task):
    queries = world.queries(task, "train", 5)
    assert queries == [world.query(task, "train", i) for i in range(5)]
    assert queries == [world.draw(task, "train", i)[0] for i in range(5)]


@pytest.mark.parametrize("task", TASKS)
def test_seeds_and_splits_give_other_queries(task):
    content = lambda q: (q.context, q.candidates)  # noqa: E731
    drawn = [content(q) for split in world.SPLITS for seed in (0, 1) for q in world.queries(task, split, N, seed)]
    assert len(set(drawn)) == len(drawn)
    ids = [q.id for split in world.SPLITS for q in world.queries(task, split, N)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("task", TASKS)
def test_pools_have_the_stated_size_and_candidates_that_can_be_told_apart(task):
    for q in world.queries(task, "test", N):
        assert q.task == task and len(q.candidates) == len(q.relevance) == SIZES[task]
        assert len(set(q.ids)) == SIZES[task]
        texts = list(q.texts.values())  # negative passages may repeat; what is right never does
        assert all(texts.count(q.texts[c]) == 1 for c in (q.positives if task.startswith("passage") else q.ids))
        assert isinstance(q.context, tuple) == task.startswith("rec") and q.context


@pytest.mark.parametrize("task", [t for t in TASKS if not t.startswith("router")])
def test_recommendations_and_passages_have_one_positive_anywhere_in_the_pool(task):
    queries = world.queries(task, "train", 200)
    assert all(sorted(q.relevance) == [0.0] * (SIZES[task] - 1) + [1.0] for q in queries)
    places = [q.relevance.index(1.0) for q in queries]
    assert set(places) == set(range(SIZES[task]))
    assert sum(places) / 200 == pytest.approx((SIZES[task] - 1) / 2, abs=1.4)  # sd of the mean: at most 0.41


@pytest.mark.parametrize("task, skill_worth, price_worth", [
    ("router-performance", 1.0, 0.0), ("router-balance", 0.6, 0.4), ("router-cost", 0.2, 0.8)])
def test_routing_relevance_is_the_stated_utility_read_from_the_text(task, skill_worth, price_worth):
    grades = set()
    for q in world.queries(task, "test", N):
        topic = next(t for t, questions in world.TOPICS.items() if q.context in questions)
        for candidate in q.candidates:
            strength, price = re.fullmatch(r"good at (\w+), \$([123]): \w+", candidate.text).groups()
            assert (q.rel[candidate.id]
                    == pytest.approx(skill_worth * (strength == topic) + price_worth * (3 - int(price)) / 2, abs=1e-3))
        grades |= set(q.relevance)
        assert min(q.relevance) >= 0 < max(q.relevance)
    assert len(grades) == (6 if price_worth else 2)  # graded wherever the price counts


def test_the_three_routing_objectives_disagree_about_the_best():
    """The same pools, judged by each objective."""
    different = 0
    for q in world.queries("router-balance", "test", N):
        topic = next(t for t, questions in world.TOPICS.items() if q.context in questions)
        parts = [re.fullmatch(r"good at (\w+), \$([123]): \w+", c.text).groups() for c in q.candidates]
        best = []
        for skill_worth, price_worth in world.UTILITY.values():
            value = [skill_worth * (a == topic) + price_worth * (3 - int(p)) / 2 for a, p in parts]
            best.append(frozenset(i for i, v in enumerate(value) if v == max(value)))
        different += len(set(best)) > 1
    assert different > N / 2


@pytest.mark.parametrize("task", TASKS)
def test_a_careful_reading_puts_a_best_candidate_on_top_of_every_query(task):
    for split in world.SPLITS:
        assert share_on_top([(q, reading.fit) for q, reading in readings(task, split)]) == 1


@pytest.mark.parametrize("task", TASKS)
def test_the_reading_speaks_about_every_candidate_and_its_signs_agree_with_fit(task):
    for q, reading in readings(task):
        assert len(reading.offers) == len(reading.signs) == len(reading.fit) == len(reading.half) == len(q.ids)
        assert all(re.fullmatch(r"[-=+]{2}", sign) for sign in reading.signs)
        value = {"-": 0, "=": 1, "+": 2}
        for (a, fit_a), (b, fit_b) in itertools.combinations(zip(reading.signs, reading.fit), 2):
            if all(value[x] >= value[y] for x, y in zip(a, b)):  # at least as good in both wishes
                assert fit_a >= fit_b
            # the primary wish, which stands last, decides
            if not task.startswith("router") and value[a[1]] > value[b[1]]:
                assert fit_a > fit_b


@pytest.mark.parametrize("task", TASKS)
def test_half_of_the_wish_is_not_enough(task):
    """Ranking by the secondary wish alone, ties in random order, is far from right and so leaves a reward much to
    teach."""
    drawn = readings(task, count=200)
    assert share_on_top([(q, reading.half) for q, reading in drawn]) < 0.3
    expected = []
    for q, reading in drawn:
        top = [q.relevance[i] for i, h in enumerate(reading.half) if h == max(reading.half)]
        expected.append(sum(g == max(q.relevance) for g in top) / len(top))
    assert sum(expected) / len(expected) < 0.6


@pytest.mark.parametrize("task", TASKS)
def test_matching_words_is_far_from_solving_it(task):
    queries = world.queries(task, "test", 200)
    mrr = metrics.mean([metrics.of([q.rel[c] for c in baselines.bm25(q)]) for q in queries])["MRR"]
    assert mrr < 0.65
    if task.startswith("router"):  # a question never names its topic, so BM25 is chance
        assert mrr == pytest.approx(metrics.mean([metrics.random_order(q.relevance) for q in queries])["MRR"], abs=0.08)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_wanted_is_rarely_said_in_the_words_of_what_is_offered(task):
    """In less than half of the queries the best candidate shares all its meaningful words with the context."""
    said = 0
    for q, reading in readings(task, count=200):
        context = set(baselines.tokens(" ".join(q.context) if isinstance(q.context, tuple) else q.context))
        offer = q.texts[q.positives[0]].partition(": " if task.startswith("rec") else "\0")[0]
        said += set(baselines.tokens(offer)) <= context
    assert said < 100


@pytest.mark.parametrize("task", TASKS)
def test_texts_are_short_and_ascii(task):
    for split in world.SPLITS:
        for q in world.queries(task, split, N):
            for text in (*q.texts.values(), *(q.context if isinstance(q.context, tuple) else [q.context])):
                assert text.isascii() and text.isprintable() and text == text.strip() and 0 < len(text) <= 60


def test_every_word_names_one_meaning():
    """Else a reader could not tell what is offered."""
    for table in (world.MOODS, *world.GENRES.values()):
        words = [word for meaning in table.values() for word in meaning.split()]
        assert len(set(words)) == len(words) and all(meaning in said.split() for meaning, said in table.items())
        assert not set(words) & set(" ".join(itertools.chain(*world.TITLES)).lower().split())
    assert not {w for words in world.MOODS.values() for w in words.split()} & {
        w for genres in world.GENRES.values() for words in genres.values() for w in words.split()}


@pytest.mark.parametrize("task, split", [("rec-book", "test"), ("rec-movie", "dev"), ("", "train")])
def test_what_does_not_exist_is_refused(task, split):
    with pytest.raises(ValueError, match="no built-in task"):
        world.draw(task, split, 0)
