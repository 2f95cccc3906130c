"""MS MARCO, or judged passages of a TREC track -> a query per pool of passages.

MS MARCO v1.1 and v2.1 are read as JSON lines whose passages are parallel lists or a list of objects, as v2.1's one
object of columns ({"query": {"0": ...}, ...}), or as parquet (needs pyarrow). As in IRanker's paper, a row counts if
exactly one of its passages is selected, it has 5, 7 or 9 passages, and these have at most 2600 characters together. A
passage that is not selected need not be wrong: there is one label per question.

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
from ranker.prompting import wording
from ranker.reading import json_file, json_lines, words
from ranker.trec_files import read_qrels, read_run


def sizes(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(int, text.split(","))))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="JSON lines or .parquet; with --qrels, retrieved passages as JSON")
    parser.add_argument("--sizes", type=sizes, default="5,7,9", help="passages in a pool")
    parser.add_argument("--max_characters", type=int, default=2600, help="of a row's passages together")
    parser.add_argument("--qrels", type=Path, help="the judgements of a TREC track")
    parser.add_argument("--run", type=Path, help="with --qrels: draw only passages of this TREC run")
    parser.add_argument("--graded", action="store_true", help="with --qrels: passages of any grade")


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
    for where, row in tqdm(rows(args.file), desc="rows", unit="row"):
        name, question, pool = (an_id(row, "query_id", where), words(row.get("query"), where, "'query'"),
                                passages(row, where))
        if seen.setdefault(name, where) != where:
            raise UserError(f"{where}: query_id {name} stood in {seen[name]} already")
        positives = sum(flag for _, flag in pool)
        if positives != 1:
            dropped[f"rows with {'several' if positives else 'no'} selected passages"] += 1
        elif len(pool) not in args.sizes:
            dropped[f"rows whose number of passages is not {' or '.join(map(str, args.sizes))}"] += 1
        elif sum(len(text) for text, _ in pool) > args.max_characters:
            dropped[f"rows with more than {args.max_characters} characters of passages"] += 1
        else:
            random.Random(f"{args.seed}/msmarco/{name}").shuffle(pool)
            yield Query(f"msmarco.{name}", f"passage-{len(pool)}", question,
                        tuple(Candidate(f"p{i}", text) for i, (text, _) in enumerate(pool, 1)),
                        tuple(flag for _, flag in pool))


def rows(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield (where the row stands, the row) from a file in any layout of MS MARCO."""
    if path.suffix == ".parquet":
        yield from parquet(path)
        return
    for line, record in json_lines(path):
        if isinstance(record.get("query"), dict):  # v2.1 as downloaded: a single line of columns
            for key in record["query"]:
                yield (f"{path}:{line}: row '{key}'",
                       {name: column.get(key) for name, column in record.items() if isinstance(column, dict)})
        else:
            yield f"{path}:{line}", record


def parquet(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield (file:number, row) from a parquet file. Raise UserError where pyarrow is missing or the file is broken."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: parquet needs pyarrow (pip install pyarrow), "
                        "or convert the file to JSON lines") from None
    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(1000)
        for count, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
            yield f"{path}:{count}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def passages(row: dict, where: str) -> list[tuple[str, float]]:
    """Return (text, 1 if selected else 0) per passage, from parallel lists or a list of objects."""
    found = row.get("passages")
    if isinstance(found, list):
        found = {name: [p.get(name) if isinstance(p, dict) else None for p in found]
                 for name in ("is_selected", "passage_text")}
    flags, texts = (found.get(name) if isinstance(found, dict) else None for name in ("is_selected", "passage_text"))
    if not isinstance(flags, list) or not isinstance(texts, list):
        raise UserError(f"{where}: 'passages' must have is_selected and passage_text, as lists or in a list of objects")
    if len(flags) != len(texts):
        raise UserError(f"{where}: {len(texts)} passage_text for {len(flags)} is_selected")
    if any(flag not in (0, 1) for flag in flags):
        raise UserError(f"{where}: is_selected must be 0 or 1, got {flags}")
    return [(words(text, where, "passage_text"), float(flag)) for text, flag in zip(texts, flags)]


def judged(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield a query with a pool of judged passages for each question and size."""
    qrels = read_qrels(args.qrels)
    run = read_run(args.run, ties="input") if args.run else None  # only its set of passages matters
    for name, question, texts in retrieved(args.file):
        known = qrels.get(name, {})
        grades = {d: max(known[d], 0) for d in texts if d in known and (run is None or d in run.get(name, ()))}
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


def retrieved(path: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield (query id, question, document id -> text) from a list of {query, hits: [{content, qid, docid}]}."""
    entries, seen = json_file(path), set()
    for count, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
        where = f"{path}: question {count}"
        hits = entry.get("hits") if isinstance(entry, dict) else None
        if not isinstance(hits, list) or not hits or not all(isinstance(hit, dict) for hit in hits):
            raise UserError(f"{where}: expected {{query, hits: [{{content, qid, docid}}, ...]}}")
        names = {an_id(hit, "qid", where) for hit in hits}
        if len(names) > 1 or names & seen:
            raise UserError(f"{where}: its hits must share a qid that no other question has, "
                            f"got {', '.join(sorted(names))}")
        seen |= names
        texts = {an_id(hit, "docid", where): words(hit.get("content"), where, "'content'") for hit in hits}
        yield *names, words(entry.get("query"), where, "'query'"), texts


def an_id(record: dict, name: str, where: str) -> str:
    """Return an id as text, since some files write ids as numbers. Raise UserError for an id with spaces or none."""
    text = str(record[name]) if type(record.get(name)) in (int, str) else ""
    if text.split() != [text]:
        raise UserError(f"{where}: '{name}' must be an id without spaces, got {record.get(name)!r}")
    return text
