"""The HTML file of a run: what it holds, how large it is, and that nothing in it runs but its own script."""

import base64
import gzip
import json
import re
from pathlib import Path

import pytest

import evaluate
from ranker import show
from ranker.data import Candidate, Query, write_queries
from test_train import call, finished_run  # noqa: F401  fixtures


def held(path) -> dict:
    """The data inside of a file."""
    text = Path(path).read_text()
    packed = re.search(r'type="application/octet-stream">([^<]*)<', text)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


@pytest.mark.slow
def test_a_run_with_its_evaluations_is_one_file(call, finished_run):  # noqa: F811
    assert call(evaluate, "--ckpt", "runs/iranker/best", "--limit", 1)[0] == 0
    status, out, err = call(show, "runs/iranker")
    assert status == 0, err
    assert "runs/iranker/show.html: " in out and "open it in a browser" in out
    text, data = Path("runs/iranker/show.html").read_text(), held("runs/iranker/show.html")
    assert not re.search(r"(src|href)\s*=|https?://(?!www\.w3\.org)", text.split("{{")[0]) and len(text) < 10_000_000
    [one] = data["evaluations"]
    assert set(one["rows"]) >= {"untrained base", "runs/iranker/best"} and len(one["queries"]) == 9
    query = next(q for q in one["queries"] if q["task"] == "passage-5")
    assert query["context"] and len(query["candidates"]) == 5 and all(c[1] for c in query["candidates"])
    own = query["rows"]["runs/iranker/best"]
    assert sorted(own["order"]) == list(range(5)) and len(own["asks"]) == 4 and "MRR" in own["measures"]
    assert [len(a["left"]) for a in own["asks"]] == [5, 4, 3, 2] and own["asks"][0]["text"].startswith("<think>")
    [run] = data["runs"]
    assert run["curves"]["reward"] and run["validations"] and run["completions"][0]["reward"]
    status, out, _ = call(show, "runs/iranker/eval/" + Path(one["name"]).name, "--out", "one.html")
    assert status == 0 and held("one.html")["runs"] == []


def test_texts_that_are_gone_are_ids_and_texts_that_are_evil_are_texts(call, finished_run, tmp_path):  # noqa: F811
    evil = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    queries = [Query("q1", "rank", evil, tuple(Candidate(f"c{i}", f"{evil} {i}") for i in range(3)), (1.0, 0.0, 0.0))]
    write_queries(tmp_path / "evil.jsonl", queries)
    assert call(evaluate, "--ckpt", "runs/iranker/best", "--data", "evil.jsonl", "--out", "evil")[0] == 0
    status, _, err = call(show, "evil")
    text = Path("evil/show.html").read_text()
    assert status == 0 and "owned" not in text and not re.search("innerHTML|insertAdjacent|document.write", text)
    assert held("evil/show.html")["evaluations"][0]["queries"][0]["context"] == evil
    (tmp_path / "evil.jsonl").unlink()
    status, _, _ = call(show, "evil", "--out", "gone.html")
    [query] = held("gone.html")["evaluations"][0]["queries"]
    assert status == 0 and [c[0] for c in query["candidates"]] and not query["candidates"][0][1]


@pytest.mark.parametrize("make, said", [
    (lambda p: None, "is neither a run folder"), (lambda p: (p / "results.json").write_text("{"), "is damaged")])
def test_what_is_no_run_is_named(call, tmp_path, make, said):  # noqa: F811
    (tmp_path / "x").mkdir()
    make(tmp_path / "x")
    status, _, err = call(show, "x")
    assert status == 2 and said in err.splitlines()[-1] and "Traceback" not in err  # a bar may stand before it
