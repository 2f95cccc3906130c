"""The nouns (Query, Candidate, Ask, Answer, Completion, Group), and queries as JSON lines.

One line of a data file is one query:

    {"id": "q1", "task": "rank", "context": "warm and waterproof",
     "candidates": [{"id": "a", "text": "wool hat"}, {"id": "b", "text": "rain coat"}], "relevance": [0, 1]}

`context` is a string, or a list of strings for a history (oldest first). `relevance` runs parallel to `candidates`;
it may be graded or real-valued, and negative values are refused because nDCG has no meaning for them. Two things may be
added: `group` (queries of one group, such as those of one user, never stand in two splits), and for routing the
measured `performance` and `cost` of each candidate, from which evaluations draw the cost-quality curve.
"""

import json
import os.path
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ranker.errors import UserError, nearest
from ranker.files import open_whole

# `tokens` (or `words`) that each text was cut to, items of the `history` that are left; None: all is whole
Cut = dict[str, int] | None

FIELDS = ("id", "task", "context", "candidates", "relevance")
OPTIONAL = ("group",)
MEASURED = ("performance", "cost")  # of a candidate, optional


@dataclass(frozen=True)
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

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(candidate.id for candidate in self.candidates)

    @cached_property
    def texts(self) -> dict[str, str]:
        return {candidate.id: candidate.text for candidate in self.candidates}

    @cached_property
    def rel(self) -> dict[str, float]:
        return dict(zip(self.ids, self.relevance))

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


STATUSES = ("ok", "missing_answer", "not_a_candidate", "repetition", "missing_ids", "truncated")


@dataclass(frozen=True)
class Answer:
    """What a completion decided. `value` holds candidate ids (for `score`, one whole number), best first.

    Only an `ok` answer may be acted on; in a failed one `value` is what could be read, each candidate once.
    """

    status: str
    value: tuple = ()
    named: int = field(default=0, compare=False)  # identifiers or texts named, repeated and foreign ones included
    # of the decision's ALTERNATIVES, where somebody knows them
    scores: tuple[float, ...] = field(default=(), compare=False)
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
    next: "Completion | None" = field(default=None, compare=False, repr=False)  # what follows it in its episode
    rewards: dict[str, float] = field(default_factory=dict, compare=False, repr=False)  # by name; `task`, `total`: sums
    returns: dict[str, float] = field(default_factory=dict, compare=False, repr=False)  # `task`, `total`, to the end
    alive: bool = field(default=False, compare=False, repr=False)  # whether it is learned from
    advantage: float = field(default=0.0, compare=False, repr=False)  # mean over its tokens
    signals: dict = field(default_factory=dict, compare=False, repr=False)  # name -> tensor [its tokens]

    @property
    def tokens(self) -> int:
        return len(self.ids) or self.counted


@dataclass
class Group:
    """The completions of one ask."""

    ask: Ask
    prompt: list[int]
    completions: list[Completion]


def parse_query(record: object, where: str) -> Query:
    """A Query from one decoded JSON line. Raises UserError naming `where` for every defect."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(record).__name__}")
    for name in FIELDS:
        if name not in record:
            raise UserError(f"{where}: missing field '{name}'")
    for name in record:
        if name not in FIELDS + OPTIONAL:
            raise UserError(f"{where}: unknown field '{name}'{nearest(name, FIELDS + OPTIONAL)}")
    for name in ("id", "task", *(OPTIONAL if "group" in record else ())):
        if not isinstance(record[name], str) or not record[name].strip():
            raise UserError(f"{where}: '{name}' must be a non-empty string")
    if record["id"].split() != [record["id"]]:
        raise UserError(f"{where}: the query id {record['id']!r} holds spaces, which TREC files cannot")
    context = record["context"]
    if isinstance(context, list) and all(isinstance(item, str) for item in context):
        context = tuple(context)
    elif not isinstance(context, str):
        raise UserError(f"{where}: 'context' must be a string or a list of strings")
    candidates = _parse_candidates(record["candidates"], where)
    return Query(record["id"], record["task"], context, candidates,
                 _parse_relevance(record["relevance"], len(candidates), where), record.get("group", ""))


def _parse_candidates(raw: object, where: str) -> tuple[Candidate, ...]:
    if not isinstance(raw, list):
        raise UserError(f"{where}: 'candidates' must be a list")
    if len(raw) < 2:
        raise UserError(f"{where}: {len(raw)} candidate(s), ranking needs at least two")
    seen: set[str] = set()
    for i, item in enumerate(raw):
        if not (isinstance(item, dict) and isinstance(item.get("id"), str) and isinstance(item.get("text"), str)):
            raise UserError(f"{where}: candidate {i + 1} must be {{\"id\": string, \"text\": string}}")
        if not item["id"] or item["id"].split() != [item["id"]]:
            raise UserError(f"{where}: candidate {i + 1} has the id {item['id']!r}; ids are non-empty without spaces")
        if item["id"] in seen:
            raise UserError(f"{where}: candidate id '{item['id']}' stands twice")
        seen.add(item["id"])
        for name in item.keys() - {"id", "text"}:
            if name not in MEASURED:
                raise UserError(f"{where}: candidate {i + 1} has an unknown field '{name}'{nearest(name, MEASURED)}")
            if type(item[name]) not in (int, float) or not abs(item[name]) <= 1e9:  # NaN fails this too
                raise UserError(f"{where}: '{name}' of candidate {i + 1} must be a number, got {item[name]!r}")
    if (any(name in item for name in MEASURED for item in raw)
        and not all(name in item for name in MEASURED for item in raw)):
        raise UserError(f"{where}: where one candidate has performance and cost, all need both")
    return tuple(Candidate(item["id"], item["text"], item.get("performance"), item.get("cost")) for item in raw)


def _parse_relevance(raw: object, count: int, where: str) -> tuple[float, ...]:
    if not isinstance(raw, list) or not all(type(value) in (int, float) for value in raw):
        raise UserError(f"{where}: 'relevance' must be a list of numbers")
    if len(raw) != count:
        raise UserError(f"{where}: {len(raw)} relevance values for {count} candidates")
    if any(not 0 <= value <= 1e9 for value in raw):  # NaN fails this too
        raise UserError(f"{where}: relevance must be a number from 0 to 1e9")
    if max(raw) <= 0:
        raise UserError(f"{where}: no positive candidate (all relevance is 0)")
    return tuple(float(value) for value in raw)


def read_queries(path: str | Path) -> list[Query]:
    """All queries of a JSON lines file. Raises UserError with file and line for the first defect."""
    return list(iter_queries(path))


def iter_queries(path: str | Path) -> Iterator[Query]:
    """The queries of a JSON lines file one by one. Raises UserError with file and line for the first defect."""
    path = Path(os.path.expanduser(path))
    first_line: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from None
        if "\\u" in line and any(0xD800 <= ord(c) < 0xE000 for c in json.dumps(record, ensure_ascii=False)):
            raise UserError(f"{where}: half of a surrogate pair (\\ud800 to \\udfff) is no text")
        query = parse_query(record, where)
        if query.id in first_line:
            raise UserError(f"{where}: query id '{query.id}' stood in line {first_line[query.id]} already")
        first_line[query.id] = number
        yield query
    if not first_line:
        raise UserError(f"{path}: no queries in the file")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}:{number}: not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def write_queries(path: str | Path, queries: Iterable[Query]) -> None:
    """Write queries as JSON lines, one by one; the file gets its name only when all are written."""
    with open_whole(Path(path)) as file:
        for q in queries:
            line = json.dumps({
                "id": q.id, "task": q.task, **({"group": q.group} if q.group else {}),
                "context": q.context if isinstance(q.context, str) else list(q.context),
                "candidates": [{k: v for k, v in vars(c).items() if v is not None} for c in q.candidates],
                "relevance": list(q.relevance),
            }, ensure_ascii=False)
            try:
                file.write(line + "\n")
            except UnicodeEncodeError:
                raise UserError(f"query '{q.id}': a text holds half of a surrogate pair (\\ud800 to "
                                "\\udfff), which is no text") from None
