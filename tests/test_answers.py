"""The one parser reads an answer or says why it can't, and never guesses: a reward that is paid for a guess gets
hacked. `answers_golden.jsonl` holds nasty completions, one a line, with `value` as 1-based places in `pool` (or the
score)."""

import itertools
import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from ranker import answers, naming, templates, titles
from ranker.answers import parse, place, span
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
    assert len({case["name"] for case in GOLDEN}) == len(GOLDEN) >= 200
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
    ("<Answer >a</ANSWER>", "a"),
    ("[THINK]<answer>a</answer>[/THINK]<answer>b</answer>", "b"),
    ("<answer>a</answer><think>b</think>", "a"),
    ("<answer>a</answer><think>b</think>c", None),
    ("<answer>a</answer><|im_end|><answer>b</answer>", "a"),
    ("<answer>a</answer>, as in <answer>b</answer>", "a"),
])
def test_the_span_is_the_last_pair_after_the_last_thought(text, inside):
    assert span(text) == inside


def test_where_the_answer_stands_does_not_depend_on_whether_the_text_was_cut():
    """The place in a cut text is that in the whole one, or there is none; scores of answers are looked up by it."""
    rng, whole = random.Random(3), 0
    for _ in range(2000):
        text = junk(rng)
        found = place(text, finished=False)
        assert found in (None, place(text))
        whole += found is not None
    assert whole > 100


def test_a_completion_of_spaces_is_read_in_one_pass(run=" " * 100_000):
    """Patterns that look past them again and again would take minutes."""
    for inside, status in ((f"candidate{run}x", "not_a_candidate"), (f"candidate #{run}2", "ok"),
                           (f"candidate{run}#{run}2", "ok"), (f"[{run}2", "ok"), (f"[{run}2{run}", "ok"),
                           (f"{run}({run}2.{run}", "ok"), (f"Heat{run}>{run}Jaws", "not_a_candidate"),
                           (f"[1{run}]{run}x", "ok"), (f"[2{run},{run}2]", "ok"), (f"Heat{run}(2{run})", "ok")):
        assert (parse(f"<answer>{inside}</answer>", ask("eliminate", ["Alien", "Heat", "Rocky"])).status
                == status), inside.replace(run, "_")


FRAGMENTS = ("<think>", "</think>", "<thinking>", "[THINK]", "<|channel|>final<|message|>", "not", "least", "<", "=",
             "best", " then ", "Movie 2", "2: ", "\n\n", "<answer>", "</answer>", "[1]", "[2]", "[0]", "[11]", "[", "]",
             " > ", "\n", "3", "7/10", "Alien", "aliens", "Rocky II", "300", "Heat", "Ame\u0301lie", "none", "［３］",
             "【4】", "\u200b", "\x00", "\ud800", "🎬", "i", "(", "-", "9" * 30, "½", "²", "ﬁ", "İ", "ß", "<|im_end|>",
             "{", "\\", "")


PERMUTED = {"RULES": naming, "TITLE_RULES": titles, "_SPLITS": naming}


def readings(completions) -> list:
    return [parse(text, question, finished) for question, text, finished in completions]


def jumbled(rng: random.Random, pool: list[str]) -> str:
    """An answer of identifiers, numbers and titles in forms and with separators that mostly go together."""
    forms = ("[{k}]", "{k}", "{title}", "{k}: {title}", "{title} ({k})", "[{k}] {title}", "Movie {k}", "{k}. {title}")
    form, between = rng.choice(forms), rng.choice((" > ", ", ", "\n", " then ", "; ", "\n\n", " or ", " < "))
    entries = [(form if rng.random() < 0.95 else rng.choice(forms)).format(k=k, title=pool[k - 1])
               for k in rng.sample(range(1, len(pool) + 1), rng.choice((1, len(pool), (len(pool) + 1) // 2)))]
    around = rng.choice(("{}", "Ranking: {}", "{}\n{}", "not {}", "The best is {}", "{}\n\n[1] fits", "```\n{}\n```"))
    return f"<answer>{around.format(*[between.join(entries)] * 2)}</answer>"


def test_no_reading_depends_on_the_order_of_the_rules(monkeypatch):
    """Every order of the rules, all orders of those of texts with every turn of the ways to split a list."""
    rng = random.Random(4)
    golden = [(ask(case["decision"], case["pool"]), case["text"], case.get("finished", True)) for case in GOLDEN]
    fuzzed = [(ask(rng.choice(DECISIONS), pool), write(rng, pool), rng.random() < 0.8)
              for write in (lambda rng, pool: junk(rng), jumbled) for _ in range(2000)
              for pool in [rng.sample(POOL, rng.randint(1, len(POOL)))]]
    expected = readings(golden), readings(fuzzed)
    assert sum(answer.ok for answer in expected[0]) > 200 and sum(answer.ok for answer in expected[1]) > 300
    kept = {name: getattr(module, name) for name, module in PERMUTED.items()}
    orders = [list(itertools.permutations(kept[name])) for name in ("RULES", "TITLE_RULES")]
    orders.append([kept["_SPLITS"][i:] + kept["_SPLITS"][:i] for i in range(len(kept["_SPLITS"]))])
    for i, chosen in enumerate(itertools.product(*orders)):
        for name, order in zip(PERMUTED, chosen):
            monkeypatch.setattr(PERMUTED[name], name, order)
        some = slice(i % 5, None, 5), slice(i % 20, None, 20)
        assert readings(golden[some[0]]) == expected[0][some[0]] and readings(fuzzed[some[1]]) == expected[1][some[1]]


def test_the_places_of_an_answer_are_those_of_its_identifiers_in_the_completion():
    rng, seen = random.Random(5), Counter()
    cases = [(ask(case["decision"], case["pool"]), case["text"]) for case in GOLDEN]
    for question, text in cases + [(ask(rng.choice(DECISIONS), POOL), junk(rng)) for _ in range(2000)]:
        answer = parse(text, question)
        inside = span(text)
        for candidate, (start, end) in zip(answer.value, answer.places, strict=bool(answer.places)):
            [number] = re.findall(r"\d+", text[start:end])
            assert question.pool[int(number) - 1] == candidate
            assert place(text).start <= start < end <= place(text).stop
        seen[bool(answer.places)] += answer.ok and "[" in inside
    assert seen[True] > 150 and seen[False] < seen[True] / 4
    question = ask("order", ["Jaws", "Heat", "Alien"])
    text = ("<think>[1]</think><answer>Best is [3]. So: [３\u200b] > [ 1 ] >\n[doc2]\n\n[3] is tense</answer> "
            "[3] > [1] > [2]")
    answer = parse(text, question)
    assert answer.ok and [text[i:j] for i, j in answer.places] == ["[３\u200b]", "[ 1 ]", "[doc2]"]
    text = "<answer>[3, 1, 2]</answer>"
    assert [text[i:j] for i, j in parse(text, question).places] == ["3", "1", "2"]
    assert parse("<answer>Alien > Jaws > Heat</answer>", question).places == ()


@pytest.mark.parametrize("decision, inside", [("pick", "[3]"), ("order", "[2] > [1] > [3]"), ("narrow", "[3] > [1]"),
                                              ("eliminate", "[3]"), ("score", "7")])
def test_the_built_in_policys_form_is_read_whatever_its_thought_says(decision, inside):
    """Its thoughts name signs and numbers; none of their words turns the answer behind them round."""
    for thought in ("warm, by first sign. [1] hat +- [1] [2] coat ++ [2]", "not [1], the worst is least, < =", ""):
        question = ask(decision, ["hat", "coat", "scarf"])
        answer = parse(f"<think> {thought}</think>\n<answer>{inside}</answer>", question)
        value = [int(k) for k in re.findall(r"\d", inside)]
        assert answer.ok and answer.value == (tuple(value) if decision == "score"
                                              else tuple(question.pool[k - 1] for k in value))


def several(inside: str, drop: int = 2, out: tuple[int, ...] = ()):
    """The answer to an ask to eliminate several of five, as places in the pool, or its status."""
    question = ask("eliminate", ["Jaws", "Heat", "Alien", "Rocky II", "Vertigo"])
    gone = tuple(question.pool[k - 1] for k in out)
    answer = parse(f"<answer>{inside}</answer>", replace(question, drop=drop, out=gone or None))
    return [question.pool.index(c) + 1 for c in answer.value] if answer.ok else answer.status


@pytest.mark.parametrize("inside", [
    "[2] > [3]", "2 > 3", "Heat\nAlien", "1. [2]\n2. [3]", "Least likely first: [2], [3]", "{\"out\": [2, 3]}",
    "the worst are [2] and [3]", "[2] > [3]\n[2] > [3]", "[2] > [3]\n\n[2] fits the least.",
    "From the least to the most likely: [2] > [3]"])
def test_several_are_eliminated_as_they_are_written(inside):
    assert several(inside) == [2, 3]


@pytest.mark.parametrize("inside, status", [
    ("[2] > [3] > [1]", "repetition"), ("Keep [2] > [3]", "not_a_candidate"), ("[2] = [3]", "not_a_candidate"),
    ("best first: [2], [3]", "not_a_candidate"), ("[2]\n\n[3] fits", "not_a_candidate"),
    ("[2]. [3] fits well", "not_a_candidate"), ("[2] is better than [3]", "not_a_candidate")])
def test_a_remark_about_another_candidate_does_not_eliminate_it(inside, status):
    assert several(inside) == status


def test_candidates_that_are_out_are_named_by_nothing():
    assert several("[2]", 1, (1,)) == several("2", 1, (1,)) == several("Heat", 1, (1,)) == [2]
    assert {several(name, 1, (1,)) for name in ("[1]", "1", "Jaws", "[1] > [2]")} == {"not_a_candidate"}


def test_an_answer_of_thousands_of_words_decides_nothing():
    question = ask("pick", ["Jaws", "Heat", "Alien"])
    assert parse(f"<answer>[2] {'as it is tense ' * 100}</answer>", question).ok
    assert parse(f"<answer>[2] {'as it is tense ' * 500}</answer>", question).status == "not_a_candidate"


def test_the_nouns_of_the_users_own_tasks_are_read(tmp_path, monkeypatch):
    question = ask("order", ["red", "green", "blue"])
    text = "<answer>Grape variety 3 > grape variety 1 > grape variety 2</answer>"
    assert not parse(text, question).ok
    tasks = (templates.FOLDER / "tasks.yaml").read_text()
    (tmp_path / "tasks.yaml").write_text(tasks.replace("noun: album\n", "noun: grape variety\n"))
    try:
        templates.use(str(tmp_path))
        assert parse(text, question).ok
    finally:
        templates.use(None)
    assert not parse(text, question).ok


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
    rng, read = random.Random(1), 0
    for _ in range(2000):
        question = ask(rng.choice(DECISIONS), POOL)
        before, after = junk(rng), junk(rng).rpartition("</think>")[2]
        _, thinking, ended = answers.visible(before)
        if ended or thinking and "<think>" not in before.lower():
            continue  # another turn began, or a thought in other tags is still open
        finished = rng.random() < 0.5
        behind = parse(f"{before}</think>{after}", question, finished)
        if not answers.visible(f"{before}</think>")[1]:
            assert behind == parse(f"</think>{after}", question, finished)
            read += 1
    assert read > 1000


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
