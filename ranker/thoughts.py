"""Thoughts that help other models (IRanker-CoT, arXiv 2506.21638 section 5): traces of training as worked examples.

Training keeps the best-rewarded completion of every group, if its reward and its advantage are positive. An evaluation
shows these traces to a model without RL: before each ask come traces of the training queries whose contexts are most
alike by BM25, of the same task and the same decision. Encoder, number and wording are not published; BM25, one example
and earlier turns of the chat are ours. A query that is ranked never finds a trace of itself: a file with such a trace
is refused.
"""

import json
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from pathlib import Path

from ranker.evaluation.baselines import BM25, context_text
from ranker import credit, plugins
from ranker.data import Ask, Candidate, Group, Query
from ranker.drive import Models
from ranker.errors import UserError
from ranker.sources import Source

FIELDS = ("query", "task", "context", "candidates", "decision", "text")


def kept(step: int, groups: Sequence[Group]) -> list[dict]:
    """Return a record of the best-rewarded completion of every group where it teaches a good answer.

    Its task reward and its advantage must be positive, and it must have the exact form. Asks with worked examples or a
    hint are left out, since a record does not tell these.
    """
    records = []
    for group in groups:
        rank = lambda c: (not math.isnan(c.rewards["total"]), c.rewards["task"], c.rewards["total"])  # noqa: E731
        best, ask = max(credit.sampled([group]), key=rank), group.ask
        told = Ask(ask.query, ask.pool, ask.decision, out=ask.out, drop=ask.drop, told=ask.told)
        paid = best.rewards["task"] > 0 and best.advantage > 0
        if paid and best.answer.ok and ask == told and plugins.module("reward", "format").exact(best.text):
            records.append({"step": step, **record(ask, best.text), "reward": best.rewards["total"]})
    return records


def record(ask: Ask, text: str) -> dict:
    """Return the record of an ask and its completion, as a thoughts file has it.

    The query's best candidate is recorded behind the `shown` ones where it is better than these, since a grade is its
    relevance in shares of the best.
    """
    query, best = ask.query, max(ask.query.relevance)
    unseen = [c for c in query.positives[:1] if max(query.rel[c] for c in ask.pool) < best]
    return {"query": query.id, "task": query.task, "context": query.context,
            "candidates": [[c, query.texts[c]] for c in (*ask.pool, *unseen)],
            **({"shown": len(ask.pool)} if unseen else {}),
            **{key: value for key, value in ask.described().items() if key != "pool"},
            "relevance": [query.rel[c] for c in (*ask.pool, *unseen)], "text": text}


def read(path: Path) -> list[tuple[Ask, str]]:
    """Return the asks of a thoughts file with their completions. Raise UserError with file and line for a broken file.

    Where a record has no `relevance` all candidates count as right, so that every answer that can be read is rewarded.
    """
    examples = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would cut at U+2028 in a text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            query, task, context, candidates, decision, text = (found[name] for name in FIELDS)
            context = context if isinstance(context, str) else tuple(context)
            candidates = tuple(Candidate(c, t) for c, t in candidates)
            relevance = tuple(map(float, found.get("relevance", [1] * len(candidates))))
            drop, out, shown = found.get("drop", 1), found.get("out"), found.get("shown", len(candidates))
            asked = Query(query, task, context, candidates, relevance)
            ask = Ask.recorded(asked, asked.ids[:shown], found)
            texts = [query, task, decision, text, context if isinstance(context, str) else "".join(context),
                     *(c.id + c.text for c in candidates), *(name + value for name, value in ask.told)]
            "".join(texts).encode()  # raises an error for a number or half of a surrogate pair in the place of a text
            if not (len(relevance) == len(candidates) and min(relevance, default=0) >= 0
                    and decision in plugins.names("decision")
                    and type(shown) is int and 0 < shown <= len(candidates)
                    and {name for name, _ in ask.told} == {*getattr(plugins.module("decision", decision), "TOLD", ())}
                    and (out is None or isinstance(out, list) and set(out) < {c.id for c in candidates[:shown]})
                    and type(drop) is int and 0 < drop <= max(shown - len(out or ()), 1)):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{path}:{number}: no thought; a training run writes them to thoughts.jsonl in its "
                            "folder") from None
        examples.append((ask, text))
    if not examples:
        raise UserError(f"{path}: no thoughts in the file")
    return examples


def drawn(path: Path, decisions: set[str], seed: int, held_out: Set[str] = frozenset()) -> Source:
    """Return an endless source of traces of these decisions, to be imitated.

    Raise UserError where one has none, and for traces about queries that are `held_out` (ids).
    """
    examples = [example for example in read(path) if example[0].decision in decisions]
    refused = [ask.query.id for ask, _ in examples if ask.query.id in held_out]
    if refused:
        raise UserError(f"{path}: {len(refused)} of its {len(examples)} traces are about queries for validation or"
                        f" test, such as '{refused[0]}'; make traces of training queries alone")
    for decision in sorted(decisions - {ask.decision for ask, _ in examples}):
        raise UserError(f"{path}: it holds no trace of the decision '{decision}', which the ranker asks for")
    return Source(str(path), examples, f"{seed}/traces")


def finder(examples: Sequence[tuple[Ask, str]], queries: Sequence[Query], like: Ask, count: int,
           where: str) -> Callable[[Ask], Ask]:
    """Return a function that gives an ask about one of `queries` the `count` examples most like it, the likest last.

    Of equally like examples the latest in training wins; asks of another decision than that of the ask `like` get none.
    Raise UserError for a task without examples in its form (the same decision, at most as many candidates named,
    candidates that are out stated or not), and for examples about the queries themselves.
    """
    ranked = {q.id for q in queries}
    own = [ask.query.id for ask, _ in examples if ask.query.id in ranked]
    if own:
        raise UserError(f"{where}: it holds thoughts about queries that are to be ranked, such as '{own[0]}'")
    shelves: dict[str, dict[str, tuple[Ask, str]]] = {}  # task -> key -> example
    for number, (ask, text) in enumerate(examples):
        if ask.decision == like.decision and ask.drop <= like.drop and (ask.out is None) == (like.out is None):
            shelves.setdefault(ask.query.task, {})[str(number)] = (ask, text)
    missing = sorted({q.task for q in queries} - shelves.keys())
    if missing:
        raise UserError(f"{where}: it holds thoughts of the decision '{like.decision}' in the ranker's form about "
                        f"{', '.join(sorted(shelves)) or 'nothing'}, none about {', '.join(missing)}; "
                        "rank fewer tasks with --tasks, or take another file")
    index = {task: BM25({key: context_text(ask.query) for key, (ask, _) in shelf.items()})
             for task, shelf in shelves.items()}
    order: dict[str, list[str]] = {}  # query id -> keys, likest last

    def find(ask: Ask) -> Ask:
        if ask.decision != like.decision:
            return ask
        shelf = shelves[ask.query.task]
        if ask.query.id not in order:
            scores = index[ask.query.task].scores(context_text(ask.query))
            order[ask.query.id] = sorted(scores, key=lambda key: (scores[key], int(key)))[max(len(scores) - count, 0):]
        return replace(ask, examples=tuple(shelf[key] for key in order[ask.query.id]))

    return find


def with_thoughts(models: Models, find: Callable[[Ask], Ask]) -> Models:
    """Return the models, with the policy wrapped so that `find` adds worked examples to its asks."""
    policy = models["policy"]
    return models | {"policy": lambda asks: policy([find(ask) for ask in asks])}
