"""Reviews become queries as the protocol says, and all layouts of the raw data give the same ones. Broken files are
named."""

import gzip
import json
from pathlib import Path

import pytest
from conftest import prepared

from ranker import templates
from ranker.data import read_queries
from ranker.errors import UserError
from ranker.prepare import __main__ as command, amazon

REAL = Path(__file__).parents[2] / "shared/data/amazon_games_llmrank"
TITLES = {f"B{i:03}": f"Game {i}" for i in range(1, 61)} | {
    "B007": "Rock &amp; Roll <i>Hero</i>", "B008": 'Schindler\'s "Quest", Part 2', "B009": "Game 10"}
SHOWN = TITLES | {"B007": "Rock & Roll Hero"}


def ids(numbers) -> list[str]:
    return [f"B{i:03}" for i in numbers]


def users() -> dict[str, list[str]]:
    """User -> products by time: 25, exactly enough, and one too few."""
    return {"A1": ids(range(1, 26)), "A2": ids(range(50, 29, -1)), "A3": ids(range(1, 21))}


def events(of=None):
    """Rows of (user, product, time), the first user's second half before the first."""
    rows = [(user, item, 1000 + i) for user, items in (users() if of is None else of).items()
            for i, item in enumerate(items)]
    return rows[12:25] + rows[:12] + rows[25:]


def write(path: Path, lines, packed=False) -> Path:
    path.parent.mkdir(exist_ok=True)
    with gzip.open(f"{path}.gz", "wb") if packed else path.open("wb") as file:
        file.write("".join(f"{line}\n" for line in lines).encode("utf-8"))
    return path.parent


def write_reviews(folder, of=None, titles=TITLES, packed=False, literal=False,
                  names=("Games_5.json", "meta_Games.json")):
    """The release of 2018; with `literal` that of 2014, whose metadata are Python literals."""
    write(folder / names[0],
          (json.dumps({"overall": 5.0, "reviewerID": u, "asin": i, "reviewText": "meta", "unixReviewTime": t})
           for u, i, t in events(of)), packed)
    lines = ({"asin": i, "salesRank": {"Video Games": 3}, "title": t} for i, t in titles.items())
    return write(folder / names[1], (repr(line) if literal else json.dumps(line) for line in lines), packed)


def write_recbole(folder, of=None, titles=TITLES, packed=False):
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    write(folder / "Games.inter", [head, *(f"{u}\t{i}\t5\t{t}" for u, i, t in events(of))], packed)
    return write_items(folder, titles, packed)


def write_items(folder, titles=TITLES, packed=False):
    return write(folder / "Games.item", ["item_id:token\ttitle:token_seq", *(f"{i}\t{t}" for i, t in titles.items())],
                 packed)


def write_histories(folder, of=None, titles=TITLES, packed=False, name="Games.test.inter"):
    write(folder / name, ["user_id:token\titem_id_list:token_seq\titem_id:token",
                          *(f"{u}\t{' '.join(items[:-1])}\t{items[-1]}"
                            for u, items in (users() if of is None else of).items())], packed)
    return write_items(folder, titles, packed)


def prepare(folder, *words, seed=0):
    return prepared(amazon, folder, "--task", "rec-game", *words, seed=seed)


def complaint(*args) -> str:
    with pytest.raises(UserError) as caught:
        prepare(*args)
    return str(caught.value)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_all_layouts_give_the_same_queries(tmp_path, packed):
    queries, dropped = prepare(write_reviews(tmp_path / "2018", packed=packed))
    assert ([q.id for q in queries] == ["amazon-game.A1", "amazon-game.A2"]
            and dropped == {"users with fewer than 21 items": 1})
    names = "reviews_Games_5.json", "meta_Games.json"
    assert prepare(write_reviews(tmp_path / "2014", packed=packed, literal=True, names=names)) == (queries, dropped)
    assert prepare(write_recbole(tmp_path / "recbole", packed=not packed)) == (queries, dropped)
    assert prepare(write_histories(tmp_path / "histories", packed=packed)) == (queries, dropped)


def test_the_target_is_the_last_product_and_the_others_are_sampled_from_what_the_user_never_reviewed(tmp_path):
    (one, two), _ = prepare(write_reviews(tmp_path))
    assert one.context == tuple(SHOWN[i] for i in ids(range(5, 25))) and one.positives == ("B025",)
    assert two.context == tuple(SHOWN[i] for i in ids(range(50, 30, -1))) and two.positives == ("B030",)
    for query, user in ((one, "A1"), (two, "A2")):
        assert len(set(query.ids)) == 20 and not set(query.ids) & set(users()[user][:-1])
        assert query.task == "rec-game" and all(query.texts[c] == SHOWN[c] for c in query.ids)


def test_times_are_numbers_and_of_a_product_reviewed_twice_the_first_review_counts(tmp_path):
    rows = [("A1", item, 10 ** (i % 3) * (i + 1)) for i, item in enumerate(ids(range(1, 22)))] + [("A1", "B001", 10**9)]
    rows += [("A2", item, i) for i, item in enumerate(ids(range(30, 51)))]
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *(f"{u}\t{i}\t{t}" for u, i, t in rows)]
    (one, _), _ = prepare(write_items(write(tmp_path / "Games.inter", lines)))
    expected = [i for _, i, _ in sorted(rows[:21], key=lambda row: row[2])]
    assert one.positives == (expected[-1],) and one.context == tuple(SHOWN[i] for i in expected[:-1])


def test_a_product_that_a_history_repeats_is_shown_once_and_the_next_one_not_at_all(tmp_path):
    history = [*ids(range(1, 21)), "B003", "B030"]
    (one, _), _ = prepare(write_histories(tmp_path, {"A1": [*history, "B030"], "A2": ids(range(31, 55))}))
    assert one.positives == ("B030",) and one.context == tuple(SHOWN[i] for i in ids(range(1, 21)))


def test_every_task_has_a_wording_and_marks_the_ids(tmp_path):
    assert set(amazon.TASKS) <= set(templates.wordings())
    folder = write_reviews(tmp_path)
    for task, name in (("rec-music", "amazon-music.A1"), ("rank", "amazon-rank.A1")):
        (one, _), _ = prepare(folder, "--task", task)
        assert (one.task, one.id) == (task, name)
    with pytest.raises(SystemExit):
        prepare(folder, "--task", "rec-book")


def test_what_is_no_title_is_neither_shown_nor_sampled(tmp_path):
    untitled = {"B060": "", "B059": "<br>", "B058": "var a = (new Date()).getTime();", "B057": None,
                "B056": "half \ud83d", "B055": ["x"]}
    of = users() | {f"U{i}": [*ids(range(20 + i, 40 + i)), item] for i, item in enumerate(untitled)}
    (one, two), dropped = prepare(write_reviews(tmp_path, of, TITLES | untitled), "--candidates", 21)
    assert dropped == {"users with fewer than 21 items": 7, "events of items without a title": 6,
                       "items without a title": 6}
    assert not (set(one.ids) | set(two.ids)) & untitled.keys()


def test_titles_lose_markup_and_keep_quotes_in_every_layout(tmp_path):
    of = {"A1": ids([*range(11, 31), 7]), "A2": ids([*range(31, 51), 8])}
    for folder in (write_reviews(tmp_path / "a", of), write_reviews(tmp_path / "b", of, literal=True),
                   write_recbole(tmp_path / "c", of)):
        (one, two), _ = prepare(folder)
        assert one.texts["B007"] == "Rock & Roll Hero" and two.texts["B008"] == 'Schindler\'s "Quest", Part 2'


def test_a_python_literal_is_read_and_never_run(tmp_path):
    folder = write_reviews(tmp_path, literal=True)
    write(folder / "meta_Games.json",
          ["{'asin': 'B001', 'title': 'x'}", f"{{'asin': open({str(tmp_path / 'ran')!r}, 'w').name}}"])
    assert complaint(folder).startswith(f"{folder / 'meta_Games.json'}:2: not JSON") and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("reviews", ["reviews_Games.json", "Games_5.json", "Games.jsonl", "merged.json"])
def test_metadata_are_not_taken_for_reviews(tmp_path, reviews):
    queries, _ = prepare(write_reviews(tmp_path, names=(reviews, "meta_Games_5.json")))
    assert len(queries) == 2


def test_the_closest_names_are_read_first(tmp_path):
    folder = write_reviews(tmp_path / "reviews", names=("reviews_Games_5.json", "meta_Games.json"))
    write(folder / "Apps_5.json", ["broken"])
    assert len(prepare(folder)[0]) == 2
    folder = write_histories(tmp_path / "histories")
    write(folder / "Games.inter", ["broken"])
    assert len(prepare(folder)[0]) == 2


def test_negatives_come_from_the_users_list_without_history_and_target(tmp_path):
    folder = write_histories(tmp_path / "data")
    own = {"A1": ids([25, *range(1, 20), *range(40, 60), *range(40, 60)]), "A2": ids(range(1, 20)),
           "A3": ids(range(21, 60))}
    lists = (write(tmp_path / "lists", ["", *(f"{user}\t{' '.join(items)}" for user, items in own.items()), ""])
             / "lists")
    pools = set()
    for seed in range(8):
        (one, two), _ = prepare(folder, "--lists", lists, seed=seed)
        pools.add(one.ids)
        assert set(one.ids) <= {"B025", *ids(range(40, 60))} and len(set(one.ids)) == 20 and one.positives == ("B025",)
        assert set(two.ids) == {"B030", *ids(range(1, 20))}
    assert len(pools) == 8
    lists.write_text(f"A1\t{' '.join(ids(range(1, 44)))}\n")  # 18 are left without history and target
    queries, dropped = prepare(folder, "--lists", lists)
    assert not queries and dropped["users without a list of candidates"] == 1
    assert dropped["users with fewer than 19 items they never touched to choose from"] == 1


@pytest.mark.parametrize("text, words", [
    ("A1\tB001 B002\nA2\tB001 B999\n", ":2: item 'B999' is not among the 60 items of the folder"),
    ("A1 B001 B002\n", ":1: expected a user, a tab, and ids between spaces"),
    ("A1\tB001\n\nA1\tB002\n", ":3: user 'A1' has a list already"),
])
def test_a_broken_list_is_named_with_its_line(tmp_path, text, words):
    (tmp_path / "lists").write_text(text)
    assert (complaint(write_histories(tmp_path / "data"), "--lists", tmp_path / "lists")
            == f"{tmp_path / 'lists'}{words}")


def test_lists_may_name_products_without_a_title_and_must_exist(tmp_path):
    folder = write_histories(tmp_path / "data", titles=TITLES | {"B060": ""})
    (tmp_path / "lists").write_text("A1\t" + " ".join(ids(range(26, 61))))
    [one], _ = prepare(folder, "--lists", tmp_path / "lists", "--candidates", 35)
    assert set(one.ids) == set(ids(range(25, 60)))
    assert complaint(folder, "--lists", tmp_path / "gone").startswith(f"{tmp_path / 'gone'}: cannot be read")


GOOD = '{"reviewerID": "A1", "asin": "B001", "unixReviewTime": 5}\n'


@pytest.mark.parametrize("write_layout, name, text, words", [
    (write_reviews, "Games_5.json", GOOD + '{"asin": "B001"}\n', ":2: no field 'reviewerID' (found: asin); name it:"),
    (write_reviews, "Games_5.json", '{"reviewerID": "A1", "asin": ["B001"]}\n', ":1: no text in the field 'asin'"),
    (write_reviews, "Games_5.json", '{"reviewerID": "A1", "asin": "B001"}\n',
     ":1: no field 'unixReviewTime' (found: reviewerID, asin)"),
    (write_reviews, "Games_5.json", GOOD + GOOD.replace("5", '"noon"'), ":2: unixReviewTime 'noon' is no number"),
    (write_reviews, "Games_5.json", GOOD.replace("5", "NaN"), ":1: unixReviewTime nan is no number"),
    (write_reviews, "Games_5.json", GOOD + "\n" + GOOD[:30], ":3: not JSON"),
    (write_reviews, "Games_5.json", "[1]\n", ":1: expected a JSON object, got list"),
    (write_reviews, "meta_Games.json", '{"title": "x"}\n', ":1: no field 'asin' (found: title)"),
    (write_reviews, "meta_Games.json", "{'asin': 'B001', 'title': 'x\n", ":1: not JSON"),
    (write_reviews, "meta_Games.json", "{'asin', 'title'}\n", ":1: expected a JSON object, got set"),
    (write_recbole, "Games.inter", "user_id:token\titem_id:token\nA1\tB001\n",
     ":1: no column 'timestamp' (found: user_id:token, item_id:token); name it: --columns timestamp="),
    (write_recbole, "Games.inter", "user_id:token\titem_id:token\ttimestamp:float\nA1\tB001\tnoon\n",
     ":2: the time 'noon' is no number"),
    (write_recbole, "Games.item", "item_id:token\tmovie:token_seq\nB001\tx\n", ":1: no column 'title'"),
    (write_histories, "Games.test.inter", "user_id:token\titem_id_list:token_seq\nA1\tB001\n",
     ":1: no column 'item_id' "),
    (write_histories, "Games.test.inter",
     "user_id:token\titem_id_list:token_seq\titem_id:token\nA1\tB001\tB002\nA1\tB003\tB004\n",
     ":3: user 'A1' stood in line 2 already"),
    (write_histories, "Games.test.inter", "user_id:token\titem_id_list:token_seq\titem_id:token\nA1\tB001\n",
     ":2: 2 columns, expected 3"),
])
def test_a_broken_file_is_named_with_its_line(tmp_path, write_layout, name, text, words):
    folder = write_layout(tmp_path)
    (folder / name).write_text(text, encoding="utf-8")
    assert complaint(folder).startswith(f"{folder / name}{words}")


def test_a_file_that_is_cut_short_is_named(tmp_path):
    for name in ("Games_5.json.gz", "meta_Games.json.gz", "Games.test.inter.gz"):
        folder = (write_histories if "inter" in name else write_reviews)(tmp_path / name, packed=True)
        (folder / name).write_bytes((folder / name).read_bytes()[:-30])
        assert complaint(folder).startswith(f"{folder / name}: the gzip file is cut short")


def test_the_folder_and_what_it_lacks_are_named(tmp_path):
    assert complaint(tmp_path / "gone") == f"there is no folder {tmp_path / 'gone'}"
    for name in ("meta_Games.json", "Games_5.json", "Games.inter", "Games.item"):  # never a pair, until the last
        assert complaint(tmp_path).startswith(f"{tmp_path} holds neither reviews")
        for path in tmp_path.iterdir():
            path.unlink()
        write(tmp_path / name, ["x"])


def test_users_who_all_fail_end_the_command_with_every_reason(tmp_path, monkeypatch):
    folder = write_reviews(tmp_path / "data", {"A1": ids(range(1, 21)), "A2": [*ids(range(1, 21)), "B999"]})
    monkeypatch.setattr("sys.argv", ["prepare", "amazon", str(folder), "--task", "rec-game", "--out",
                                     str(tmp_path / "out.jsonl")])
    with pytest.raises(UserError) as caught:
        command.main()
    assert ("2 users with fewer than 21 items" in str(caught.value)
            and "1 items without a title" in str(caught.value))
    assert not (tmp_path / "out.jsonl").exists()


def test_the_command_writes_a_file_that_trains(tmp_path, monkeypatch, capsys):
    folder = write_reviews(tmp_path / "data")
    monkeypatch.setattr("sys.argv", ["prepare", "amazon", str(folder), "--task", "rec-game", "--out",
                                     str(tmp_path / "out.jsonl")])
    command.main()
    assert (read_queries(tmp_path / "out.jsonl") == prepare(folder)[0]
            and "2 queries, 40 candidates" in capsys.readouterr().out)


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data/amazon_games_llmrank beside the repository")
def test_the_real_games_give_a_query_for_each_listed_user_with_twenty_products():
    queries, dropped = prepare(REAL, "--lists", REAL / "Games-6k.bm25.gz")
    assert len(queries) == 301 and dropped == {"users with fewer than 21 items": 5699,
                                               "users without a list of candidates": 2125}
    assert all(len(set(q.ids)) == 20 and len(q.context) == 20 and len(q.positives) == 1 for q in queries)
    assert not any("&amp;" in text for q in queries for text in (*q.context, *q.texts.values()))
    # no leak by place; sd 0.33
    assert sum(q.ids.index(q.positives[0]) for q in queries) / 301 == pytest.approx(9.5, abs=1.2)
    with gzip.open(REAL / "Games-6k.bm25.gz", "rt") as file:
        lists = {user: set(listed.split()) for user, listed in (line.split("\t") for line in file)}
    assert all(set(q.ids) - set(q.positives) <= lists[q.id.removeprefix("amazon-game.")] for q in queries)
