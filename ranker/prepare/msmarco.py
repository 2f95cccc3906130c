"""MS MARCO, or judged passages of a TREC track -> a query per pool of passages.

MS MARCO v1.1 and v2.1 are read as JSON lines whose passages are parallel lists or a list of objects, as v2.1's one
object of columns ({"query": {"0": ...}, ...}), or as parquet (needs pyarrow). As in IRanker's paper, a row counts if
exactly one of its passages is selected, it has 5, 7 or 9 passages, and these have at most 2600 characters together. A
passage that is not selected need not be wrong: there is one label per question. Passages without a text are left out
before the filter; rows without a question or with an `is_selected` that is neither 0 nor 1 are dropped (and counted).

With `--qrels` FILE is a list of {query, hits: [{content, qid, docid}]}. Each question and size gives one pool: a
passage of grade 2 or more (the track's level for binary measures) and others judged 0. With `--graded` the pool is any
judged passages, drawn again until two grades differ, and the grades are the relevance. Unjudged passages are never
drawn; with `--run` only passages that this run found are. Pools of one question share a group. The limit of characters
does not apply to them.

The order of the files tells the answer, so pools are shuffled. MS MARCO's passages have no ids: `p1` is the passage
shown first, so that the id tells nothing. Passages of a track keep their document ids.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ranker.data import Candidate, Query
from ranker.errors import UserError
from ranker.prepare import _options
from ranker.reading import an_id, field, json_file, json_lines, parquet, usable
from ranker.templates import wording
from ranker.trec_files import read_qrels, read_run

FLAGS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "False": 0.0, "True": 1.0}  # of is_selected, as text


def sizes(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(int, text.split(","))))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="JSON lines or .parquet; with --qrels, retrieved passages as JSON")
    parser.add_argument("--sizes", type=sizes, default="5,7,9", help="passages in a pool")
    parser.add_argument("--max_characters", type=int, default=2600, help="of a row's passages together")
    parser.add_argument("--qrels", type=Path, help="the judgements of a TREC track")
    parser.add_argument("--run", type=Path, help="with --qrels: draw only passages of this TREC run")
    parser.add_argument("--graded", action="store_true", help="with --qrels: passages of any grade")
    _options.add_distinct(parser, "rows with equal passages are dropped, and of a track's only one is drawn")
    _options.add_columns(parser, "query_id", "query", "passages", "is_selected", "passage_text")


def prepare(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield a query per row, or per judged question and size. Raise UserError for broken files and options."""
    for size in args.sizes:
        wording(f"passage-{size}")
    if not args.qrels and (args.run or args.graded):
        raise UserError("--run and --graded need the judgements: --qrels FILE")
    yield from judged(args, dropped) if args.qrels else selected(args, dropped)


def selected(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield a query for each of MS MARCO's rows that passes the paper's filter."""
    seen: dict[str, str] = {}
    for where, row in tqdm(rows(args.file, args.columns), desc="rows", unit="row"):
        name = an_id(field(row, "query_id", where, args.columns), where, "'query_id'")
        question, pool = field(row, "query", where, args.columns), passages(row, where, args.columns)
        if seen.setdefault(name, where) != where:
            raise UserError(f"{where}: query_id {name} stood in {seen[name]} already")
        if not all(usable(text) for text, _ in pool):
            dropped["passages without a text"] += sum(not usable(text) for text, _ in pool)
        flags = [flag for _, flag in pool]
        pool = [(text, flag) for text, flag in pool if usable(text)]
        positives = sum(flag == 1 for _, flag in pool)
        if not usable(question):
            dropped["rows without a question"] += 1
        elif None in flags:
            dropped["rows without a usable label (is_selected is not 0 or 1)"] += 1
        elif positives != 1:
            dropped[f"rows with {'several' if positives else 'no'} selected passages"] += 1
        elif len(pool) not in args.sizes:
            dropped[f"rows whose number of passages is not {' or '.join(map(str, args.sizes))}"] += 1
        elif sum(len(text) for text, _ in pool) > args.max_characters:
            dropped[f"rows with more than {args.max_characters} characters of passages"] += 1
        elif args.distinct and len({text for text, _ in pool}) < len(pool):
            dropped["rows with equal passages"] += 1
        else:
            random.Random(f"{args.seed}/msmarco/{name}").shuffle(pool)
            yield Query(f"msmarco.{name}", f"passage-{len(pool)}", question,
                        tuple(Candidate(f"p{i}", text) for i, (text, _) in enumerate(pool, 1)),
                        tuple(flag for _, flag in pool))


def rows(path: Path, called: dict[str, str]) -> Iterator[tuple[str, dict]]:
    """Yield (where the row stands, the row) from a file in any layout of MS MARCO."""
    if path.suffix == ".parquet":
        yield from parquet(path)
        return
    for line, record in json_lines(path):
        questions = record.get(called.get("query", "query"))
        if isinstance(questions, dict):  # v2.1 as downloaded: a single line of columns
            for key in questions:
                yield (f"{path}:{line}: row '{key}'",
                       {name: column.get(key) for name, column in record.items() if isinstance(column, dict)})
        else:
            yield f"{path}:{line}", record


def passages(row: dict, where: str, called: dict[str, str]) -> list[tuple[object, float | None]]:
    """Return (text, 1 if selected else 0) per passage, from parallel lists or a list of objects.

    A label that is neither 0 nor 1 is None. Raise UserError for another layout.
    """
    found = field(row, "passages", where, called)
    if isinstance(found, list) and all(isinstance(p, dict) for p in found):
        objects = {name for p in found for name in p}
        found = {name: [p.get(name) for p in found] for name in objects} if found else None
    if found is None:
        return []
    if not isinstance(found, dict):
        raise UserError(f"{where}: 'passages' must have is_selected and passage_text, as lists or in a list of objects")
    texts = field(found, "passage_text", f"{where}: 'passages'", called)
    flags = found.get(called.get("is_selected", "is_selected"), texts and [None] * len(texts))
    if not isinstance(flags, list) or not isinstance(texts, list):
        raise UserError(f"{where}: 'passages' must have is_selected and passage_text, as lists or in a list of objects")
    if len(flags) != len(texts):
        raise UserError(f"{where}: {len(texts)} passage_text for {len(flags)} is_selected")
    return [(text, FLAGS.get(str(flag))) for text, flag in zip(texts, flags)]


def judged(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield a query with a pool of judged passages for each question and size."""
    qrels = read_qrels(args.qrels)
    run = read_run(args.run, ties="input") if args.run else None  # only its set of passages matters
    for name, question, texts in retrieved(args.file, dropped):
        known = qrels.get(name, {})
        grades = {d: max(known[d], 0) for d in texts if d in known and (run is None or d in run.get(name, ()))}
        if args.distinct:
            best = {texts[d]: d for d in sorted(grades, key=lambda d: grades[d])}  # of equal ones the highest grade
            grades = {d: grades[d] for d in grades if best[texts[d]] == d}
        for size in args.sizes:
            rng = random.Random(f"{args.seed}/msmarco/{name}/{size}")
            pool = drawn(grades, size, args.graded, rng)
            if not pool:
                dropped[f"pools of {size}: too few passages of the grades needed"] += 1
                continue
            rng.shuffle(pool)
            yield Query(f"msmarco.{name}.{size}", f"passage-{size}", question,
                        tuple(Candidate(d, texts[d]) for d in pool),
                        tuple(float(grades[d] if args.graded else grades[d] > 0) for d in pool), f"msmarco.{name}")


def drawn(grades: dict[str, int], size: int, graded: bool, rng: random.Random) -> list[str]:
    """Draw `size` document ids as a pool; return none where there are too few.

    If `graded`, the pool has at least two different grades; else it has a passage of grade 2 or more and others of 0.
    """
    if not graded:
        positives, negatives = [d for d in grades if grades[d] >= 2], [d for d in grades if grades[d] == 0]
        return ([rng.choice(positives), *rng.sample(negatives, size - 1)] if positives and len(negatives) >= size - 1
                else [])
    pool: list[str] = []
    if len(grades) >= size and len(set(grades.values())) > 1:
        while len({grades[d] for d in pool}) < 2:
            pool = rng.sample(list(grades), size)
    return pool


def retrieved(path: Path, dropped: Counter) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield (query id, question, document id -> text) from a list of {query, hits: [{content, qid, docid}]}."""
    entries, seen = json_file(path), set()
    for count, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
        where = f"{path}: question {count}"
        hits = entry.get("hits") if isinstance(entry, dict) else None
        if not isinstance(hits, list) or not hits or not all(isinstance(hit, dict) for hit in hits):
            raise UserError(f"{where}: expected {{query, hits: [{{content, qid, docid}}, ...]}}")
        names = {an_id(hit.get("qid"), where, "'qid'") for hit in hits}
        if len(names) > 1 or names & seen:
            raise UserError(f"{where}: its hits must share a qid that no other question has, "
                            f"got {', '.join(sorted(names))}")
        seen |= names
        texts: dict[str, str] = {}
        for hit in hits:
            document, text = an_id(hit.get("docid"), where, "'docid'"), hit.get("content")
            if not usable(text):
                dropped["passages without a text"] += 1
            elif texts.setdefault(document, text) != text:
                raise UserError(f"{where}: passage '{document}' had another text before")
        if usable(entry.get("query")):
            yield *names, entry["query"], texts
        else:
            dropped["questions without a text"] += 1
