"""A TREC run with its judgements and texts -> queries: the first `depth` documents of the run are the candidates.

Grades are the relevance; unjudged documents count 0, which is a claim of the metric, not of a judge. The order of the
run is kept (a reranker sees the order of its first stage), unless `--shuffle` is given. No document is added: a query
whose relevant documents the first stage missed is dropped and counted, since there is nothing to rank. Documents and
queries without a text are left out and counted; two texts of one id are an error, as nobody knows which one was meant.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ranker import trec_files
from ranker.data import Query
from ranker.evaluation import foreign
from ranker.prepare import _options
from ranker.reading import usable
from ranker.templates import wording


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="qid Q0 docid rank score tag")
    parser.add_argument("qrels", type=Path, help="qid 0 docid grade")
    parser.add_argument("corpus", type=Path,
                        help="retrieve_results JSON, or JSON lines of {_id, title, text} with --topics")
    parser.add_argument("--topics", type=Path, help="query texts, id TAB text")
    parser.add_argument("--depth", type=int, default=20, help="candidates of a query")
    parser.add_argument("--ties", choices=trec_files.TIES, help="how to order documents of equal score")
    parser.add_argument("--task", default="rank", help="the wording, from prompts/tasks.yaml")
    parser.add_argument("--shuffle", action="store_true", help="shuffle the candidates of each query")
    _options.add_distinct(parser, "of equal ones the most relevant stays")


def prepare(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield the judged queries that have a relevant document among their candidates.

    Raise UserError with file and line for broken files.
    """
    wording(args.task)
    qrels = trec_files.read_qrels(args.qrels)
    run = {query: ids[:args.depth] for query, ids in trec_files.read_run(args.run, args.ties, qrels).items()}
    found = foreign.read_corpus(args.corpus, args.topics, {document for ids in run.values() for document in ids})
    contexts, documents = ({key: text for key, text in texts.items() if usable(text)} for texts in found)
    for query in run.keys() & qrels.keys():
        if query not in contexts:
            dropped[f"queries without a text in {args.topics or args.corpus}"] += 1
            del run[query], qrels[query]
            continue
        kept = [document for document in run[query] if document in documents]
        if len(kept) < len(run[query]):
            dropped[f"documents of a query without a text in {args.corpus}"] += len(run[query]) - len(kept)
        run[query] = kept
    queries, _, unjudged = foreign.queries(run, qrels, (contexts, documents), str(args.corpus), args.task)
    if unjudged:
        dropped["queries of the run without judgements"] += len(unjudged)
    for query in _options.pools(tqdm(ranked(queries, args.depth, dropped), desc="queries", unit="query"),
                                args.distinct, dropped):
        yield query.shuffled(random.Random(f"{args.seed}/trec/{query.id}")) if args.shuffle else query


def ranked(queries: list[Query], depth: int, dropped: Counter) -> Iterator[Query]:
    """Yield the queries that have something to rank, and count the others."""
    for query in queries:
        if len(query.ids) < 2:
            dropped["judged queries with fewer than two documents in the run"] += 1
        elif max(query.relevance) <= 0:
            dropped[f"queries without a relevant document in the first {depth} of the run"] += 1
        else:
            yield query
