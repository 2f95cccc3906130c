"""An evaluation that was killed goes on where it stood: no finished ask is asked again, and its result is that of one
that never stopped."""

import json
import os
import random

import pytest

from ranker import drive, files, llms
from ranker.data import Candidate, Query
from ranker.errors import UserError
from ranker.evaluation import inputs
from ranker.evaluation.ask_log import AskLog

RANKER = drive.load_ranker({"name": "elimination"})


def queries(count=4):
    rng = random.Random(0)
    return [Query(f"q{i}", "rank", "", tuple(Candidate(f"c{k}", f"text {k}") for k in range(5)),
                  tuple(float(rng.random()) for _ in range(5))) for i in range(count)]


class Killed(BaseException):
    pass


def model(asked, kill_after=10**9):
    """Sometimes right, sometimes not readable, the same for the same ask; dies at some ask."""
    def answer(asks):
        if len(asked) + len(asks) > kill_after:
            raise Killed
        asked.extend(asks)

        def write(ask) -> str:
            silent = (len(ask.pool) + len(ask.query.id) + int(ask.query.id[1:])) % 4 == 0
            return "no answer" if silent else llms.right_answer(ask)

        found = llms.scripted(write)(asks)
        for ask, (_, completion) in zip(asks, found):
            completion.ids, completion.seconds, completion.cut = ([1, 2, 3], 0.25,
                                                                  {"tokens": 40} if len(ask.pool) == 5 else None)
        return [(7, completion) for _, completion in found]
    return answer


def evaluate(folder, asked, kill_after=10**9, what=None):
    log = AskLog(folder, what or {"checkpoint": "a"})
    found = [drive.run(RANKER, queries(), log.models(row, 0, model(asked, kill_after))) for row in ("base", "policy")]
    log.finish()
    return found


@pytest.mark.parametrize("kill_after", [1, 4, 9, 17, 23, 30])
@pytest.mark.parametrize("damage", ["", '{"row": "policy", "or'])
def test_no_ask_is_repeated_and_nothing_is_different(tmp_path, kill_after, damage):
    whole, asked, again = [], [], []
    expected = evaluate(tmp_path / "whole", whole)
    with pytest.raises(Killed):
        evaluate(tmp_path / "killed", asked, kill_after)
    (tmp_path / "killed").mkdir(exist_ok=True)  # not there before the first answer
    with (tmp_path / "killed/traces.jsonl").open("a") as file:
        file.write(damage)
    assert sum(ranking.cut for rankings in expected for ranking in rankings) == 8
    assert evaluate(tmp_path / "killed", again) == expected and len(asked) + len(again) == len(whole) == 32
    assert (tmp_path / "killed/traces.jsonl").read_bytes() == (tmp_path / "whole/traces.jsonl").read_bytes()


def test_another_evaluation_is_refused_until_the_first_is_finished(tmp_path):
    with pytest.raises(Killed):
        evaluate(tmp_path, [], 9)
    before = (tmp_path / "traces.jsonl").read_bytes()
    with pytest.raises(UserError, match="an unfinished evaluation with other checkpoint; finish it"):
        evaluate(tmp_path, [], what={"checkpoint": "b"})
    assert (tmp_path / "traces.jsonl").read_bytes() == before != b""
    evaluate(tmp_path, [])
    asked = []
    evaluate(tmp_path, asked, what={"checkpoint": "b"})
    assert len(asked) == 32  # a finished one is not mixed with the next


def test_a_ranker_that_asks_otherwise_than_before_is_noticed(tmp_path):
    with pytest.raises(Killed):
        evaluate(tmp_path, [], 9)
    text = (tmp_path / "traces.jsonl").read_text()
    (tmp_path / "traces.jsonl").write_text(text.replace('"c0"', '"c9"'))
    with pytest.raises(UserError, match="was another one"):
        evaluate(tmp_path, [])
    (tmp_path / "unfinished.json").write_text("{")
    with pytest.raises(UserError, match="unfinished.json cannot be read"):
        evaluate(tmp_path, [])


def test_answers_of_an_earlier_evaluation_are_taken_where_the_ask_is_the_same(tmp_path):
    whole, asked = [], []
    expected = evaluate(tmp_path / "earlier", whole)
    lines = (tmp_path / "earlier/traces.jsonl").read_text().splitlines(keepends=True)
    of_q0 = [line for line in lines if '"base"' in line and '"q0"' in line]
    for line in of_q0[-1:]:  # an ask of other data
        lines[lines.index(line)] = line.replace('"c0"', '"c9"')
    (tmp_path / "earlier/traces.jsonl").write_text("".join(lines))

    record = {"config": {"roles": {}, "ranker": {"name": "elimination"}}, "prompts": {"out.txt": "1"}}
    (tmp_path / "earlier/results.json").write_text(json.dumps(record))
    log = AskLog(tmp_path / "later", {"checkpoint": "b"}, lent=inputs.answers_of("base", tmp_path / "earlier", record))
    found = [drive.run(RANKER, queries(), log.models(row, 0, model(asked))) for row in ("base", "policy")]
    log.finish()
    assert found == expected and len(asked) == 1 + 16  # that ask, and the row that was not lent
    assert len((tmp_path / "later/traces.jsonl").read_text().splitlines()) == 32

    other = record | {"config": record["config"] | {"ranker": {"name": "first"}, "roles": {"judge": {}}}, "prompts": {}}
    for folder, row, now, said in (("earlier", "base", other, "made with other ranker.name, roles, prompts; ask it"),
                                   ("earlier", "gone", record, "no finished evaluation with a row 'gone'"),
                                   ("nowhere", "base", record, "nowhere is no finished evaluation")):
        with pytest.raises(UserError, match=said):
            inputs.answers_of(row, tmp_path / folder, now)
    (tmp_path / "earlier/unfinished.json").write_text("{}")  # another one was begun in the folder since
    with pytest.raises(UserError, match="is no finished evaluation"):
        inputs.answers_of("base", tmp_path / "earlier", record)


def test_two_evaluations_do_not_write_to_one_folder(tmp_path):
    with pytest.raises(Killed):
        evaluate(tmp_path, [], 9)
    before = (tmp_path / "traces.jsonl").read_bytes()
    with files.lock(tmp_path), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        AskLog(tmp_path, {"checkpoint": "a"})
    assert (tmp_path / "traces.jsonl").read_bytes() == before
    late = AskLog(tmp_path, {"checkpoint": "a"})
    evaluate(tmp_path, [])  # begun later, ended earlier
    with pytest.raises(UserError, match="another evaluation has written here in the meantime"):
        late.begin()
    assert len((tmp_path / "traces.jsonl").read_text().splitlines()) == 32
