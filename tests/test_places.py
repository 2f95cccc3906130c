"""Position bias: the first metric by where the right candidate was shown."""

import pytest

from ranker.data import Candidate, Query
from ranker.drive import Ranking
from ranker.evaluation import places, report


def shown(place: int, count: int = 6, kind=list) -> Ranking:
    """Return a ranking of a query whose right candidate is shown at `place`, in the order shown or another."""
    ids = [f"c{i}" for i in range(count)]
    query = Query(f"q{place}", "rank", "x", tuple(Candidate(c, c) for c in ids),
                  tuple(float(i == place) for i in range(count)))
    return Ranking(query=query, order=kind(ids))


def test_a_ranker_that_copies_the_order_is_best_where_the_right_one_is_first():
    found = places.by_place([shown(i) for i in range(6)], "MRR")
    expected = {"first third": ((1 + 1 / 2) / 2, 2), "middle third": ((1 / 3 + 1 / 4) / 2, 2),
                "last third": ((1 / 5 + 1 / 6) / 2, 2)}
    assert found.keys() == expected.keys()
    for part, (value, count) in expected.items():
        assert found[part] == (pytest.approx(value), count)
    header, [line] = places.table_lines({"copies": found}, "MRR")
    assert header[-1] == "most - least" and line == ["copies", "0.750", "0.292", "0.183", "0.567"]


def test_one_without_bias_is_as_good_everywhere_and_empty_parts_are_missing():
    right = lambda ids: sorted(ids, key=lambda c: c != "c3")  # noqa: E731
    found = places.by_place([shown(3, kind=right)], "MRR")
    assert found == {"middle third": (1.0, 1)}
    assert places.by_place([], "MRR") == {}
    unlabelled = Ranking(query=Query("q", "rank", "x", (Candidate("a", "a"), Candidate("b", "b")), (0.0, 0.0)),
                         order=["a", "b"])
    assert places.by_place([unlabelled], "MRR") == {}


def test_the_table_stands_in_the_report_where_several_orders_were_ranked():
    rows = lambda orders: [report.model_row("copies", orders, 0.0)]  # noqa: E731
    once, twice = rows([[shown(0), shown(5)]]), rows([[shown(0), shown(5)], [shown(0), shown(5)]])
    assert "where the right one was shown" not in report.tables(once, once[0], {})
    assert "| MRR by where the right one was shown" in report.tables(twice, twice[0], {})
