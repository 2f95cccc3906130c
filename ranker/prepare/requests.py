"""rank_llm's request files (JSON lines of {query: {text, qid}, candidates: [{docid, score, doc}]}) -> queries.

The text of a candidate is `doc` itself, or its `contents`, `text`, `segment`, `passage` or `body`, after its `title`.
A JSON list of {query, hits: [{content, qid, docid}]} is read as well: RankGPT's retrieved passages (DL19, NovelEval).
Relevance comes from a qrels file, since requests hold none. Candidates without a text, or with an id that stood before
in the request, are left out and counted, as are requests without a question. `write` turns queries into a request file,
so that other rerankers can rank the same candidates as ours.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from ranker import trec_files
from ranker.evaluation.baselines import context_text
from ranker.data import Candidate, Query
from ranker.errors import UserError
from ranker.files import open_whole
from ranker.prepare import _options
from ranker.prepare.msmarco import retrieved
from ranker.reading import an_id, clean, json_lines, open_text, usable
from ranker.templates import wording

TEXTS = ("contents", "text", "segment", "passage", "body")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("requests", type=Path, help="JSON lines of rank_llm, or a list of retrieved passages as JSON")
    parser.add_argument("qrels", type=Path, help="qid 0 docid grade")
    parser.add_argument("--depth", type=int, default=20, help="candidates of a query")
    parser.add_argument("--task", default="rank", help="the wording, from prompts/tasks.yaml")
    _options.add_distinct(parser, "of equal ones the most relevant stays")


def prepare(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield a query per request that has judgements. Raise UserError with file and line for broken requests."""
    wording(args.task)
    qrels = trec_files.read_qrels(args.qrels)
    for name, question, shown in listed(args.requests, args.depth, dropped):
        grades = qrels.get(name, {})
        relevance = tuple(float(max(grades.get(c, 0), 0)) for c in shown)
        if not usable(question):
            dropped["requests without a question"] += 1
        elif not grades:
            dropped["requests without judgements"] += 1
        elif len(shown) < 2:
            dropped["requests with fewer than two candidates"] += 1
        elif max(relevance) <= 0:
            dropped[f"requests without a relevant candidate in the first {args.depth}"] += 1
        else:
            made = Query(name, args.task, clean(question), tuple(shown.values()), relevance)
            yield from _options.pools([made], args.distinct, dropped)


def listed(path: Path, depth: int, dropped: Counter) -> Iterator[tuple[str, object, dict[str, Candidate]]]:
    """Yield (query id, question, id -> candidate, in their order) of each request. Raise UserError."""
    with open_text(path) as file:
        whole = file.read(1) == "["
    if whole:
        for name, question, texts in retrieved(path, dropped):
            yield name, question, {d: Candidate(d, clean(text)) for d, text in islice(texts.items(), depth)}
        return
    seen: dict[str, int] = {}
    for line, record in tqdm(json_lines(path), desc="requests", unit="request"):
        where = f"{path}:{line}"
        query, items = record.get("query"), record.get("candidates")
        if not isinstance(query, dict) or not {"text", "qid"} <= query.keys() or not isinstance(items, list):
            raise UserError(f"{where}: a request needs 'query' with 'text' and 'qid', and 'candidates'")
        name = an_id(query["qid"], where, "'qid'")
        if seen.setdefault(name, line) != line:
            raise UserError(f"{where}: qid '{name}' stood in line {seen[name]} already")
        shown: dict[str, Candidate] = {}
        for i, item in enumerate(items[:depth], 1):
            found = candidate(item, f"{where}: candidate {i}")
            if not found.text:
                dropped["candidates without a text"] += 1
            elif shown.setdefault(found.id, found) is not found:
                dropped["candidates whose id stood before in their request"] += 1
        yield name, query["text"], shown


def candidate(item: object, where: str) -> Candidate:
    """Return a candidate of a request, its text empty where it has none. Raise UserError for another layout."""
    doc = item.get("doc") if isinstance(item, dict) else None
    names = [name for name in TEXTS if name in doc] if isinstance(doc, dict) else []
    if not isinstance(item, dict) or not {"docid", "doc"} <= item.keys() or isinstance(doc, dict) and not names:
        raise UserError(f"{where} needs 'docid' and 'doc', a text or an object with one of {', '.join(TEXTS)}")
    text, title = (doc[names[0]], doc.get("title")) if names else (doc, None)
    text = f"{title} {text}" if isinstance(title, str) and usable(text) else text
    return Candidate(an_id(item["docid"], where, "'docid'"), clean(text) if usable(text) else "")


def write(path: Path, queries: Iterable[Query]) -> None:
    """Write queries as requests, candidates in their order; scores fall by 1, so that they never tie."""
    with open_whole(path) as file:
        for query in queries:
            file.write(json.dumps({"query": {"text": context_text(query), "qid": query.id},
                                   "candidates": [{"docid": c.id, "score": float(len(query.ids) - i),
                                                   "doc": {"contents": c.text}}
                                                  for i, c in enumerate(query.candidates)]},
                                  ensure_ascii=False) + "\n")
