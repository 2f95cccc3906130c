"""Traces from training users alone: what they say is true of the data without the user's own items."""

import json
import re
from pathlib import Path

import pytest

from ranker import history_tutor, thoughts
from ranker.answers import parse
from ranker.data import Ask, Candidate, Query, write_queries
from ranker.errors import exit_status


def user(name, history, best, *others) -> Query:
    texts = [best, *others]
    return Query(name, "rec-movie", tuple(history), tuple(Candidate(f"{name}{i}", t) for i, t in enumerate(texts)),
                 (1.0, *(0.0 for _ in others)))


FILMS = [f"Film {i} ({1990 + i})" for i in range(12)]
TRAIN = [user(f"u{i}", FILMS[i % 4:i % 4 + 4], FILMS[i % 4 + 4], FILMS[10], FILMS[11]) for i in range(40)]


def test_a_trace_tells_counts_of_other_users_and_decides_by_them():
    tutor = history_tutor.Tutor(TRAIN)
    query = user("new", FILMS[:4], FILMS[4], FILMS[11], FILMS[10])
    text = tutor.trace(Ask(query, query.ids, "eliminate"))
    assert text.startswith("<think>Mostly around 1991. [1] 1994, common, close: 8. [2] 2001, rare, far: 0. [3] 2000,")
    answer = parse(text, Ask(query, query.ids, "eliminate"))
    assert answer.ok and answer.value == ("new1",)
    assert text.endswith("far: 0. Lowest: 0, so [2].</think>\n<answer>[2]</answer>")  # the first that has it
    alone = history_tutor.Tutor([*TRAIN, user("only", ["Nobody's (1950)"], "Nobody's too (1951)", FILMS[0])])
    pair = "Nobody's too (1951)", ["Nobody's (1950)"]
    assert alone.near(*pair, alone.of["only"]) == 0.0 and alone.near(*pair, None) == 1.0
    assert alone.often(FILMS[5], 1) <= alone.often(FILMS[5], None)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["history_tutor", *map(str, arguments)])
        status = exit_status(history_tutor.main)
        return status, *capsys.readouterr()
    return run


def test_the_command_writes_traces_of_training_users_that_training_reads(call, tmp_path):
    write_queries(tmp_path / "d.jsonl", TRAIN)
    status, out, err = call("d.jsonl", "--out", "t.jsonl", "--count", 20)
    assert status == 0 and "20 traces" in out and "keeps the right one" in out, err
    examples = thoughts.read(tmp_path / "t.jsonl")
    assert len(examples) == 20 and all(parse(text, ask).ok for ask, text in examples)
    assert all(re.fullmatch(r"<think>[^<]+</think>\n<answer>\[\d+\]</answer>", text) for _, text in examples)
    first = Path("t.jsonl").read_text()
    assert call("d.jsonl", "--out", "t.jsonl", "--count", 20)[0] == 0 and Path("t.jsonl").read_text() == first
    write_queries(tmp_path / "s.jsonl", [Query(q.id, q.task, "text", q.candidates, q.relevance) for q in TRAIN])
    for arguments, words in ((("s.jsonl", "--out", "x"), "needs contexts that are lists"),
                             (("d.jsonl", "--out", "x", "--count", 0), "--count must be at least 1"),
                             (("gone.jsonl", "--out", "x"), "gone.jsonl")):
        status, _, err = call(*arguments)
        assert status == 2 and words in err and not Path("x").exists()
    assert {json.loads(line)["decision"] for line in first.splitlines()} == {"eliminate"}
