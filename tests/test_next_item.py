"""Check what all recommendation sets share: several queries a user for training alone, hold-out by time, shares of
users, a retriever's lists, untitled items, equal titles."""

import itertools
import random
import sys
from collections import Counter, defaultdict
from functools import partial

import pytest
from conftest import prepared

from ranker import config as settings, sources
from ranker.data import read_queries
from ranker.errors import UserError, exit_status
from ranker.evaluation import baselines
from ranker.prepare import __main__ as command, movielens

SPLITS = ("train", "validation", "test")
prepare = partial(prepared, movielens)


def events_of(users=60, items=12):
    """(user, film, time): user u watches `items` of 97 films one after the other, from a time of its own."""
    return [(u, film, 1000 * ((37 * u) % users) + 700 * i) for u in range(1, users + 1)
            for i, film in enumerate(random.Random(u).sample(range(1, 98), items))]


def write(folder, events, titles=None):
    folder.mkdir(exist_ok=True)
    titles = {m: f"Film w{m}x w{m}y w{m}z" for m in range(1, 98)} if titles is None else titles
    (folder / "movies.csv").write_text("movieId,title\n" + "".join(f"{m},{t}\n" for m, t in titles.items()))
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n"
                                        + "".join(f"{u},{m},4,{t}\n" for u, m, t in events))
    return folder


def finished(tmp_path, monkeypatch, *words, events=None, titles=None):
    """(split -> queries, as training and evaluation see them) of what the command writes."""
    folder, out = write(tmp_path / "data", events or events_of(), titles), tmp_path / "out.jsonl"
    monkeypatch.setattr(sys, "argv", ["prepare", "movielens", str(folder), "--out", str(out), "--history", "4",
                                      "--candidates", "6", *map(str, words)])
    assert exit_status(command.main) == 0
    data = settings.Data(train=str(out))
    return {split: sources.held_out(data, split) for split in SPLITS}


def user_of(query) -> str:
    return query.id.split(".")[1].split("@")[0]


def by_user(queries):
    found = defaultdict(list)
    for query in queries:
        found[user_of(query)].append(query)
    return found


@pytest.mark.parametrize("windows, count", [(3, 3), ("all", 8)])
def test_training_users_give_several_queries_and_the_others_their_last(tmp_path, monkeypatch, windows, count):
    found = finished(tmp_path, monkeypatch, "--windows", windows)
    plain = {q.id: q for queries in finished(tmp_path, monkeypatch).values() for q in queries}
    users = {split: by_user(queries) for split, queries in found.items()}
    assert all(users.values()) and not set(users["train"]) & {*users["validation"], *users["test"]}
    assert all(len(queries) == count for queries in users["train"].values())
    for split in ("validation", "test"):
        assert all(len(queries) == 1 for queries in users[split].values())
    for queries in found.values():
        for last in queries:  # the last event's query is the one that is made without windows
            if "@" not in last.id:
                assert (last.context, last.candidates, last.relevance) == (
                    plain[last.id].context, plain[last.id].candidates, plain[last.id].relevance)
    for queries in users["train"].values():
        assert len({q.group for q in queries}) == 1
        newest, before = sorted(queries, key=lambda q: q.id)[:2]  # 7 before 7@1
        assert newest.context[-1] == before.texts[before.positives[0]] and newest.context[:-1] == before.context[1:]


@pytest.mark.parametrize("words", [(), ("--distinct",), ("--split", "time", "--held_out", "0.3")])
def test_the_next_items_are_relevant_for_training_users_alone(tmp_path, monkeypatch, words):
    words = ("--windows", "all", *words)
    one, found = (finished(tmp_path, monkeypatch, *words, *more) for more in ((), ("--next", 3)))
    for split in ("validation", "test"):
        assert found[split] == one[split] != []
    assert [q.id for q in found["train"]] == [q.id for q in one["train"]]
    last = {}  # the next film of a user's later query, by user
    for before, q in zip(one["train"], found["train"]):  # a user's queries, the last first
        [film] = [c for c, r in before.rel.items() if r]
        coming = last[user_of(q)] = [film, *last.get(user_of(q), [])]
        relevant = [c for c, r in q.rel.items() if r]
        assert sorted(relevant) == sorted(coming[:3]) and len(q.ids) == 6
        assert not set(q.context) & {q.texts[c] for c in relevant}
    assert {sum(q.relevance) for q in found["train"]} == {1, 2, 3}


def test_equal_titles_among_the_next_items_are_shown_once(tmp_path):
    titles = {m: "Twin" if m in (5, 6) else f"Film {m}" for m in range(1, 30)}
    events = [(u, m, m) for u in (1, 2) for m in range(1, 13)]
    events += [(3, m, m) for m in range(13, 30)]
    for words, sizes in ((("--distinct",), 2), ((), 3)):
        queries, _ = prepare(write(tmp_path / str(sizes), events, titles), "--history", 4, "--candidates", 6,
                             "--windows", "all", "--next", 3, *words)
        [q] = [q for q in queries if q.id == "movielens.1@7"]  # films 5, 6 and 7 come next
        assert sum(q.relevance) == sizes and len(q.ids) == 6


def test_more_next_items_than_places_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare", "movielens", str(write(tmp_path / "data", events_of())), "--out",
                                      str(tmp_path / "out.jsonl"), "--candidates", "6", "--next", "6"])
    assert exit_status(command.main) == 2 and not (tmp_path / "out.jsonl").exists()
    assert "--next=6 leaves no room" in capsys.readouterr().err


def test_windows_stay_in_their_split_whatever_the_seed_of_the_training(tmp_path, monkeypatch):
    finished(tmp_path, monkeypatch, "--windows", 3)
    by_seed = [[q.id for q in sources.held_out(settings.Data(train=str(tmp_path / "out.jsonl"), seed=seed), "test")]
               for seed in (0, 1)]
    assert by_seed[0] == by_seed[1]


def test_a_user_who_joins_the_group_of_another_follows_it_with_all_windows(tmp_path, monkeypatch, capsys):
    """Users of the same films stand in one split, and only in training with more than their last event."""
    twins = [(f"{u}b", m, t) for u, m, t in events_of(30)]
    found = finished(tmp_path, monkeypatch, "--windows", 3, events=events_of(30) + twins)
    split = {user: name for name, queries in found.items() for user in by_user(queries)}
    assert len(split) == 60 and all(split[f"{u}b"] == split[str(u)] for u in range(1, 31))
    for name in ("validation", "test"):
        assert found[name] and all(len(queries) == 1 for queries in by_user(found[name]).values())
    assert "earlier items of users who are not trained on" in capsys.readouterr().out


def test_an_earlier_history_that_is_nearly_one_held_out_is_not_trained_on(tmp_path, monkeypatch, capsys):
    held = next(u for u in range(100, 999) if sources.split_of(f"movielens.{u}", 0) == "test")
    trained = next(u for u in range(100, 999) if sources.split_of(f"movielens.{u}", 0) == "train")
    shared = [(u, m, 100 + m) for u in (held, trained) for m in range(50, 56)]
    found = finished(tmp_path, monkeypatch, "--windows", "all",
                     events=[*events_of(30), *shared, *((trained, m, 900 + m) for m in range(60, 67))])
    [last] = [q for q in found["test"] if user_of(q) == str(held)]
    own = [q for q in found["train"] if user_of(q) == str(trained)]
    assert last.context not in [q.context for q in own] and len(own) == 8  # of 9 histories of four films
    assert "dropped 1: earlier items whose history is nearly one that is held out" in capsys.readouterr().out


def test_negatives_of_earlier_windows_are_never_touched_either(tmp_path):
    events = events_of()
    touched = defaultdict(set)
    for user, film, _ in events:
        touched[str(user)].add(str(film))
    queries, _ = prepare(write(tmp_path, events), history=4, candidates=6, windows="all")
    assert len(queries) == 60 * 8
    for query in queries:
        assert len(query.positives) == 1 and not (set(query.ids) - set(query.positives)) & touched[user_of(query)]


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_by_time_training_ends_before_what_is_held_out_begins(tmp_path, monkeypatch, share):
    events = events_of()
    time = {(str(u), str(m)): t for u, m, t in events}
    found = finished(tmp_path, monkeypatch, "--split", "time", "--windows", "all", "--held_out", share, events=events)
    target = {split: [time[user_of(q), q.positives[0]] for q in queries] for split, queries in found.items()}
    assert max(target["train"]) < min(target["validation"]) <= max(target["validation"]) < min(target["test"])
    assert len(found["test"]) == 60 * share and len(found["validation"]) == 6
    ends = {user: max(t for (u, _), t in time.items() if u == user) for user in {u for u, _ in time}}
    assert sorted(target["test"]) == sorted(ends.values())[-len(found["test"]):]  # every user's last event
    first = {m: min(t for (_, film), t in time.items() if film == m) for m in {m for _, m in time}}
    moment = min(target["validation"])
    assert all(first[c] < moment for q in found["train"] for c in q.ids)  # nothing that appears later is in a pool


def test_no_baseline_sees_later_events_if_held_out_by_time(tmp_path, monkeypatch):
    """A film that is watched after the training's end only has no popularity."""
    events = [(u, m, t) for u, m, t in events_of() if m != 97] + [(60 - i, 97, 10**6 + i) for i in range(6)]
    found = finished(tmp_path, monkeypatch, "--split", "time", events=events)
    rank = baselines.popularity(found["train"])
    late = [q for q in found["test"] if q.positives == ("97",)]
    assert late and all(rank(q).index("97") > 0 for q in late)
    assert not any("97" in q.ids or "Film w97x w97y w97z" in q.context for q in found["train"])


def test_time_needs_times(tmp_path, monkeypatch):
    from ranker.prepare import amazon
    (tmp_path / "x.inter").write_text("user_id:token\titem_id_list:token_seq\titem_id:token\nu\ta b\tc\n")
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token\na\tA\nb\tB\nc\tC\n")
    with pytest.raises(UserError, match="--split time needs the time of every event"):
        prepared(amazon, tmp_path, task="rec-game", split="time")


def test_a_larger_share_of_users_is_held_out(tmp_path, monkeypatch):
    shares = {}
    for share in (0.2, 0.4):
        found = finished(tmp_path, monkeypatch, "--held_out", share, events=events_of(300, 6))
        shares[share] = {q.id for q in found["test"]}
        assert abs(len(shares[share]) / 300 - share) < 0.08 and abs(len(found["validation"]) / 300 - 0.1) < 0.06
    assert shares[0.2] < shares[0.4]


@pytest.mark.parametrize("words", [("--held_out", "0"), ("--held_out", "0.9"), ("--windows", "0"),
                                   ("--windows", "some"), ("--next", "0"), ("--next", "all"),
                                   ("--columns", "film=x"), ("--columns", "title")])
def test_options_without_sense_are_refused(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["prepare", "movielens", str(tmp_path), "--out", str(tmp_path / "o"), *words])
    assert exit_status(command.main) == 2 and words[0] in capsys.readouterr().err


def test_a_retrievers_lists_serve_movies_too(tmp_path):
    folder = write(tmp_path / "data", events_of(3))
    queries, _ = prepare(folder, history=4, candidates=6)
    films = {user_of(q): {m for u, m, _ in events_of(3) if str(u) == user_of(q)} for q in queries}
    listed = {u: [m for m in range(1, 98) if m not in films[u]][:5] + [min(films[u])] for u in ("1", "2")}
    (tmp_path / "lists").write_text("".join(f"{u}\t{' '.join(map(str, ms))}\n" for u, ms in listed.items()))
    queries, dropped = prepare(folder, history=4, candidates=6, lists=tmp_path / "lists")
    assert dropped == {"users without a list of candidates": 1}
    for query in queries:
        assert set(query.ids) == {*map(str, listed[user_of(query)][:5]), query.positives[0]}


def test_untitled_items_are_skipped_and_their_users_stay(tmp_path):
    titles = {m: "" if m % 9 == 0 else "<br>" if m % 9 == 4 else f"Film {m}" for m in range(1, 98)}
    queries, dropped = prepare(write(tmp_path, events_of(), titles), history=4, candidates=6)
    assert len(queries) == 60
    untitled = [(u, m) for u, m, _ in set(events_of()) if m % 9 in (0, 4)]
    assert dropped == {"events of items without a title": len(untitled),
                       "items without a title": len({m for _, m in untitled})}
    for query in queries:
        assert all(query.context) and all(query.texts.values()) and len(query.context) == 4
        own = [m for u, m, _ in sorted(events_of(), key=lambda e: e[2]) if str(u) == user_of(query)]
        kept = [m for m in own if m % 9 not in (0, 4)]
        assert query.positives == (str(kept[-1]),)


def test_the_least_history_may_be_longer_than_what_is_shown(tmp_path):
    events = events_of(10, 12) + [(user, m, m) for user in (11, 12) for m in range(1, 7)]
    queries, dropped = prepare(write(tmp_path, events), history=3, min_history=8, candidates=6)
    assert len(queries) == 10 and all(len(q.context) == 3 for q in queries)
    assert dropped == {"users with fewer than 9 items": 2}


def test_equal_titles_in_a_pool_are_counted_and_avoided_on_demand(tmp_path, monkeypatch, capsys):
    titles = {m: f"Film {m % 20}" for m in range(1, 98)}
    found = finished(tmp_path, monkeypatch, titles=titles)
    queries = [q for split in SPLITS for q in found[split]]
    equal = sum(len(set(q.texts.values())) < 6 for q in queries)
    assert equal > 20 and (f"{equal} queries show two candidates of equal text (--distinct avoids that)"
                           in capsys.readouterr().out)
    found = finished(tmp_path, monkeypatch, "--distinct", titles=titles)
    assert all(len(set(q.texts.values())) == 6 for split in SPLITS for q in found[split])
    assert "equal text" not in capsys.readouterr().out


def test_events_without_a_user_or_a_film_are_counted(tmp_path):
    events = [*events_of(5), ("", 3, 5), (" ", 4, 5), (1, "", 7)]
    assert prepare(write(tmp_path, events), history=4, candidates=6)[1] == {"events without a user or an item": 3}


def test_names_with_spaces_become_ids_or_are_refused_where_two_become_one(tmp_path):
    events = [(f"the user {u}", m, t) for u, m, t in events_of(5)]
    queries, _ = prepare(write(tmp_path / "a", events), history=4, candidates=6)
    assert [q.id for q in queries] == [f"movielens.the_user_{u}" for u in range(1, 6)]
    events += [("the_user_1", m, t) for m, t in itertools.pairwise(range(9))]
    with pytest.raises(UserError, match="the names 'the user 1' and 'the_user_1' would have one id"):
        prepare(write(tmp_path / "b", events), history=4, candidates=6)


def test_columns_of_other_names_are_read_when_they_are_named(tmp_path):
    folder = write(tmp_path, events_of(5))
    expected = prepare(folder, history=4, candidates=6)
    text = (folder / "ratings.csv").read_text()
    (folder / "ratings.csv").write_text(text.replace("userId", "member").replace("timestamp", "when"))
    assert prepare(folder, history=4, candidates=6, columns="userId=member,timestamp=when") == expected


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("kind", ["token", "token_seq", "float", ""])
def test_any_type_of_recbole_is_read_between_commas_or_tabs(tmp_path, separator, kind):
    expected = prepare(write(tmp_path / "csv", events_of(5)), history=4, candidates=6)
    head = [f"{name}:{kind}" if kind else name for name in ("user_id", "item_id", "timestamp", "title")]
    folder = tmp_path / "recbole"
    folder.mkdir()
    (folder / "x.inter").write_text("\n".join([separator.join(head[:3]), *(f"{u}{separator}{m}{separator}{t}"
                                                                           for u, m, t in events_of(5))]))
    (folder / "x.item").write_text("\n".join([separator.join(head[1::2]), *(f"{m}{separator}Film w{m}x w{m}y w{m}z"
                                                                            for m in range(1, 98))]))
    assert prepare(folder, history=4, candidates=6) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1"])
def test_a_dat_file_that_somebody_converted_is_no_mojibake(tmp_path, encoding):
    (tmp_path / "movies.dat").write_bytes("".join(f"{m}::Cité {m}::x\n" for m in range(1, 98)).encode(encoding))
    (tmp_path / "ratings.dat").write_text("".join(f"{u}::{m}::3::{t}\n" for u, m, t in events_of(5)))
    queries, _ = prepare(tmp_path, history=4, candidates=6)
    assert len(queries) == 5 and all(text.startswith("Cité ") for q in queries for text in q.texts.values())


def test_the_reasons_stand_in_the_summary(tmp_path, monkeypatch, capsys):
    titles = {m: "" if m == 50 else f"Film {m}" for m in range(1, 98)}
    finished(tmp_path, monkeypatch, titles=titles)
    count = Counter(m for _, m in {(u, m) for u, m, _ in events_of()})[50]
    out = capsys.readouterr().out
    assert f"dropped {count}: events of items without a title" in out and "dropped 1: items without a title" in out
    assert all(q.texts.values() and "" not in q.texts.values() for q in read_queries(tmp_path / "out.jsonl"))
