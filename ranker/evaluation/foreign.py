"""Runs of other tools as queries: a TREC run, its judgements (qrels), and a file with the texts of its documents."""

from collections.abc import Collection, Iterator
from pathlib import Path

from ranker.data import Candidate, Query
from ranker.errors import UserError
from ranker.reading import clean, json_records, open_text
from ranker.trec_files import Qrels, Run

NEEDED = "a document needs an id ('docid' or '_id') and a text ('content' or 'text')"
Texts = dict[str, str]  # id -> text


def read_corpus(path: Path, topics: Path | None = None, wanted: Collection[str] | None = None) -> tuple[Texts, Texts]:
    """Return (query id -> its text, id of a document, if `wanted`, -> its text).

    The file has one of two layouts: a JSON list of {query, hits: [{qid, docid, content}]}, or JSON lines of
    {_id, title, text} with the queries in `topics` (id TAB text), whose texts count before those of the file. Raise
    UserError for any other layout, and for two texts of one id, as nobody knows which one was meant.
    """
    contexts, named, found, readable = {}, {}, {}, False
    for line, document, text, query in documents(path):
        where = f"{path}:{line}"
        if not isinstance(document, (str, int)):
            raise UserError(f"{where}: {NEEDED}")
        readable = readable or isinstance(text, str)
        if isinstance(text, str) and (wanted is None or str(document) in wanted):
            note(found, str(document), clean(text), where, "document")
        if query:
            note(contexts, str(query[0]), query[1], where, "query")
    if not readable:
        raise UserError(f"{path}:1: {NEEDED}; no document of the file has one")
    if topics:
        with open_text(topics) as file:
            for line, text in enumerate(file, 1):
                query, tab, words = text.rstrip("\r\n").partition("\t")
                if text.strip() and not tab:
                    raise UserError(f"{topics}:{line}: expected a query id, a tab and its text")
                if tab:
                    note(named, query, words, f"{topics}:{line}", "query")
    return contexts | named, found


def note(found: Texts, key: str, text: str, where: str, what: str) -> None:
    """Note the text of a document or query. Raise UserError where another text of it is known."""
    if found.setdefault(key, text) != text:
        raise UserError(f"{where}: {what} '{key}' had another text before")


def documents(path: Path) -> Iterator[tuple[int, object, object, tuple[object, str] | None]]:
    """Yield (line, document id, document text, (query id, query text) or None) for every document."""
    for line, record in json_records(path):
        if "hits" not in record:
            title, text = record.get("title") or "", record.get("text", record.get("contents"))
            yield (line, record.get("_id", record.get("docid", record.get("id"))),
                   f"{title} {text}".strip() if isinstance(text, str) else None, None)
            continue
        if not isinstance(record.get("query"), str) or not isinstance(record["hits"], list):
            raise UserError(f"{path}:{line}: every entry needs 'query' and 'hits'")
        for hit in record["hits"]:
            hit = hit if isinstance(hit, dict) else {}
            query = (hit.get("qid"), record["query"]) if "qid" in hit else None
            yield line, hit.get("docid"), hit.get("content"), query


def queries(run: Run, qrels: Qrels, texts: tuple[dict[str, str], dict[str, str]] | None, where: str,
            task: str = "rank") -> tuple[list[Query], dict[str, list[float]], list[str]]:
    """Return (the judged queries, query id -> all its grades, ids of the queries of the run without judgements).

    Candidates stand in the order of the run. A judged query that the run lacks has no candidates and counts 0, as in
    `trec_eval -c`. Negative grades count as 0. `texts` is the answer of `read_corpus`; without it contexts and
    candidates have empty texts, with it raise UserError (naming `where`) for a document or a query without a text.
    """
    made, (contexts, known) = [], texts or ({}, {})
    for query, grades in qrels.items():
        ids = run.get(query, [])
        missing = [d for d in ids if texts and d not in known]
        if missing or (texts and ids and query not in contexts):
            raise UserError(f"{where}: no text for {f'document {missing[0]!r} of ' if missing else ''}query "
                            f"'{query}' in the corpus")
        made.append(Query(query, task, contexts.get(query, ""), tuple(Candidate(d, known.get(d, "")) for d in ids),
                          tuple(float(max(grades.get(d, 0), 0)) for d in ids)))
    return (made, {query: [float(max(g, 0)) for g in grades.values()] for query, grades in qrels.items()},
            sorted(run.keys() - qrels.keys()))
