"""PyTerrier: its frames go in and come out, reordered. Where it is not installed, its base class is a stand-in."""

import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

pd = pytest.importorskip("pandas")

from ranker.errors import UserError  # noqa: E402
from ranker.use import Ranked, Result  # noqa: E402


class Longest:
    """Ranks long texts first and keeps what it was asked."""

    def rank(self, queries, documents, task):
        self.asked = queries, documents, task
        return [Ranked(q, [Result(i, str(i), d[i], place, None) for place, i in enumerate(
            sorted(range(len(d)), key=lambda i: -len(d[i])), 1)]) for q, d in zip(queries, documents)]


@pytest.fixture
def reranker(monkeypatch):
    if not find_spec("pyterrier"):
        stand_in = ModuleType("pyterrier")
        stand_in.Transformer = type("Transformer", (), {"__call__": lambda self, frame: self.transform(frame)})
        monkeypatch.setitem(sys.modules, "pyterrier", stand_in)
        monkeypatch.delitem(sys.modules, "ranker.terrier", raising=False)
    from ranker.terrier import Reranker
    return Reranker(Longest())


def test_documents_of_each_query_are_reordered(reranker):
    frame = pd.DataFrame([["q2", "hats", "d1", "a", 1, 0.2], ["q2", "hats", "d2", "aaa", 0, 0.3],
                          ["q1", "coats", "d3", "bb", 0, 0.9]],
                         columns=["qid", "query", "docno", "text", "rank", "score"])
    found = reranker(frame)
    assert found[["qid", "docno", "rank", "score"]].values.tolist() == [
        ["q2", "d2", 0, 2.0], ["q2", "d1", 1, 1.0], ["q1", "d3", 0, 1.0]]
    assert reranker.loaded.asked == (["hats", "coats"], [["aaa", "a"], ["bb"]], "rank")  # in the order of `rank`
    assert list(found.columns) == list(frame.columns)
    assert found.groupby("qid")["score"].is_monotonic_decreasing.all()


def test_no_documents_and_no_texts(reranker):
    frame = pd.DataFrame(columns=["qid", "query", "docno", "text"])
    assert list(reranker(frame).columns) == ["qid", "query", "docno", "text", "score", "rank"]
    with pytest.raises(UserError, match="no column 'text' .it has qid, query, docno."):
        reranker(frame.drop(columns="text"))
