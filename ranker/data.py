"""The nouns (Query, Candidate, Ask, Answer, Completion, Group), and queries as JSON lines.

One line of a data file is one query:

    {"id": "q1", "task": "rank", "context": "warm and waterproof",
     "candidates": [{"id": "a", "text": "wool hat"}, {"id": "b", "text": "rain coat"}], "relevance": [0, 1]}

`context` is a string, or a list of strings for a history (oldest first). `relevance` runs parallel to `candidates`;
it may be graded or real-valued, and negative values are refused because nDCG has no meaning for them. A query without
it (or with zeros alone) can be ranked, but neither trained on nor measured. Three things may be added: `group` (queries
of one group, such as those of one user, never stand in two splits), `tags` (a list, such as the benchmark of a
question, by which labels may be smoothed), and for routing the measured `performance` and `cost` of each candidate,
from which evaluations draw the cost-quality curve. Other fields are ignored, with one note.
"""

import difflib
import json
import logging
import math
import os.path
import random
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

from ranker.errors import UserError, nearest, one_line
from ranker.files import open_whole
from ranker.reading import unpacked

# `tokens` (or `words`) that each text was cut to, items of the `history` that are left, tokens that texts whose
# log-probability is the answer were cut to (`scored`); None: all is whole
Cut = dict[str, int] | None

FIELDS = ("id", "task", "context", "candidates")
OPTIONAL = ("relevance", "group", "tags")
MEASURED = ("performance", "cost")  # of a candidate, optional
KNOWN, OF_CANDIDATES = frozenset(FIELDS + OPTIONAL), frozenset(("id", "text", *MEASURED))


@dataclass(frozen=True, slots=True)
class Candidate:
    id: str
    text: str
    performance: float | None = None  # routing: what it scored on this query, and what that cost
    cost: float | None = None


@dataclass(frozen=True)
class Query:
    """What to rank for. `relevance[i]` belongs to `candidates[i]`; ids are the keys everywhere, texts never are."""

    id: str
    task: str
    context: str | tuple[str, ...]
    candidates: tuple[Candidate, ...]
    relevance: tuple[float, ...]
    group: str = ""  # what must not be split: a user, a question asked under several objectives; empty: the id
    tags: tuple[str, ...] = ()  # what it is about

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(candidate.id for candidate in self.candidates)

    @cached_property
    def texts(self) -> dict[str, str]:
        return {candidate.id: candidate.text for candidate in self.candidates}

    @cached_property
    def rel(self) -> dict[str, float]:
        return dict(zip(self.ids, self.relevance))

    @property
    def labelled(self) -> bool:
        """Tell whether any candidate is relevant; else the query can be ranked, but not learned from or measured."""
        return max(self.relevance, default=0) > 0

    @cached_property
    def positives(self) -> tuple[str, ...]:
        """The candidates of the highest relevance; ties are all positives."""
        best = max(self.relevance)
        return tuple(c for c in self.ids if self.rel[c] == best)

    def shuffled(self, rng: random.Random) -> "Query":
        """The query with its candidates in another order."""
        pairs = list(zip(self.candidates, self.relevance))
        rng.shuffle(pairs)
        candidates, relevance = zip(*pairs)
        return replace(self, candidates=candidates, relevance=relevance)


@dataclass(frozen=True)
class Ask:
    """One call of the language model: a decision about the pool of candidate ids, in the order shown.

    The identifier `[k]` in the prompt and in the answer is the candidate `pool[k - 1]`.
    """

    query: Query
    pool: tuple[str, ...]
    decision: str
    examples: tuple[tuple["Ask", str], ...] = ()  # other asks with their completions, shown before this one
    out: tuple[str, ...] | None = None  # of the pool, no longer in question, in the order they left; None: not stated
    drop: int = 1  # candidates that an elimination may name at most
    by_logits: bool = False  # nothing is written: the logits of the identifiers are the answer
    hint: str = ""  # the right answer, given away in the prompt so that the policy writes a way to it
    told: tuple[tuple[str, str], ...] = ()  # (name, text): further texts, fields of the decision's template
    role: str = "policy"  # who answers
    samples: int = 1  # different completions that are wanted; with several the answer is a list of answers
    temperature: float = 0.0  # of sampling; 0: the likeliest
    sample: int = 0  # which of the samples it is, given by the driver

    @cached_property
    def left(self) -> tuple[str, ...]:
        """Return the candidates in question."""
        return tuple(c for c in self.pool if c not in self.out) if self.out else self.pool

    def described(self) -> dict:
        """Return what traces and logs say of the ask, JSON as it is."""
        more = {"out": list(self.out)} if self.out is not None else {}
        more |= {"drop": self.drop} if self.drop > 1 else {}
        more |= {"told": [list(pair) for pair in self.told]} if self.told else {}
        more |= {"role": self.role} if self.role != "policy" else {}
        more |= {"temperature": self.temperature} if self.temperature else {}
        more |= {"sample": self.sample} if self.sample else {}
        return {"decision": self.decision, "pool": list(self.pool)} | more

    @classmethod
    def recorded(cls, query: Query, pool: Sequence[str], record: dict) -> "Ask":
        """Return the ask about `pool` with what a record of `described` tells of it."""
        out = record.get("out")
        return cls(query, tuple(pool), record["decision"], out=None if out is None else tuple(out),
                   drop=record.get("drop", 1), told=tuple((name, text) for name, text in record.get("told", ())))


STATUSES = ("ok", "missing_answer", "not_a_candidate", "repetition", "missing_ids", "truncated")


@dataclass(frozen=True)
class Answer:
    """What a completion decided. `value` holds candidate ids (for `score`, one whole number), best first.

    Only an `ok` answer may be acted on; in a failed one `value` is what could be read, each candidate once.
    """

    status: str
    value: tuple = ()
    named: int = field(default=0, compare=False)  # identifiers or texts named, repeated and foreign ones included
    # probabilities of the decision's ALTERNATIVES, or log-probabilities of its `texts`, where somebody knows them
    scores: tuple[float, ...] = field(default=(), compare=False)
    lengths: tuple[int, ...] = field(default=(), compare=False)  # of the texts, in tokens
    text: str = field(default="", compare=False, repr=False)  # the whole completion
    places: tuple[tuple[int, int], ...] = field(default=(), compare=False, repr=False)  # of `value`'s identifiers in it

    @property
    def ok(self) -> bool:
        return self.status == "ok"


@dataclass
class Completion:
    """One completion and its facts. `ids` end with the stop token where there is one; `logprobs` are the sampler's.

    Where only the text is known (of a server's, of a recorded one) there are no ids, and `counted` says how many there
    were. Where nobody sampled, log-probabilities are NaN.
    """

    ids: list[int]
    logprobs: list[float]
    text: str
    finished: bool  # stopped by itself rather than by the token limit
    answer: Answer
    seconds: float = 0.0  # its share of the batch it was sampled in
    cut: Cut = None  # what its prompt lost
    counted: int = 0
    # What training adds:
    cohort: object = field(default=0, compare=False, repr=False)  # completions of one cohort are compared
    behind: "Completion | None" = field(default=None, compare=False, repr=False)  # what it continues, of its group
    stem: list[int] = field(default_factory=list, compare=False, repr=False)  # between the group's prompt and it
    next: "Completion | None" = field(default=None, compare=False, repr=False)  # what follows it in its episode
    rewards: dict[str, float] = field(default_factory=dict, compare=False, repr=False)  # by name; `task`, `total`: sums
    returns: dict[str, float] = field(default_factory=dict, compare=False, repr=False)  # `task`, `total`, to the end
    alive: bool = field(default=False, compare=False, repr=False)  # whether it is learned from
    advantage: float = field(default=0.0, compare=False, repr=False)  # mean over its tokens
    signals: dict = field(default_factory=dict, compare=False, repr=False)  # name -> tensor [its tokens]

    @property
    def sampled(self) -> bool:
        return not self.logprobs or not math.isnan(self.logprobs[0])

    @property
    def tokens(self) -> int:
        return len(self.ids) or self.counted


@dataclass
class Group:
    """The completions of one ask."""

    ask: Ask
    prompt: list[int]
    completions: list[Completion]


def parse_query(record: object, where: str, unused: set[str] | None = None) -> Query:
    """Return the Query of one decoded JSON line. Raise UserError naming `where` for every defect.

    Fields that nothing uses are put into `unused`; a field that reads like the misspelling of a missing one is a
    defect.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(record).__name__}")
    for name in FIELDS:
        if name not in record:
            raise UserError(f"{where}: missing field '{name}'{_meant(name, record)}")
    _note_unused(record, KNOWN, where, unused)
    identity = _identity(record["id"], where, "the query id")
    for name in ("task", *(["group"] if "group" in record else [])):
        if not isinstance(record[name], str) or not record[name].strip():
            raise UserError(f"{where}: '{name}' must be a non-empty string")
    context = record["context"]
    if isinstance(context, list) and all(isinstance(item, str) for item in context):
        context = tuple(context)
    elif not isinstance(context, str):
        raise UserError(f"{where}: 'context' must be a string or a list of strings")
    tags = record.get("tags", [])
    if not (isinstance(tags, list) and all(isinstance(tag, str) and tag.strip() for tag in tags)):
        raise UserError(f"{where}: 'tags' must be a list of non-empty strings")
    candidates = _parse_candidates(record["candidates"], where, unused)
    relevance = _parse_relevance(record.get("relevance"), len(candidates), where)
    return Query(identity, record["task"], context, candidates, relevance, record.get("group", ""), tuple(tags))


def _meant(name: str, record: dict) -> str:
    """Return the tail of an error for a missing field that another field may be meant for."""
    unknown = [key for key in record if key not in FIELDS + OPTIONAL]
    near = difflib.get_close_matches(name, unknown, n=1, cutoff=0.6)
    return f"; is it '{near[0]}'?" if near else ""


def _note_unused(record: dict, known: frozenset[str], where: str, unused: set[str] | None) -> None:
    """Put unknown fields into `unused`. Raise UserError for a field that reads like a known one that is missing."""
    unknown = record.keys() - known
    missing = [name for name in known if name not in record] if unknown else []
    for name in unknown:
        if difflib.get_close_matches(name, missing, n=1, cutoff=0.7):
            raise UserError(f"{where}: unknown field '{name}'{nearest(name, missing)}")
        if unused is not None:
            unused.add(name)


def _identity(value: object, where: str, what: str) -> str:
    """Return an id as text; whole numbers are ids too."""
    value = str(value) if type(value) is int else value
    if not isinstance(value, str) or value.split() != [value]:
        raise UserError(f"{where}: {what} {value!r} must be a text without spaces, which TREC files cannot hold, or a"
                        " whole number")
    return value


def _parse_candidates(raw: object, where: str, unused: set[str] | None) -> tuple[Candidate, ...]:
    if not isinstance(raw, list):
        raise UserError(f"{where}: 'candidates' must be a list")
    if len(raw) < 2:
        raise UserError(f"{where}: {len(raw)} candidate(s), ranking needs at least two")
    seen: set[str] = set()
    candidates = []
    for i, item in enumerate(raw, 1):
        if not (isinstance(item, dict) and "id" in item and isinstance(item.get("text"), str)):
            raise UserError(f"{where}: candidate {i} must be {{\"id\": string, \"text\": string}}")
        identity = _identity(item["id"], where, f"the id of candidate {i}")
        if identity in seen:
            raise UserError(f"{where}: candidate id '{identity}' stands twice")
        seen.add(identity)
        if len(item) > 2:
            _note_unused(item, OF_CANDIDATES, f"{where}: candidate {i}", unused)
            for name in MEASURED:  # NaN fails the comparison too
                if name in item and (type(item[name]) not in (int, float) or not abs(item[name]) <= 1e9):
                    raise UserError(f"{where}: '{name}' of candidate {i} must be a number, got {item[name]!r}")
        candidates.append(Candidate(sys.intern(identity), item["text"], item.get("performance"), item.get("cost")))
    if len({name in item for name in MEASURED for item in raw}) > 1:
        raise UserError(f"{where}: where one candidate has performance and cost, all need both")
    return tuple(candidates)


def _parse_relevance(raw: object, count: int, where: str) -> tuple[float, ...]:
    if raw is None:
        return (0.0,) * count
    if not isinstance(raw, list) or not all(type(value) in (int, float) for value in raw):
        raise UserError(f"{where}: 'relevance' must be a list of numbers")
    if len(raw) != count:
        raise UserError(f"{where}: {len(raw)} relevance values for {count} candidates")
    if any(not 0 <= value <= 1e9 for value in raw):  # NaN fails this too
        raise UserError(f"{where}: relevance must be a number from 0 to 1e9")
    return tuple(_number(float(value)) for value in raw)


@lru_cache(4096)
def _number(value: float) -> float:
    """Return an equal number that was there before: millions of zeros and ones are two numbers in memory."""
    return value


def read_queries(path: str | Path) -> list[Query]:
    """Return all queries of a JSON lines file. Raise UserError with file and line for the first defect."""
    return list(iter_queries(path))


def iter_queries(path: str | Path) -> Iterator[Query]:
    """Yield the queries of a JSON lines file. Raise UserError with file and line for the first defect.

    Fields that nothing uses are named in one warning.
    """
    path = Path(os.path.expanduser(path))
    first_line: dict[str, int] = {}
    unused: set[str] = set()
    for number, line in _lines(path):
        query = parse_query(_decoded(line, f"{path}:{number}", path), f"{path}:{number}", unused)
        if query.id in first_line:
            raise UserError(f"{path}:{number}: query id '{query.id}' stood in line {first_line[query.id]} already")
        first_line[query.id] = number
        yield query
    if not first_line:
        raise UserError(f"{path}: no queries in the file")
    if unused:
        logging.warning(one_line(f"{path}: fields that nothing uses: {', '.join(sorted(unused))}"))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line that is not blank, of a file or a pipe, gzipped or not, with BOM or without."""
    number = 0
    try:
        with unpacked(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}:{number}: not UTF-8 text") from None
    except EOFError:
        raise UserError(f"{path}: the gzip file is cut short; make or download it again") from None
    except (OSError, zlib.error) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _decoded(line: str, where: str, path: Path) -> object:
    """Return the value of a JSON line. Raise UserError for other text."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        if where.endswith(":1") and "{" not in line and re.search("[,\t;]", line):
            raise UserError(f"{where}: not JSON but a table; make queries of it: python -m ranker.prepare table {path}"
                            " --query COLUMN --text COLUMN --label COLUMN --out FILE.jsonl") from None
        raise UserError(f"{where}: not JSON ({error})") from None
    if "\\u" in line and any(0xD800 <= ord(c) < 0xE000 for c in json.dumps(record, ensure_ascii=False)):
        raise UserError(f"{where}: half of a surrogate pair (\\ud800 to \\udfff) is no text")
    return record


def written(candidate: Candidate) -> dict:
    """Return a candidate as a data file holds it."""
    found = {"id": candidate.id, "text": candidate.text}
    found |= {} if candidate.performance is None else {"performance": candidate.performance}
    return found | ({} if candidate.cost is None else {"cost": candidate.cost})


def write_queries(path: str | Path, queries: Iterable[Query]) -> None:
    """Write queries as JSON lines; the file gets its name only when all are written. Raise UserError."""
    with open_whole(Path(path)) as file:
        for q in queries:
            line = json.dumps({
                "id": q.id, "task": q.task, **({"group": q.group} if q.group else {}),
                **({"tags": list(q.tags)} if q.tags else {}),
                "context": q.context if isinstance(q.context, str) else list(q.context),
                "candidates": [written(c) for c in q.candidates],
                **({"relevance": list(q.relevance)} if q.labelled else {}),
            }, ensure_ascii=False)
            try:
                file.write(line + "\n")
            except UnicodeEncodeError:
                raise UserError(f"query '{q.id}': a text holds half of a surrogate pair (\\ud800 to "
                                "\\udfff), which is no text") from None
