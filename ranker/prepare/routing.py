"""LLM routing -> a query per question and objective: which model to send the question to.

Reads CSV or TSV, gzipped or not: RouterBench's wide table (sample_id, eval_name, prompt, a column of scores per model,
and `MODEL|total_cost` in USD) or a long table (task_id, query_id, llm, effect, cost_usd or cost; the question in
`query` or `prompt`, or in the prompts of a wide table: `--prompts`). `--columns` says what other tables call these.
`--models` describes the models: {name: {feature, input_price, output_price}}, prices in USD per million tokens; names
must be equal, since a similar name is another model.

Decisions a reader could doubt:
- Relevance is the utility a * performance - b * cost, minus the utility of the worst model. Equal models share a grade,
  so the order of the table decides nothing. Where all models are equal there is nothing to learn: the query is dropped.
- The cost in the utility is min-max normalised per task over the questions that training sees with data.seed 0; costs
  outside that range are clipped. The table's own `split` is not read, since the trainer uses another, nor is a `cost`
  beside `cost_usd`, which was normalised over test questions too. Candidates keep the raw performance and cost.
- A prompt of worked examples with the question last (RouterBench's ARC and WinoGrande) becomes the question alone: the
  examples are the same in every prompt, would make all prompts near-duplicates, and push the question out of sight.
- A score or a cost that is missing or no number leaves the model out of that question; a column of numbers without a
  `|total_cost` beside it counts as a model without costs. Both are counted by model.
"""

import argparse
import ast
import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ranker.data import Candidate, Query
from ranker.errors import UserError, nearest
from ranker.prepare import _options
from ranker.prepare._groups import merged
from ranker.reading import columns, finite, json_file, number, place, rows, short_ids, usable, words
from ranker.sources import split_of
from ranker.templates import wording

COST = "|total_cost"
OTHER = ("sample_id", "eval_name", "prompt", "split", "oracle_model_to_route_to")  # columns that are no model
EXAMPLE = re.compile(r"Answer:\n[^\n]+\n\n")  # the end of a worked example: its answer, then a blank line
Rows = Iterator[tuple[str, str, str, str, str, str, str]]  # where, task, sample, question, model, performance, cost
Table = Iterator[tuple[int, list[str]]]  # line, fields
log = logging.getLogger(__name__)


class Question(NamedTuple):
    """Hold a question with the score and the cost of every model."""

    task: str
    text: str
    measured: dict[str, tuple[float, float]]  # model -> (performance, cost in USD)


def weights(text: str) -> dict[str, tuple[float, float]]:
    """Read `cost=0.2:0.8,...` as objective -> (weight of performance, of cost). Raise ValueError for other texts."""
    pairs = [part.split("=") for part in text.split(",")]
    found = {name: tuple(map(float, pair.split(":"))) for name, pair in pairs}
    if not all(len(pair) == 2 and all(0 <= weight < float("inf") for weight in pair) for pair in found.values()):
        raise ValueError("expected two weights, neither negative")
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the table of scores and costs, wide or long")
    parser.add_argument("--models", type=Path, metavar="JSON",
                        help="what the models are and cost (default: their names)")
    parser.add_argument("--objectives", default="performance,balance,cost")
    parser.add_argument("--weights", type=weights, default="performance=1:0,balance=0.5:0.5,cost=0.2:0.8",
                        help="of performance and of cost")
    parser.add_argument("--prompts", type=Path, metavar="CSV",
                        help="a table of sample_id and prompt, for a long table without questions")
    _options.add_columns(parser, "sample_id", "eval_name", "prompt", "task_id", "query_id", "llm", "effect", "cost_usd",
                         "cost", "query")


def prepare(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield a query per question and objective, the queries of a question in one group.

    Raise UserError for an objective without weights or wording, and for a broken table.
    """
    objectives = list(dict.fromkeys(args.objectives.split(",")))
    for name in objectives:
        wording(f"router-{name}")
        if name not in args.weights:
            raise UserError(f"--weights has none for the objective '{name}'{nearest(name, args.weights)}")
    table = rows(args.file)
    _, header = next(table, (1, []))
    read = wide if any(name.endswith(COST) for name in header) else long
    questions = gathered(read(args, header, table, dropped), dropped)
    samples, models = (short_ids(args.file, questions),
                       short_ids(args.file, dict.fromkeys(m for q in questions.values() for m in q.measured)))
    texts = described(args.models, models)
    ranges = cost_ranges(samples, questions)
    for sample, question in tqdm(questions.items(), desc="questions", unit="question"):
        for objective in objectives:
            if args.weights[objective][1] and question.task not in ranges:
                dropped[f"{objective}: no training question of the task to normalise costs by"] += 1
                continue
            relevance = above_worst(question, *args.weights[objective], *ranges.get(question.task, (0.0, 0.0)))
            if not any(relevance.values()):
                dropped[f"{objective}: all models are equal"] += 1
                continue
            shown = list(relevance)
            random.Random(f"{args.seed}/routing/{objective}/{sample}").shuffle(shown)
            yield Query(f"routing.{objective}.{samples[sample]}", f"router-{objective}", question.text,
                        tuple(Candidate(models[m], texts[m], *question.measured[m]) for m in shown),
                        tuple(relevance[m] for m in shown), samples[sample], (question.task,))


def above_worst(question: Question, a: float, b: float, low: float, high: float) -> dict[str, float]:
    """Return model -> its utility minus the utility of the worst model, for the weights `a` and `b`.

    Values are rounded, so that models that tie stay equal whatever float arithmetic does.
    """
    utility = {model: a * performance - b * min(max((cost - low) / ((high - low) or 1.0), 0.0), 1.0)
               for model, (performance, cost) in question.measured.items()}
    worst = min(utility.values())
    return {model: round(value - worst, 9) for model, value in utility.items()}


def cost_ranges(samples: dict[str, str], questions: dict[str, Question]) -> dict[str, tuple[float, float]]:
    """Return task -> lowest and highest cost of its training questions.

    The split is by the groups that near-duplicate questions will be joined to, as in the file that is written.
    """
    groups = merged([samples[sample] for sample in questions], [question.text for question in questions.values()])
    costs: dict[str, list[float]] = {}
    for group, question in zip(groups, questions.values()):
        if split_of(group, 0) == "train":
            costs.setdefault(question.task, []).extend(cost for _, cost in question.measured.values())
    return {task: (min(found), max(found)) for task, found in costs.items()}


def gathered(measurements: Rows, dropped: Counter) -> dict[str, Question]:
    """Return sample -> its question, from rows in any order. Raise UserError for rows that contradict each other."""
    questions: dict[str, Question] = {}
    for where, task, sample, text, model, performance, cost in tqdm(measurements, desc="scores", unit="row"):
        question = questions.setdefault(sample, Question(task, text, {}))
        if (task, text) != question[:2]:
            raise UserError(f"{where}: '{sample}' had another task or question in an earlier row")
        if model in question.measured:
            raise UserError(f"{where}: '{sample}' had a score of '{model}' in an earlier row")
        values = measure(performance), measure(cost)
        if None in values:
            dropped[f"questions for model '{model}', whose {'cost' if values[1] is None else 'score'} is missing or "
                    "no number"] += 1
        else:
            question.measured[model] = values
    few = [sample for sample, question in questions.items() if len(question.measured) < 2]
    if few:
        dropped["questions with fewer than two measured models"] += len(few)
    return {sample: question for sample, question in questions.items() if len(question.measured) > 1}


def measure(text: str) -> float | None:
    """Return a score or a cost as a number that a data file may hold, or None."""
    value = finite(text)
    return value if value is not None and abs(value) <= 1e9 else None


def wide(args: argparse.Namespace, header: list[str], table: Table, dropped: Counter) -> Rows:
    """Yield the rows of a wide table: a row per sample and model."""
    if args.prompts:
        raise UserError(f"--prompts is for a long table; {args.file} has its own")
    models = [name.removesuffix(COST) for name in header if name.endswith(COST)]
    places = [place(header, name, f"{args.file}:1", args.columns) for name in ("sample_id", "eval_name", "prompt")]
    pairs = [(m, header.index(m), header.index(m + COST)) for m in models if m in header]
    if not pairs:
        raise UserError(f"{args.file}:1: no column '{models[0]}' with the scores of that model "
                        f"(found: {', '.join(header)})")
    known = {header[i] for i in places} | {*models, *OTHER}
    unpriced = {name: i for i, name in enumerate(header) if name not in known and "|" not in name}  # if all are numbers
    lines = 0
    for lines, (line, row) in enumerate(table, 1):
        where = f"{args.file}:{line}"
        unpriced = {name: i for name, i in unpriced.items() if finite(row[i]) is not None}
        sample, task, prompt = (row[i] for i in places)
        text = from_list(prompt, where) if prompt.strip() else ""
        if not text:
            dropped["rows without a question"] += 1
            continue
        for model, score, cost in pairs:
            yield where, task, sample, text, model, row[score], row[cost]
    for name in unpriced if lines else ():
        dropped[f"questions for '{name}', a column of numbers without costs (no column '{name}{COST}')"] += lines
    for name in set(models) - {name for name, _, _ in pairs}:
        dropped[f"questions for model '{name}', which has no scores (no column '{name}')"] += lines


def long(args: argparse.Namespace, header: list[str], table: Table, dropped: Counter) -> Rows:
    """Yield the rows of a long table, with the questions of `--prompts` where the table has none."""
    texts = {}
    for line, (sample, prompt) in columns(args.prompts, ("sample_id", "prompt"), args.columns) if args.prompts else ():
        texts[sample] = from_list(prompt, f"{args.prompts}:{line}") if prompt.strip() else ""
    own = args.columns.get("query", "query" if "query" in header else args.columns.get("prompt", "prompt"))
    if not args.prompts and own not in header:
        raise UserError(f"{args.file}:1: no column 'query' or 'prompt' (found: {', '.join(header)}); name it "
                        "(--columns query=COLUMN), or a table that has it (--prompts FILE)")
    cost_name = "cost_usd" if args.columns.get("cost_usd", "cost_usd") in header else "cost"
    places = [place(header, name, f"{args.file}:1", args.columns)
              for name in ("task_id", "query_id", "llm", "effect", cost_name)]
    for line, row in table:
        task, sample, model, performance, cost = (row[i] for i in places)
        text = texts.get(sample, "") if args.prompts else row[header.index(own)]
        if usable(text):
            yield f"{args.file}:{line}", task, sample, last_question(text), model, performance, cost
        else:
            dropped[f"rows without a question{f' in {args.prompts}' if args.prompts else ''}"] += 1


def from_list(prompt: str, where: str) -> str:
    """Return the question of a prompt that is written as a Python list of one string; raise UserError for another."""
    try:
        value = ast.literal_eval(prompt)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list) or len(value) != 1:
        raise UserError(f"{where}: the prompt is no Python list of one string; it begins with {prompt[:40]!r}")
    return last_question(words(value[0], where, "the prompt")) if value[0] != "" else ""


def last_question(prompt: str) -> str:
    """Return the text behind the last worked example if the prompt ends with an answer left open, else all of it."""
    return EXAMPLE.split(prompt)[-1] if prompt.endswith("Answer:") else prompt


def described(path: Path | None, models: Iterable[str]) -> dict[str, str]:
    """Return model -> its text: the name, the description and the prices from `--models`, or else the name alone.

    Prices are those of the fields, whatever the description says. Raise UserError for a broken file.
    """
    entries = json_file(path) if path else {}
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise UserError(f"{path}:1: expected {{name: {{feature, input_price, output_price}}}}")
    texts = {model: f"Language model {model}" for model in models}
    unknown = [model for model in models if model not in entries]
    if path and unknown:
        log.warning("%s describes none of %s; their names stand alone", path, ", ".join(unknown))
    for name in texts.keys() & entries.keys():
        where = f"{path}: '{name}'"
        feature = " ".join(words(entries[name].get("feature"), where, "'feature'").split())
        prices = [number(entries[name].get(field), where, f"'{field}'") for field in ("input_price", "output_price")]
        texts[name] = f"{name}: {feature} USD per million tokens: {prices[0]:g} for input, {prices[1]:g} for output."
    return texts
