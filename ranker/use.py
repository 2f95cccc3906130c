"""Rank with a trained ranker from Python, in two lines:

    from ranker import load
    load("runs/iranker/best").rank("warm and waterproof", ["wool hat", "rain hat"])

`load` also takes a model's name or folder (`load("smollm2", ranker="likelihood")`) and a server
(`load("NAME", api="http://127.0.0.1:8000/v1")`); `rank` gives the same for every ranker.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
            return self._rank([query_of(query, documents, task, "0")], top_n)[0]
        if isinstance(query, str) or not isinstance(query, Sequence) or len(query) != len(documents):
            raise UserError(f"{len(documents)} lists of documents need as many queries")
        return self._rank([query_of(q, d, task, str(i)) for i, (q, d) in enumerate(zip(query, documents))], top_n)

    def _rank(self, queries: Sequence[Query], top_n: int | None) -> list[Ranked]:
        found = {q.id: Ranked(q.context) for q in queries}

        def keep(ask: Ask, number: int, completion: Completion) -> None:
            answer = completion.answer
            found[ask.query.id].steps.append(Step(number, ask.role, ask.decision, ask.left, answer.value, answer.status,
                                                  "" if ask.by_logits or scored_texts(ask) else completion.text))

        several = [q for q in queries if len(q.ids) > 1]
        largest = max(several, key=lambda q: len(q.ids), default=None)
        if self.prompter and largest and len(largest.ids) > self.checked:
            self.prompter.check(llms.rehearsal(self.ranker, largest))
            self.checked = len(largest.ids)
        rankings = drive.run(self.ranker, several, self.models, self.config.run.seed, keep)
        ranked = {r.query.id: r for r in rankings}
        for q in queries:
            r, places = ranked.get(q.id), {c: i for i, c in enumerate(q.ids)}
            order = r.order if r else list(q.ids)
            found[q.id].results = [Result(places[c], c, q.texts[c], place, r.scores.get(c) if r else None)
                                   for place, c in enumerate(order[:top_n], 1)]
            if r:
                found[q.id].failed, found[q.id].prompt_tokens = r.failed, r.prompt_tokens
                found[q.id].completion_tokens, found[q.id].seconds = r.completion_tokens, r.seconds
        return [found[q.id] for q in queries]


def query_of(query: str | Sequence[str], documents: Sequence[Document], task: str, name: str) -> Query:
    """Return a Query of what a caller gave. Raise UserError for what is none."""
    context = query if isinstance(query, str) else tuple(query) if isinstance(query, Sequence) else None
    if context is None or not all(isinstance(item, str) for item in context):
        raise UserError(f"a query must be a text or a list of texts, got {type(query).__name__}")
    candidates, seen = [], set()
    for i, document in enumerate(documents):
        text = document.get("text") if isinstance(document, Mapping) else document
        if not isinstance(text, str):
            raise UserError(f"document {i} must be a text or an object with a 'text', got {type(document).__name__}")
        identity = str(document.get("id", i)) if isinstance(document, Mapping) else str(i)
        if identity in seen:
            raise UserError(f"document {i}: the id '{identity}' stands twice")
        seen.add(identity)
        candidates.append(Candidate(identity, text))
    return Query(name, task, context, tuple(candidates), (0.0,) * len(candidates))


def load(name: str, ranker: str | Mapping | None = None, api: str = "",
         settings_: Mapping[str, object] | None = None) -> Reranker:
    """Return a reranker.

    `name` is a run folder, a checkpoint, a model (a folder, a GGUF file, `smollm2`, a name on a hub), or with `api`
    the name of a model behind an OpenAI-compatible server. `ranker` is a name of ranker/rankers/ or a section of a
    config; by default the checkpoint's own, else `sliding`. `settings_` are further ones, such as
    {"rollout.max_new_tokens": 512}. Raise UserError.
    """
    found = inputs.checkpoints([name], None) if not api and is_checkpoint(Path(name).expanduser()) else []
    overrides = [] if found else [f"llm.api={api}", f"llm.model={name}"] if api else [f"model.name={name}"]
    overrides += [f"{key}={value}" for key, value in (settings_ or {}).items()]
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
    for warning in inputs.warnings_of(found, prompter.chat.version if prompter else ""):
        logging.warning(warning)
    kept = tempfile.TemporaryDirectory(prefix="r1-ranker-")  # of a server's answers, as long as the ranker lives
    reranker = Reranker(config, load_roles(config, found[0].folder if found else None, Path(kept.name)), name, prompter)
    reranker.kept = kept
    return reranker


def is_checkpoint(path: Path) -> bool:
    """Tell whether a path names a run folder or a checkpoint rather than a model."""
    return any((path / part).exists() for part in ("checkpoint.json", "adapter_config.json", "checkpoints", "best"))
