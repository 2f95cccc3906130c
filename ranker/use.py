"""Rank with a trained ranker from Python, in two lines:

    from ranker import load
    load("runs/iranker/best").rank("warm and waterproof", ["wool hat", "rain hat"])

`load` also takes a model's name or folder (`load("smollm2", ranker="likelihood")`) and a server
(`load("NAME", api="http://127.0.0.1:8000/v1")`); `rank` gives the same for every ranker.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ranker import config as settings, drive, llms
from ranker.asking import load_roles
from ranker.data import Ask, Candidate, Completion, Query
from ranker.engine.policy import check_adapters, load_prompter
from ranker.errors import UserError
from ranker.evaluation import inputs
from ranker.prompting import Prompter, scored_texts

Document = str | Mapping  # a text, or {"text": ..., "id": ...}; other fields are left alone


@dataclass(frozen=True)
class Result:
    """A document and its place; `score` is the ranker's own, None where it gives none."""

    index: int  # in the documents that were given
    id: str
    text: str
    place: int  # from 1
    score: float | None = None


@dataclass(frozen=True)
class Step:
    """One ask about a query and what came of it: who stood in question, and whom the answer named, best first.

    Of an elimination the named ones left. `text` is the whole completion, its reasoning too; empty where logits or
    log-probabilities are the answer.
    """

    round: int  # from 0; asks of a round were made at once
    role: str
    decision: str
    pool: tuple[str, ...]  # ids in the order shown
    named: tuple  # ids, or a number where the decision asks for one
    status: str  # "ok", or why the answer could not be read
    text: str


@dataclass
class Ranked(Sequence):
    """The documents of a query in order, best first: a sequence of `Result`s, with the asks and their cost."""

    query: str | tuple[str, ...]
    results: list[Result] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    failed: int = 0  # asks whose answer could not be read
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def __getitem__(self, place):
        return self.results[place]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def __str__(self) -> str:
        lines = [f"{r.place:>3}  {'' if r.score is None else f'{r.score:.4g}':>9}  {r.text}" for r in self.results]
        return "\n".join(lines)


class Reranker:
    """A loaded ranker. It serves one call at a time; `ranker.serve` lets many wait for it."""

    def __init__(self, config: settings.Config, models: drive.Models, name: str, prompter: Prompter | None = None):
        self.config, self.models, self.name, self.prompter = config, models, name, prompter
        self.checked = 1  # candidates whose identifiers the prompter can write
        self.ranker = drive.load_ranker(config.ranker)

    def rank(self, query: str | Sequence, documents: Sequence, top_n: int | None = None,
             task: str = "rank") -> Ranked | list[Ranked]:
        """Return the documents of a query in order, or of many queries at once, which is faster.

        `query` is a text, or a history of texts, oldest first; `documents` are texts or objects with a `text` and, if
        you like, an `id`. For many queries give a list of queries and a list of lists. `top_n`: so many results are
        returned, after all were ranked. `task` is a wording of prompts/tasks.yaml. Raise UserError.
        """
        if isinstance(documents, str) or not isinstance(documents, Sequence):
            raise UserError(f"documents must be a list, got {type(documents).__name__}")
        if top_n is not None and (not isinstance(top_n, int) or top_n < 1):
            raise UserError(f"top_n must be a whole number from 1 on, got {top_n!r}")
        many = bool(documents) and all(isinstance(one, Sequence) and not isinstance(one, str) for one in documents)
        if not many:
            return self._rank([query_of(query, documents, task)], top_n)[0]
        if isinstance(query, str) or not isinstance(query, Sequence) or len(query) != len(documents):
            raise UserError(f"{len(documents)} lists of documents need as many queries")
        return self._rank([query_of(q, d, task) for q, d in zip(query, documents)], top_n)

    def _rank(self, queries: Sequence[Query], top_n: int | None) -> list[Ranked]:
        rounds = Rounds(self)
        found = [rounds.add(query) for query in queries]
        while rounds.running:
            rounds.round()
        for ranked in found:
            ranked.results = ranked.results[:top_n]
        return found


class Rounds:
    """Queries that are ranked together, round by round; others may join and leave between two rounds."""

    def __init__(self, reranker: Reranker):
        self.reranker, self.running = reranker, {}  # id -> (Ranked, Ranking)
        self.driver = drive.Driver(reranker.ranker, reranker.models, reranker.config.run.seed, self._keep)

    def add(self, query: Query) -> Ranked:
        """Begin with a query; its results are filled while rounds go on. Raise UserError for one that is too much."""
        ranked, reranker = Ranked(query.context), self.reranker
        if len(query.ids) < 2:
            ranked.results = [Result(0, c, query.texts[c], 1) for c in query.ids]
            return ranked
        if reranker.prompter and len(query.ids) > reranker.checked:
            reranker.prompter.check(llms.rehearsal(reranker.ranker, query))
            reranker.checked = len(query.ids)
        name, number = query.id, 1
        while query.id in self.running:  # an equal query
            number += 1
            query = replace(query, id=f"{name}-{number}")
        self.running[query.id] = ranked, self.driver.add(query)
        self._finish()
        return ranked

    def round(self) -> None:
        """Answer what is asked, and fill the results of queries that are done."""
        self.driver.round()
        self._finish()

    def leave(self, ranked: Ranked) -> None:
        """Let go of a query whose results nobody waits for."""
        gone = {name for name, (one, _) in self.running.items() if one is ranked}
        self.driver.running = [entry for entry in self.driver.running if entry[0].query.id not in gone]
        for name in gone:
            del self.running[name]

    def _keep(self, ask: Ask, number: int, completion: Completion) -> None:
        ranked, answer = self.running[ask.query.id][0], completion.answer
        ranked.steps.append(Step(number, ask.role, ask.decision, ask.left, answer.value, answer.status,
                                 "" if ask.by_logits or scored_texts(ask) else completion.text))

    def _finish(self) -> None:
        asked = {entry[0].query.id for entry in self.driver.running}
        for name in [name for name in self.running if name not in asked]:
            ranked, r = self.running.pop(name)
            places = {c: i for i, c in enumerate(r.query.ids)}
            ranked.results = [Result(places[c], c, r.query.texts[c], place, r.scores.get(c))
                              for place, c in enumerate(r.order, 1)]
            first = ranked.steps[0].round if ranked.steps else 0  # of a query that joined later
            ranked.steps = [replace(step, round=step.round - first) for step in ranked.steps]
            ranked.failed, ranked.prompt_tokens = r.failed, r.prompt_tokens
            ranked.completion_tokens, ranked.seconds = r.completion_tokens, r.seconds


def query_of(query: str | Sequence[str], documents: Sequence[Document], task: str) -> Query:
    """Return a Query of what a caller gave. Raise UserError for what is none.

    Its id is made of what it holds, so that what a ranker draws at random depends on that alone.
    """
    context = query if isinstance(query, str) else tuple(query) if isinstance(query, Sequence) else None
    if context is None or not all(isinstance(item, str) for item in context):
        raise UserError(f"a query must be a text or a list of texts, got {type(query).__name__}")
    candidates, seen = [], set()
    given = {str(d["id"]) for d in documents if isinstance(d, Mapping) and "id" in d}
    for i, document in enumerate(documents):
        text = document.get("text") if isinstance(document, Mapping) else document
        if not isinstance(text, str):
            raise UserError(f"document {i} must be a text or an object with a 'text', got {type(document).__name__}")
        own = str(i) if str(i) not in given else f"document {i}"
        identity = str(document["id"]) if isinstance(document, Mapping) and "id" in document else own
        if identity in seen:
            raise UserError(f"document {i}: the id '{identity}' stands twice")
        seen.add(identity)
        candidates.append(Candidate(identity, text))
    content = json.dumps([task, context, [(c.id, c.text) for c in candidates]])
    return Query(hashlib.sha256(content.encode()).hexdigest()[:16], task, context, tuple(candidates),
                 (0.0,) * len(candidates))


def load(name: str, ranker: str | Mapping | None = None, api: str = "",
         settings_: Mapping[str, object] | None = None) -> Reranker:
    """Return a reranker.

    `name` is a run folder, a checkpoint, a model (a folder, a GGUF file, `smollm2`, a name on a hub), or with `api`
    the name of a model behind an OpenAI-compatible server. `ranker` is a name of ranker/rankers/ or a section of a
    config; by default the checkpoint's own, else `sliding`. `settings_` are further ones, such as
    {"rollout.max_new_tokens": 512}. Raise UserError.
    """
    path = Path(name).expanduser()
    found = inputs.checkpoints([str(path)], None) if not api and is_checkpoint(path) else []
    named = {} if found else {"llm.api": api, "llm.model": name} if api else {"model.name": name}
    overrides = [f"{key}={json.dumps(value)}" for key, value in named.items()]
    overrides += [f"{key}={value if isinstance(value, str) else json.dumps(value)}"
                  for key, value in (settings_ or {}).items()]
    if found:
        config = inputs.agreed(found, True)
        for text in overrides:
            settings.override(config, text)
    else:
        config = inputs.defaults(overrides)
        config.ranker = {"name": "sliding"}
    if ranker is not None:
        config.ranker = {"name": ranker} if isinstance(ranker, str) else dict(ranker)
    settings.resolve(config, "load")
    settings.check(config, "load")
    prompter = None if api else load_prompter(config.model)
    check_adapters(config.model, [c.folder for c in found])
    for warning in inputs.warnings_of(found, prompter.chat.version if prompter else "", config):
        logging.warning(warning)
    kept = tempfile.TemporaryDirectory(prefix="r1-ranker-")  # of a server's answers, as long as the ranker lives
    reranker = Reranker(config, load_roles(config, found[0].folder if found else None, Path(kept.name)), name, prompter)
    reranker.kept = kept
    return reranker


def is_checkpoint(path: Path) -> bool:
    """Tell whether a path names a run folder or a checkpoint rather than a model."""
    return any((path / part).exists() for part in ("checkpoint.json", "adapter_config.json", "checkpoints", "best"))
