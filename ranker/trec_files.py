"""TREC files, read and written: runs (`qid Q0 docid rank score tag`) and qrels (`qid 0 docid grade`), gzipped or not.

Columns are parted by ASCII white space, or by tabs alone where a line has tabs: an id may hold any other character, a
no-break space too. Short forms are read as well: runs of three columns (`qid docid score`; `qid docid rank` where the
ranks are 1 to n in the order of the file, as in MS MARCO) and judgements of three (`qid docid grade` behind a header,
as in BEIR).

The rank column of a run of six is never trusted, since trec_eval sorts by score. Where scores tie, the run gives no
order; a run with ties is refused until the user says how to break them: `trec` (document ids falling, scores in single
precision, as trec_eval does), `input` (the order of the file) or `pessimistic` (relevant documents last).
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ranker.errors import UserError
from ranker.files import write_text
from ranker.reading import number, open_text

TIES = ("trec", "input", "pessimistic")
SPACE = " \t\n\r\f\v"  # what parts columns; Python's own idea of white space holds more
BEIR = ["query-id", "corpus-id", "score"]  # its header
Qrels = dict[str, dict[str, int]]  # query -> document -> grade
Run = dict[str, list[str]]  # query -> documents, best first


def read_qrels(path: Path) -> Qrels:
    """Return query -> document -> grade. Raise UserError with file and line for every defect."""
    grades: Qrels = {}
    for where, fields in _rows(path, (3, 4)):
        query, document, grade = fields[0], fields[-2], fields[-1]
        if not grades and fields == BEIR:
            continue
        if not re.fullmatch(r"[+-]?\d{1,9}(\.0*)?", grade):
            raise UserError(f"{where}: the grade {grade!r} is no whole number of at most 9 digits")
        if document in grades.setdefault(query, {}):
            raise UserError(f"{where}: document '{document}' of query '{query}' is judged twice")
        grades[query][document] = int(float(grade))
    if not grades:
        raise UserError(f"{path}: no judgements in the file")
    return grades


def read_run(path: Path, ties: str | None = None, qrels: Qrels | None = None) -> Run:
    """Return query -> documents, best first, from six columns or three.

    `ties` says how to order documents of equal scores, and `qrels` which documents are relevant, for `pessimistic`.
    Raise UserError for every defect, and for equal scores without `ties`.
    """
    scores: dict[str, dict[str, float]] = {}
    tied, short = None, True  # short: rows of three columns alone
    for where, fields in _rows(path, (3, 6)):
        short &= len(fields) == 3
        query, document, score = fields if len(fields) == 3 else (fields[0], fields[2], fields[4])
        found = scores.setdefault(query, {})
        if document in found:
            raise UserError(f"{where}: document '{document}' of query '{query}' stands twice")
        found[document] = number(score, where, "the score")
    if short and all(list(found.values()) == list(range(1, len(found) + 1)) for found in scores.values()):
        scores = {query: {d: -rank for d, rank in found.items()} for query, found in scores.items()}
    if not scores:
        raise UserError(f"{path}: no rows in the file")
    run = {}
    for query, found in scores.items():
        values = {d: float(np.float32(s)) for d, s in found.items()} if ties == "trec" else found
        if ties is None and len(set(found.values())) < len(found):
            tied = tied or query
        if ties == "trec":
            order = sorted(sorted(found, reverse=True), key=lambda d: -values[d])
        elif ties == "pessimistic":
            order = sorted(found, key=lambda d: (-values[d], (qrels or {}).get(query, {}).get(d, 0)))
        else:
            order = sorted(found, key=lambda d: -values[d])  # a stable sort: ties keep the order of the file
        run[query] = order
    if tied is not None:
        raise UserError(f"{path}: documents of query '{tied}' have equal scores; say how to order them: "
                        f"--ties {'|'.join(TIES)}")
    return run


def _rows(path: Path, counts: tuple[int, ...]) -> Iterator[tuple[str, list[str]]]:
    """Yield (file:line, fields) for every row. Raise UserError for a row with another number of fields."""
    with open_text(Path(path)) as file:
        for line, text in enumerate(file, 1):
            text = text.strip(SPACE)
            if not text or text.startswith("#"):
                continue
            tabs = "\t" in text
            fields = [field.strip(SPACE) for field in text.split("\t")] if tabs else re.split(f"[{SPACE}]+", text)
            if len(fields) not in counts:
                raise UserError(f"{path}:{line}: {len(fields)} columns, expected {' or '.join(map(str, counts))}")
            yield f"{path}:{line}", fields


def write_run(path: Path, rankings: Iterable[tuple[str, list[str]]], tag: str) -> None:
    """Write rankings (query, documents) as a run; scores fall by 1 from rank to rank, so that they never tie."""
    write_text(path, "".join(f"{query} Q0 {document} {rank} {len(order) - rank + 1} {tag}\n"
                             for query, order in rankings for rank, document in enumerate(order, 1)))


def write_qrels(path: Path, qrels: Qrels) -> None:
    write_text(path, "".join(f"{query} 0 {document} {grade}\n" for query, grades in qrels.items()
                             for document, grade in grades.items()))
