"""Whatever comes from outside, a config, a data file or a completion, is read or refused in the way that is promised,
and nothing else happens: no exception of another kind, no half-read value. `bench/bench_fuzz.py` runs many more
completions and measures them."""

import contextlib
import io
import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st
from test_answers import DECISIONS, GOLDEN, POOL, ask, check

from ranker import config, drive, plugins, rewarding
from ranker.answers import parse, parse_recorded
from ranker.data import Ask, Completion, Query, read_queries
from ranker.errors import UserError, exit_status

few = settings(derandomize=True, deadline=None, database=None, max_examples=200,
               suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
TEXT = st.text(alphabet=st.characters(codec=None), max_size=30)  # half surrogate pairs too
WHOLE = config.Config()
config.resolve(WHOLE, "defaults")  # the options of plug-ins too
DEFAULTS = config.as_dict(WHOLE)
SETTINGS = [(section, key) for section, values in DEFAULTS.items() for key in values]
PLAIN = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.dates()
         | st.sampled_from(["1e-5", "tiny", "~x", "runs/a", "nf4", "elimination", "cascade", "top1_hit", "ppo", "sft",
                            "recorded", "teacher", "name", "adapter", "llm", "steps", "weight", "\0",
                            "0x" + "f" * 4000, "9" * 400, "n" * 300]))
VALUE = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3),
                     max_leaves=6)


@st.composite
def sections(draw):
    """Nested dicts that are nearly a config: real names with any value, and names that are none."""
    raw = {}
    for section, key in draw(st.lists(st.sampled_from(SETTINGS), max_size=5)):
        value = draw(VALUE | st.just(DEFAULTS[section][key]))
        raw.setdefault(section, {})[key if draw(st.integers(0, 9)) else draw(PLAIN)] = value
    if not draw(st.integers(0, 4)):
        raw[draw(st.sampled_from(sorted(DEFAULTS)) | PLAIN)] = draw(VALUE)
    return raw


OVERRIDE = st.builds(lambda name, value: f"--{name}={value}",
                     st.sampled_from([".".join(s) for s in SETTINGS]) | st.text(max_size=15),
                     st.sampled_from(["1", "1e-5", "true", "[", "{", "[" * 3000, "!!int ''", "!!bool x", "*a", "ppo",
                                      "sliding", "\ud800"]) | TEXT)


def config_or_error(path, overrides) -> None:
    """A Config of the right types that reads back as itself, or a UserError that a terminal shows in one line."""
    def main():
        loaded = config.load(path, overrides)
        for section, values in config.as_dict(loaded).items():
            if section in plugins.SECTIONS:
                assert plugins.resolved(section, values) == values
            for key, value in values.items() if section not in (*plugins.SECTIONS, "reward", "roles", "stages") else ():
                assert type(value) is type(DEFAULTS[section][key])
        assert all(plugins.resolved_reward(name, entry) == entry for name, entry in loaded.reward.items())
        rewarding.load(loaded.reward, str(path)), drive.load_ranker(loaded.ranker, str(path))
        assert config.build(config.parse_yaml(config.as_yaml(loaded)), "again") == loaded
    one_line(main)


def one_line(main) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as caught:
        status = exit_status(main)
    text = caught.getvalue()
    assert (status == 0 and not text
            or status == 2 and text.startswith("error: ") and text.count("\n") == 1 and len(text) <= 301)


@few
@given(raw=sections(), overrides=st.lists(OVERRIDE, max_size=3))
def test_any_config_loads_or_ends_in_one_line(tmp_path, raw, overrides):
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8", errors="replace")
    config_or_error(path, overrides)


@few
@given(text=st.text(alphabet=st.sampled_from("trainlp:{}[],-&*!|>?#%@\"'\n \t01e.~=<"), max_size=60),
       data=st.binary(max_size=20))
def test_any_text_and_any_bytes_load_or_end_in_one_line(tmp_path, text, data):
    path = tmp_path / "my.yaml"
    path.write_bytes([text.encode(), b"train:\n  lr: " + text.encode(), data, text.encode() + data][len(text) % 4])
    config_or_error(path, [])


GOOD = {"id": "q2", "task": "rank", "context": ["old", "new"], "relevance": [1, 0.5], "group": "g",
        "candidates": [{"id": "a", "text": "wool", "cost": 1, "performance": 0.5},
                       {"id": "b", "text": "rain", "cost": 2, "performance": 1}]}
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | TEXT
                    | st.sampled_from([10**400, "a", "", "q 1", -0.0]),
                    lambda inner: (st.lists(inner, max_size=3)
                                   | st.dictionaries(st.sampled_from(["id", "text", "cost", "x"]), inner, max_size=3)),
                    max_leaves=5)


@st.composite
def lines(draw) -> bytes:
    """A good line with one thing changed, dropped or added, or with bytes cut, doubled or put in; or bytes alone."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(st.binary(max_size=40))
    record = json.loads(json.dumps(GOOD))
    if kind > 1:
        place = draw(st.sampled_from([record, *record["candidates"]]))
        place[draw(st.sampled_from(sorted(place)) | st.text(max_size=5))] = draw(JSON)
        if draw(st.booleans()):
            place.pop(draw(st.sampled_from(sorted(place))))
    text = json.dumps(record, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if kind != 2:
        i, j = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        text = draw(st.sampled_from((text[:i] + text[j:], text[:j] + text[i:],
                                     text[:i] + draw(st.binary(max_size=5)) + text[i:])))
    return text


@few
@given(line=lines())
def test_any_line_of_data_is_queries_or_an_error_that_names_it(tmp_path, line):
    path = tmp_path / "my.jsonl"
    path.write_bytes(json.dumps(GOOD | {"id": "q1"}).encode() + b"\n" + line + b"\n")
    try:
        queries = read_queries(path)
    except UserError as error:
        numbers = range(2, 3 + line.count(b"\n"))
        assert any(str(error).startswith(f"{path}:{number}: ") for number in numbers), error
        one_line(lambda: read_queries(path))
        return
    for query in queries:
        assert isinstance(query, Query) and len(set(query.ids)) == len(query.ids) == len(query.relevance) >= 2
        assert all(0 <= value <= 1e9 for value in query.relevance) and max(query.relevance) > 0
        json.dumps([query.id, query.task, query.context, query.ids, list(query.texts.values())],
                   ensure_ascii=False).encode("utf-8")


PIECES = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "[1]", "[2] > [1]", "[0]", "[99]", "[", "]",
                          " > ", "\n", ", ", "3", "7/10", "Alien", "aliens", "Rocky II", "Heat", "none of them", "［３］",
                          "【4】", "[²]", "\u200b", "\u202e", "\0", "\ud800", "9" * 5000, "<|im_end|>",
                          " > ".join(f"[{k}]" for k in range(1, 11)), "[" * 500, "<answer>" * 200, "(" * 500,
                          "Rocky II " * 60, "candidate" + " " * 20_000 + "x"])


@st.composite
def completions(draw) -> str:
    """A golden completion cut, doubled and sprinkled, or pieces, with or without an answer around."""
    text = draw(st.sampled_from([case["text"] for case in GOLDEN]) | st.just(""))
    for piece in draw(st.lists(PIECES | TEXT, max_size=5)):
        i, j = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        text = draw(st.sampled_from((text[:i] + piece + text[i:], text[:i] + piece + text[j:],
                                     text[:j] + piece + text[i:])))
    return draw(st.sampled_from((text, f"<answer>{text}</answer>", f"<think>a</think>\n<answer>{text}</answer>",
                                 f"{text}</think><answer>[1]</answer>")))


FILMS = ("Vertigo", "Rear Window", "The Good, the Bad and the Ugly", "Dune (1984)", "Dune: Part Two (2024)", "1917",
         "12 Angry Men", "Rocky II", "Don't Look Now", "The Best Man", "Solaris", "M")
ENTRIES = ("[{k}]", "[{k}] {title}", "[{k}]: {title}", "{title} [{k}]", "{k}", "{title}", "Movie {k}", "{k}: {title}",
           "{title} ({k})", "**[{k}]**", "[doc{k}]", "#{k}", "\"{title}\"", "Candidate {k} ({title})")
BETWEEN = (" > ", ">", ", ", "\n", " → ", "; ", " then ", "\n- ", "\n\n", " | ", ", then ", " and ")
AROUND = ("{}", "{}.", "Final ranking: {}", "Answer:\n{}", "The answer is {}", "```\n{}\n```", "\\boxed{{{}}}",
          "{}\n{}", "{}\n\nThat fits a rainy day.", "Here is my list, best first: {}",
          "{{\"answer\": \"{}\"}}", "<b>{}</b>")
TURNED = ("not {}", "{} is wrong", "neither: {}", "I can't say {}", "{}? Not at all")
REMARKS = ("\n\n{} is long", " > {}", "\n{}", ", or {}", ". {} fits too", " = {}", " < {}", " ({})")


@st.composite
def meant(draw):
    """An ask, candidates in an order, and an answer in one of many forms that means it or turns it round."""
    texts = draw(st.permutations(FILMS))[:draw(st.integers(2, 6))]
    order = draw(st.permutations(range(1, len(texts) + 1)))
    form, between = draw(st.sampled_from(ENTRIES)), draw(st.sampled_from(BETWEEN))
    forms = [form if draw(st.integers(0, 19)) else draw(st.sampled_from(ENTRIES)) for _ in order]
    entries = [form.format(k=k, title=texts[k - 1]) for form, k in zip(forms, order)]
    decision = draw(st.sampled_from(("order", "order", "narrow", "pick", "eliminate")))
    count = {"order": len(order), "narrow": (len(order) + 1) // 2, "pick": 1, "eliminate": len(order) // 2}[decision]
    said = entries[:count]
    written = draw(st.sampled_from((between.join(said), "\n".join(f"{i}. {entry}" for i, entry in enumerate(said, 1)))))
    around, turn = draw(st.sampled_from(AROUND)), draw(st.sampled_from(("{}",) * 6 + TURNED))
    written = around.format(*[turn.format(written)] * 2)
    if not draw(st.integers(0, 5)):
        written += draw(st.sampled_from(REMARKS)).format(draw(st.sampled_from(entries)))
    question = ask(decision, texts)
    value = tuple(question.pool[k - 1] for k in order[:count])
    best = decision == "eliminate" and "best" in around
    return replace(question, drop=count), value, written, turn != "{}" or best


@settings(few, max_examples=800)
@given(meant=meant())
def test_an_answer_is_read_as_it_is_meant_or_fails(meant):
    question, value, written, turned = meant
    for answer in (parse(f"<think>a</think><answer>{written}</answer>", question), parse_recorded(written, question)):
        assert not answer.ok or answer.value == value and not turned, (written, answer)


@few
@given(text=completions(), decision=st.sampled_from(DECISIONS), size=st.integers(1, len(POOL)), finished=st.booleans())
def test_any_completion_is_a_whole_decision_or_a_named_failure(text, decision, size, finished):
    question = ask(decision, POOL)
    question = Ask(question.query, question.pool[-size:], decision)  # a pool smaller than its query
    answer = parse(text, question, finished)
    check(answer, question)
    assert parse(text, question, finished) == answer


@pytest.mark.parametrize("section", [{"name": "elimination"}, {"name": "listwise"},
                                     {"name": "sliding", "window": 4, "step": 2, "passes": 2},
                                     {"name": "setwise", "children": 3}, {"name": "setwise", "children": 2, "votes": 3},
                                     {"name": "pointwise", "score": "written"}, {"name": "halving"},
                                     {"name": "cascade"}], ids=lambda s: s["name"])
@settings(few, max_examples=40)
@given(texts=st.lists(completions(), min_size=1, max_size=12), finished=st.booleans())
def test_any_completions_end_in_a_permutation(section, texts, finished):
    query, asked = ask("order", POOL).query, []

    def model(asks):
        asked.extend(asks)
        return [(0, Completion([], [], text, finished, parse(text, question, finished))) for question in asks
                for text in [texts[len(asked) % len(texts)]]]

    [ranking] = drive.run(drive.load_ranker(section), [query], model)  # refuses what is no permutation
    assert sorted(ranking.order) == sorted(query.ids) and ranking.calls == len(asked) == sum(ranking.statuses.values())
    assert ranking.failed == ranking.calls - ranking.statuses["ok"]
