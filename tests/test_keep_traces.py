"""Completions of an evaluation that a reward likes become traces, which a run imitates; the others are counted."""

import json
from pathlib import Path

import pytest

from ranker import keep_traces, thoughts
from ranker.data import Ask, Candidate, Completion, Query, write_queries
from ranker.answers import parse
from ranker.errors import exit_status
from ranker.evaluation import ask_log

QUERY = Query("q1", "rank", "warm", tuple(Candidate(f"c{i}", f"text {i}") for i in range(3)), (1.0, 0.0, 0.0))
TEXTS = {"right": "<think>c</think>\n<answer>[2]</answer>", "plain": "<answer>[3]</answer>",
         "wrong": "<think>c</think>\n<answer>[1]</answer>", "unread": "<think>no"}


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    write_queries(tmp_path / "d.jsonl", [QUERY])
    ask = Ask(QUERY, QUERY.ids, "eliminate")
    (tmp_path / "eval").mkdir()
    with open(tmp_path / "eval/traces.jsonl", "w") as file:
        for row in ("m", "other"):
            for number, text in enumerate(TEXTS.values()):
                completion = Completion([], [], text, True, parse(text, ask), counted=3)
                file.write(json.dumps(ask_log.record((row, 0, "q1", number), ask, 9, completion)) + "\n")

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["keep_traces", "eval", "--data", "d.jsonl", "--out", "t.jsonl",
                                         *map(str, arguments)])
        status = exit_status(keep_traces.main)
        return status, *capsys.readouterr()
    return run


def test_what_the_reward_likes_is_kept_and_the_rest_counted(call):
    status, out, err = call("--row", "m")
    assert status == 0 and "2 of 4 completions" in out, err
    assert "left out 1: rewards below 1" in out and "left out 1: answers that cannot be read" in out
    kept = thoughts.read(Path("t.jsonl"))
    assert [text for _, text in kept] == [TEXTS["right"], TEXTS["plain"]] and kept[0][0].pool == QUERY.ids
    assert call("--row", "m", "--format")[0] == 0 and len(thoughts.read(Path("t.jsonl"))) == 1


@pytest.mark.parametrize("arguments, words", [
    ((), "holds completions of m, other; name one with --row"), (("--row", "n"), "none is called 'n'"),
    (("--row", "m", "--reward", "top_hit"), "unknown reward 'top_hit' (did you mean 'top1_hit'?)"),
    (("--row", "m", "--above", 2), "no completion is worth keeping"),
    (("--row", "m", "--data", "x.jsonl"), "x.jsonl")])
def test_mistakes_end_in_one_line_and_write_nothing(call, arguments, words):
    status, _, err = call(*arguments)
    assert status == 2 and words in err and not Path("t.jsonl").exists()


def test_other_data_is_refused(call, tmp_path):
    write_queries(tmp_path / "d.jsonl", [Query("q2", *(getattr(QUERY, n) for n in ("task", "context", "candidates",
                                                                                   "relevance")))])
    status, _, err = call("--row", "m")
    assert status == 2 and "query 'q1' or a candidate of it does not stand in the --data named" in err


def test_asks_with_nothing_to_tell_apart_and_held_out_queries_are_left_out(call, tmp_path, monkeypatch):
    """Behind a wrong elimination every answer is as right; and what training holds out teaches nobody."""
    left = Ask(QUERY, ("c1", "c2"), "eliminate")
    with open(tmp_path / "eval/traces.jsonl", "a") as file:
        completion = Completion([], [], TEXTS["wrong"], True, parse(TEXTS["wrong"], left), counted=3)
        file.write(json.dumps(ask_log.record(("m", 0, "q1", 9), left, 9, completion)) + "\n")
    status, out, _ = call("--row", "m")
    assert status == 0 and "2 of 5" in out and "left out 1: asks with nothing to tell apart" in out
    monkeypatch.setattr(keep_traces.sources, "split_of", lambda group, seed: "test")
    status, _, err = call("--row", "m")
    assert status == 2 and "5 held out for validation or test" in err
    assert call("--row", "m", "--held_out")[0] == 0
