"""Runs of other tools as queries: a TREC run, its judgements (qrels), and a file with the texts of its documents."""

from collections.abc import Iterator
from pathlib import Path

from ranker.data import Candidate, Query
from ranker.errors import UserError
from ranker.reading import clean, json_file, json_lines, open_text
from ranker.trec_files import Qrels, Run


def read_corpus(path: Path, topics: Path | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """Return (query id -> its text, document id -> its text).

    The file has one of two layouts: a JSON list of {query, hits: [{qid, docid, content}]}, or JSON lines of
    {_id, title, text} with the queries in `topics` (id TAB text). Raise UserError for any other layout.
    """
    queries, documents = {}, {}
    for line, document, text, query in _documents(path):
        if not isinstance(document, (str, int)) or not isinstance(text, str):
            raise UserError(f"{path}:{line}: a document needs an id ('docid' or '_id') "
                            "and a text ('content' or 'text')")
        documents[str(document)] = clean(text)
        if query:
            queries[str(query[0])] = query[1]
    if topics:
        with open_text(topics) as file:
            for line, text in enumerate(file, 1):
                query, tab, words = text.rstrip("\r\n").partition("\t")
                if text.strip() and not tab:
                    raise UserError(f"{topics}:{line}: expected a query id, a tab and its text")
                queries[query] = words
    return queries, documents


def _documents(path: Path) -> Iterator[tuple[int, object, object, tuple[object, str] | None]]:
    """Yield (line, document id, document text, (query id, query text) or None) for every document."""
    with open_text(path) as file:
        is_list = file.read(64).lstrip().startswith("[")
    if not is_list:
        for line, record in json_lines(path):
            title = record.get("title") or ""
            text = record.get("text", record.get("contents"))
            yield (line, record.get("_id", record.get("docid", record.get("id"))),
                   f"{title} {text}".strip() if isinstance(text, str) else None, None)
        return
    for entry in json_file(path):
        if (not isinstance(entry, dict) or not isinstance(entry.get("query"), str)
            or not isinstance(entry.get("hits"), list)):
            raise UserError(f"{path}: every entry needs 'query' and 'hits'")
        for hit in entry["hits"]:
            hit = hit if isinstance(hit, dict) else {}
            yield 1, hit.get("docid"), hit.get("content"), (hit.get("qid"), entry["query"]) if "qid" in hit else None


def queries(run: Run, qrels: Qrels, texts: tuple[dict[str, str], dict[str, str]] | None, where: str,
            task: str = "rank") -> tuple[list[Query], dict[str, list[float]], list[str]]:
    """Return (the judged queries, query id -> all its grades, ids of the queries of the run without judgements).

    Candidates stand in the order of the run. A judged query that the run lacks has no candidates and counts 0, as in
    `trec_eval -c`. Negative grades count as 0. `texts` is the answer of `read_corpus`; without it contexts and
    candidates have empty texts, with it raise UserError (naming `where`) for a document or a query without a text.
    """
    made, (contexts, documents) = [], texts or ({}, {})
    for query, grades in qrels.items():
        ids = run.get(query, [])
        missing = [d for d in ids if texts and d not in documents]
        if missing or (texts and ids and query not in contexts):
            raise UserError(f"{where}: no text for {f'document {missing[0]!r} of ' if missing else ''}query "
                            f"'{query}' in the corpus")
        made.append(Query(query, task, contexts.get(query, ""), tuple(Candidate(d, documents.get(d, "")) for d in ids),
                          tuple(float(max(grades.get(d, 0), 0)) for d in ids)))
    return (made, {query: [float(max(g, 0)) for g in grades.values()] for query, grades in qrels.items()},
            sorted(run.keys() - qrels.keys()))
