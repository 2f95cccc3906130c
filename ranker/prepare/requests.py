"""rank_llm's request files (JSON lines of {query: {text, qid}, candidates: [{docid, score, doc}]}) -> queries.

The text of a candidate is `doc` itself, or its `contents`, `text`, `segment`, `passage` or `body`, after its `title`.
Relevance comes from a qrels file, since requests hold none. `write` turns queries into a request file, so that other
rerankers can rank the same candidates as ours.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from ranker import trec_files
from ranker.evaluation.baselines import context_text
from ranker.data import Candidate, Query
from ranker.errors import UserError
from ranker.files import open_whole
from ranker.reading import clean, json_lines

TEXTS = ("contents", "text", "segment", "passage", "body")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("requests", type=Path, help="JSON lines of rank_llm")
    parser.add_argument("qrels", type=Path, help="qid 0 docid grade")
    parser.add_argument("--depth", type=int, default=20, help="candidates of a query")
    parser.add_argument("--task", default="rank", help="the wording, from prompts/tasks.yaml")


def prepare(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield a query per request that has judgements. Raise UserError with file and line for broken requests."""
    qrels = trec_files.read_qrels(args.qrels)
    for line, record in tqdm(json_lines(args.requests), desc="requests", unit="request"):
        where = f"{args.requests}:{line}"
        query, candidates = record.get("query"), record.get("candidates")
        if not isinstance(query, dict) or not isinstance(query.get("text"), str) or not isinstance(candidates, list):
            raise UserError(f"{where}: a request needs 'query' with 'text' and 'qid', and 'candidates'")
        name = str(query.get("qid"))
        shown = [candidate(item, f"{where}: candidate {i}") for i, item in enumerate(candidates[:args.depth], 1)]
        grades = qrels.get(name, {})
        relevance = tuple(float(max(grades.get(c.id, 0), 0)) for c in shown)
        if not grades:
            dropped["requests without judgements"] += 1
        elif len(shown) < 2:
            dropped["requests with fewer than two candidates"] += 1
        elif max(relevance) <= 0:
            dropped[f"requests without a relevant candidate in the first {args.depth}"] += 1
        else:
            yield Query(name, args.task, clean(query["text"]), tuple(shown), relevance)


def candidate(item: object, where: str) -> Candidate:
    """Return a candidate of a request. Raise UserError where it has no id or no text."""
    doc = item.get("doc") if isinstance(item, dict) else None
    text = (doc if isinstance(doc, str)
            else next((doc[name] for name in TEXTS if name in doc), None) if isinstance(doc, dict) else None)
    if not isinstance(text, str) or not isinstance(item.get("docid"), (str, int)):
        raise UserError(f"{where} needs 'docid' and 'doc', a text or an object with one of {', '.join(TEXTS)}")
    title = doc.get("title") if isinstance(doc, dict) else None
    return Candidate(str(item["docid"]), clean(f"{title} {text}" if isinstance(title, str) else text))


def write(path: Path, queries: Iterable[Query]) -> None:
    """Write queries as requests, candidates in their order; scores fall by 1, so that they never tie."""
    with open_whole(path) as file:
        for query in queries:
            file.write(json.dumps({"query": {"text": context_text(query), "qid": query.id},
                                   "candidates": [{"docid": c.id, "score": float(len(query.ids) - i),
                                                   "doc": {"contents": c.text}}
                                                  for i, c in enumerate(query.candidates)]},
                                  ensure_ascii=False) + "\n")
