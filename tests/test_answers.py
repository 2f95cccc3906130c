"""The one parser reads an answer or says why it can't, and never guesses: a reward that is paid for a guess gets
hacked. `answers_golden.jsonl` holds nasty completions, one a line, with `value` as 1-based places in `pool` (or the
score)."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from ranker.answers import parse, span
from ranker.data import STATUSES, Ask, Candidate, Query

GOLDEN = [json.loads(text)
          for text in (Path(__file__).parent / "answers_golden.jsonl").read_text(encoding="utf-8").splitlines()]
DECISIONS = ("eliminate", "pick", "order", "narrow", "score")
POOL = ("Alien (1979)", "Aliens", "Rocky II", "Rocky III", "300", "Heat", "Heat", "12 Angry Men", "Amélie", "")


def ask(decision, texts) -> Ask:
    """Ids that say nothing, so that no test can pass by reading an id for a text or a place."""
    candidates = tuple(Candidate(f"id-{chr(122 - i)}", text) for i, text in enumerate(texts))
    query = Query("q", "rank", "context", candidates, (1.0, *[0.0] * (len(texts) - 1)))
    return Ask(query, query.ids, decision)


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_golden(case):
    question = ask(case["decision"], case["pool"])
    answer = parse(case["text"], question, case.get("finished", True))
    value = case["value"]
    expected = (value,) if isinstance(value, int) else tuple(question.pool[k - 1] for k in value)
    assert (answer.status, answer.value) == (case["status"], expected)


def test_the_golden_file_covers_every_decision_and_status_and_repeats_no_name():
    assert len({case["name"] for case in GOLDEN}) == len(GOLDEN) >= 70
    assert ({case["decision"] for case in GOLDEN} == set(DECISIONS)
            and {case["status"] for case in GOLDEN} == set(STATUSES))


@pytest.mark.parametrize("text, inside", [
    ("<answer>a</answer>", "a"),
    ("<answer>a</answer><answer>b</answer>", "b"),
    ("<think><answer>a</answer></think>", None),
    ("x</think>y</think><answer>a</answer>", "a"),
    ("<answer>a</answer><think>b", "a"),
    ("<answer>", None),
    ("</answer><answer>", None),
])
def test_the_span_is_the_last_pair_after_the_last_thought(text, inside):
    assert span(text) == inside


def test_a_completion_of_spaces_is_read_in_one_pass(run=" " * 100_000):
    """Patterns that look past them again and again would take minutes."""
    for inside, status in ((f"candidate{run}x", "not_a_candidate"), (f"candidate #{run}2", "ok"),
                           (f"candidate{run}#{run}2", "ok"), (f"[{run}2", "ok"), (f"[{run}2{run}", "ok"),
                           (f"{run}({run}2.{run}", "ok"), (f"Heat{run}>{run}Jaws", "ok"), (f"[1{run}]{run}x", "ok")):
        assert (parse(f"<answer>{inside}</answer>", ask("eliminate", ["Alien", "Heat", "Rocky"])).status
                == status), inside.replace(run, "_")


FRAGMENTS = ("<think>", "</think>", "<answer>", "</answer>", "[1]", "[2]", "[0]", "[11]", "[", "]", " > ", "\n", "3",
             "7/10", "Alien", "aliens", "Rocky II", "300", "Heat", "Ame\u0301lie", "none", "［３］", "【4】", "\u200b",
             "\x00", "\ud800", "🎬", "i", "(", "-", "9" * 30, "½", "²", "ﬁ", "İ", "ß", "<|im_end|>", "{", "\\", "")


def junk(rng: random.Random) -> str:
    """A golden completion cut, doubled, spliced and sprinkled, or fragments alone."""
    text = rng.choice(GOLDEN)["text"][:400] if rng.random() < 0.7 else ""
    for _ in range(rng.randint(1, 6)):
        i, j = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        text = rng.choice((text[:i] + rng.choice(FRAGMENTS) + text[i:], text[:i] + text[j:], text[:j] + text[i:],
                           text[:i] + "".join(rng.choices(FRAGMENTS, k=3)) + text[j:]))
    return text if rng.random() < 0.5 else f"<think>a</think><answer>{text}</answer>"


def check(answer, question):
    """What every answer keeps to, whatever was written."""
    assert answer.status in STATUSES
    value, pool = answer.value, question.pool
    if question.decision == "score":
        assert (len(value) == 1 and type(value[0]) is int and 0 <= value[0] <= 10) if answer.ok else value == ()
        return
    assert len(set(value)) == len(value) and set(value) <= set(pool)
    if answer.ok:
        wanted = {"eliminate": 1, "pick": 1, "order": len(pool), "narrow": (len(pool) + 1) // 2}
        assert len(value) == wanted[question.decision]


def test_junk_gives_a_whole_decision_or_a_named_failure_and_never_an_exception():
    rng, statuses = random.Random(0), Counter()
    for _ in range(3000):
        question = ask(rng.choice(DECISIONS), rng.sample(POOL, rng.randint(1, len(POOL))))
        answer = parse(junk(rng), question, rng.random() < 0.8)
        check(answer, question)
        statuses[answer.status] += 1
    assert set(statuses) == set(STATUSES)  # else the junk is not nasty enough


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(inside=st.text(max_size=60), decision=st.sampled_from(DECISIONS))
def test_any_text_inside_the_answer_is_safe(inside, decision):
    question = ask(decision, POOL)
    check(parse(f"<answer>{inside}</answer>", question), question)


def test_nothing_before_the_last_end_of_thought_is_read():
    rng = random.Random(1)
    for _ in range(1000):
        question = ask(rng.choice(DECISIONS), POOL)
        before, after = junk(rng), junk(rng).rpartition("</think>")[2]
        finished = rng.random() < 0.5
        assert parse(f"{before}</think>{after}", question, finished) == parse(f"</think>{after}", question, finished)


def test_every_written_permutation_is_read_back():
    rng = random.Random(2)
    for n in range(1, 21):
        texts = [f"Movie {k} of {n} [{n - k}]" for k in range(n)]
        places = rng.sample(range(1, n + 1), n)
        for decision, count in (("order", n), ("narrow", (n + 1) // 2), ("eliminate", 1), ("pick", 1)):
            shown = places[:count]
            question = ask(decision, texts)
            answer = parse(f"<think>[1]</think><answer>{' > '.join(f'[{k}]' for k in shown)}</answer>", question)
            assert answer.ok and answer.value == tuple(question.pool[k - 1] for k in shown)


def test_identifiers_count_within_the_pool_that_was_shown_not_within_the_query():
    whole = ask("eliminate", ["Jaws", "Heat", "Alien"])
    later = Ask(whole.query, (whole.pool[2], whole.pool[0]), "eliminate")
    assert parse("<answer>[1]</answer>", later).value == (whole.pool[2],)
    assert parse("<answer>[3]</answer>", later).status == "not_a_candidate"
    assert parse("<answer>Heat</answer>", later).status == "not_a_candidate"  # in the query, but no longer in the pool


def test_the_parser_depends_on_texts_and_places_not_on_relevance():
    for case in GOLDEN:
        question = ask(case["decision"], case["pool"])
        query = question.query
        flipped = Ask(Query("other", "rec-game", "", query.candidates, query.relevance[::-1]), question.pool,
                      question.decision)
        finished = case.get("finished", True)
        assert parse(case["text"], question, finished) == parse(case["text"], flipped, finished)
