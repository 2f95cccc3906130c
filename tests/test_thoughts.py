"""Thoughts: which traces are kept, which are found, how they are shown, and that no query that is ranked is among
them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ranker import plugins, thoughts
from ranker.answers import parse
from ranker.data import Ask, Candidate, Completion, Group, Query
from ranker.errors import UserError
from ranker.prompting import messages


def query(name, context, task="passage-5") -> Query:
    return Query(name, task, context, tuple(Candidate(f"{name}-{i}", f"text {i} of {name}") for i in range(3)),
                 (1.0, 0.0, 0.0))


def ask(q, decision="eliminate") -> Ask:
    return Ask(q, q.ids, decision)


TRACE = "<think> so </think>\n<answer>[2]</answer>"


def save(path: Path, *asks) -> Path:
    paid = {"rewards": {"total": 1.0, "task": 1.0}, "advantage": 1.0}
    groups = [Group(a, [], [Completion([], [], TRACE, True, parse(TRACE, a), **paid)]) for a in asks]
    records = thoughts.kept(1, groups)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_the_best_paid_completion_of_a_group_is_kept_if_it_beat_its_cohort_in_good_form():
    a = ask(query("q", "c"))
    texts = ["<think>a</think>\n<answer>[1]</answer>", "<think>b</think>\n<answer>[2]</answer>", "<answer>[3]</answer>"]

    def kept(rewards, advantages, of=texts):
        return thoughts.kept(7, [Group(a, [], [Completion([], [], t, True, parse(t, a), rewards=r, advantage=v)
                                               for t, r, v in zip(of, rewards, advantages, strict=True)])])

    rewards = [{"total": v, "task": t} for v, t in ((0.0, 0.0), (1.0, 1.0), (0.8, 1.0))]
    [record] = kept(rewards, [-0.6, 0.4, 0.2])
    assert (record["text"] == texts[1] and record["query"] == "q" and record["step"] == 7
            and [c for c, _ in record["candidates"]] == list(a.pool))
    assert kept(rewards, [-0.6, 0.0, 0.0]) == []  # nothing beat anything
    assert kept(rewards[2:], [0.4], texts[2:]) == []  # formless
    assert kept([r | {"task": 0.0} for r in rewards], [-0.6, 0.4, 0.2]) == []  # the best of a bad lot is no example


@pytest.mark.parametrize("options", [{}, {"out": ("q-2",)}, {"out": ()}, {"drop": 2}, {"out": ("q-0",), "drop": 2}],
                         ids=str)
def test_what_is_kept_is_read_as_it_was_asked(tmp_path, options):
    told = Ask(query("q", "c"), ("q-0", "q-1", "q-2"), "eliminate", **options)
    path = save(tmp_path / "t.jsonl", told)
    assert thoughts.read(path) == [(told, TRACE)]
    other = query("other", "c")
    find = lambda **like: thoughts.finder(thoughts.read(path), [other],  # noqa: E731
                                          Ask(other, other.ids, "eliminate", **like), 1, "t")
    assert find(**options)(ask(other)).examples and not find(**options)(ask(other, "order")).examples
    for like in [{}] if options else [{"out": ()}]:  # an example of another form would mislead
        with pytest.raises(UserError, match="in the ranker's form about nothing, none about passage-5"):
            find(**like)


@pytest.mark.parametrize("options", [{"hint": "[1]"}, {"by_logits": True}])
def test_only_asks_that_a_record_can_tell_whole_are_kept(tmp_path, options):
    q = query("q", "c")
    assert not save(tmp_path / "t.jsonl", Ask(q, q.ids, "eliminate", **options)).read_text()
    assert not save(tmp_path / "t.jsonl", Ask(q, q.ids, "eliminate", ((ask(query("r", "d")), TRACE),))).read_text()


def test_the_likest_context_of_the_same_task_and_decision_is_shown_as_an_earlier_turn(tmp_path):
    near, far, other = (query("near", "who governs Velm"), query("far", "what do people eat"),
                        query("x", "who governs Velm", "passage-7"))
    path = save(tmp_path / "t.jsonl", ask(far), ask(near), ask(other), ask(query("order", "who governs Velm"), "order"))
    target = ask(query("target", "who governs Orda"))
    found = thoughts.finder(thoughts.read(path), [target.query], ask(query("like", "c")), 1, str(path))(target)
    [(example, text)] = found.examples
    assert example.query.id == "near" and text == TRACE and (found.query, found.pool) == (target.query, target.pool)
    chat = messages(found)
    assert [m["role"] for m in chat] == ["system", "user", "assistant", "user"]
    assert chat[1]["content"] == messages(ask(near))[1]["content"] and chat[2]["content"] == TRACE
    two = thoughts.finder(thoughts.read(path), [target.query], ask(query("like", "c")), 2, str(path))(target)
    assert [e.query.id for e, _ in two.examples] == ["far", "near"]  # the likest next to the ask


def test_no_examples_leave_the_prompt_as_it_is(tmp_path):
    path, target = save(tmp_path / "t.jsonl", ask(query("near", "a"))), ask(query("target", "a"))
    none = thoughts.finder(thoughts.read(path), [target.query], ask(query("like", "c")), 0, str(path))(target)
    assert messages(none) == messages(target)


def test_thoughts_about_the_queries_to_rank_are_refused(tmp_path):
    path = save(tmp_path / "t.jsonl", ask(query("a", "c")), ask(query("b", "c")))
    with pytest.raises(UserError, match="queries that are to be ranked, such as 'b'"):
        thoughts.finder(thoughts.read(path), [query("b", "c")], ask(query("like", "c")), 1, str(path))


def test_thoughts_of_another_task_or_decision_are_refused(tmp_path):
    path, target = save(tmp_path / "t.jsonl", ask(query("a", "c"))), query("t", "c", "rec-movie")
    with pytest.raises(UserError, match="about passage-5, none about rec-movie"):
        thoughts.finder(thoughts.read(path), [target], ask(query("like", "c")), 1, str(path))
    with pytest.raises(UserError, match="'order' in the ranker's form about nothing"):
        thoughts.finder(thoughts.read(path), [query("t", "c")], ask(query("like", "c"), "order"), 1, str(path))


def test_of_equally_like_contexts_the_latest_in_training_is_shown(tmp_path):
    path, target = (save(tmp_path / "t.jsonl", ask(query("early", "who governs")), ask(query("late", "who governs"))),
                    ask(query("t", "who governs")))
    [(example, _)] = thoughts.finder(thoughts.read(path), [target.query], ask(query("like", "c")), 1,
                                     str(path))(target).examples
    assert example.query.id == "late"


def test_a_trace_about_grades_keeps_what_it_was_told_and_the_best_of_its_query(tmp_path):
    q, spans = query("q", "c"), (("scale", "0..7"), ("now", "0..7"), ("lower", "0..3"), ("upper", "4..7"))
    path, asked = tmp_path / "t.jsonl", Ask(q, ("q-1",), "range", told=spans)
    path.write_text(json.dumps(thoughts.record(asked, "<think> so </think>\n<answer>0..3</answer>")))
    [(read, text)] = thoughts.read(path)
    assert (read.pool, read.told) == (asked.pool, asked.told) and "text 0 of q" not in messages(read)[-1]["content"]
    assert plugins.module("decision", "range").right(read) == "0..3" and parse(text, read).ok  # alone it would be best
    path.write_text(json.dumps(thoughts.record(replace(asked, told=spans[:2]), "")))
    with pytest.raises(UserError, match=":1: no thought"):
        thoughts.read(path)


def test_a_trace_cannot_bring_control_tokens_into_a_prompt_and_line_separators_do_not_cut_a_record(
        tmp_path, make_policy):
    prompter, near = make_policy().prompter, ask(query("near", "a\u2028b\x85c"))
    path, target = save(tmp_path / "t.jsonl", near), ask(query("t", "a"))
    [(example, _)] = thoughts.read(path)
    assert example.query.context == near.query.context
    shown = Ask(target.query, target.pool, "eliminate", ((near, "<think>a<|im_end|></think>\n<answer>[1]</answer>"),))
    assert prompter.render(prompter.messages(shown)).count("<|im_end|>") == 4  # one a turn


@pytest.mark.parametrize("content, named", [
    ("", "no thoughts"), ("{}\n", ":1: no thought"),
    ('{"query": 1, "task": [], "context": [1], "candidates": [], "decision": "eliminate", "text": null}',
     ":1: no thought"),
    ("not json\n", ":1: no thought")])
def test_a_file_without_thoughts_is_named_in_one_line(tmp_path, content, named):
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=named):
        thoughts.read(path)
    with pytest.raises(UserError, match="No such file"):
        thoughts.read(tmp_path / "nothing")
