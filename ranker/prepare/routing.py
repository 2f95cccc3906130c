"""LLM routing -> a query per question and objective: which model to send the question to.

Reads CSV, gzipped or not: RouterBench's wide table (sample_id, eval_name, prompt, a column of scores per model, and
`MODEL|total_cost` in USD) or a long table (task_id, query_id, llm, effect, cost_usd or cost; the question in `query` or
`prompt`, or in the prompts of a wide table: `--prompts`). `--models` describes the models: {name: {feature,
input_price, output_price}}, prices in USD per million tokens; names must be equal, since a similar name is another
model.

Decisions a reader could doubt:
- Relevance is the utility a * performance - b * cost, minus the utility of the worst model. Equal models share a grade,
  so the order of the table decides nothing. Where all models are equal there is nothing to learn: the query is dropped.
- The cost in the utility is min-max normalised per task over the questions that training sees with data.seed 0; costs
  outside that range are clipped. The table's own `split` is not read, since the trainer uses another, nor is a `cost`
  beside `cost_usd`, which was normalised over test questions too. Candidates keep the raw performance and cost.
- A prompt of worked examples with the question last (RouterBench's ARC and WinoGrande) becomes the question alone: the
  examples are the same in every prompt, would make all prompts near-duplicates, and push the question out of sight.
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
from ranker.prepare._groups import merged
from ranker.prompting import wording
from ranker.sources import split_of
from ranker.reading import columns, header, json_file, number, words

COST = "|total_cost"
EXAMPLE = re.compile(r"Answer:\n[^\n]+\n\n")  # the end of a worked example: its answer, then a blank line
Rows = Iterator[tuple[str, str, str, str, str, str, str]]  # where, task, sample, question, model, performance, cost
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


def prepare(args: argparse.Namespace, dropped: Counter) -> Iterator[Query]:
    """Yield a query per question and objective, the queries of a question in one group.

    Raise UserError for an objective without weights or wording, and for a broken table.
    """
    objectives = list(dict.fromkeys(args.objectives.split(",")))
    for name in objectives:
        wording(f"router-{name}")
        if name not in args.weights:
            raise UserError(f"--weights has none for the objective '{name}'{nearest(name, args.weights)}")
    questions = gathered(wide(args) if any(name.endswith(COST) for name in header(args.file, ",")) else long(args))
    samples, models = (ids(args.file, questions),
                       ids(args.file, dict.fromkeys(m for q in questions.values() for m in q.measured)))
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
                        tuple(relevance[m] for m in shown), samples[sample])


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


def gathered(rows: Rows) -> dict[str, Question]:
    """Return sample -> its question, from rows in any order. Raise UserError for rows that contradict each other."""
    questions: dict[str, Question] = {}
    for where, task, sample, text, model, performance, cost in tqdm(rows, desc="scores", unit="row"):
        question = questions.setdefault(sample, Question(task, text, {}))
        if (task, text) != question[:2]:
            raise UserError(f"{where}: '{sample}' had another task or question in an earlier row")
        if model in question.measured:
            raise UserError(f"{where}: '{sample}' had a score of '{model}' in an earlier row")
        question.measured[model] = (number(performance, where, f"the score of '{model}'"),
                                    number(cost, where, f"the cost of '{model}'"))
    return questions


def wide(args: argparse.Namespace) -> Rows:
    """Yield the rows of a wide table: a row per sample and model."""
    if args.prompts:
        raise UserError(f"--prompts is for a long table; {args.file} has its own")
    models = [name.removesuffix(COST) for name in header(args.file, ",") if name.endswith(COST)]
    names = ("sample_id", "eval_name", "prompt", *models, *(model + COST for model in models))
    for line, (sample, task, prompt, *values) in columns(args.file, ",", names):
        text = from_list(prompt, f"{args.file}:{line}")
        for model, performance, cost in zip(models, values, values[len(models):]):
            yield f"{args.file}:{line}", task, sample, text, model, performance, cost


def long(args: argparse.Namespace) -> Rows:
    """Yield the rows of a long table, with the questions of `--prompts` where the table has none."""
    found = header(args.file, ",")
    texts, own = {}, "query" if "query" in found else "prompt"
    if args.prompts:
        own = "query_id"
        for line, (sample, prompt) in columns(args.prompts, ",", ("sample_id", "prompt")):
            texts[sample] = from_list(prompt, f"{args.prompts}:{line}")
    elif own not in found:
        raise UserError(f"{args.file}:1: no column 'query' or 'prompt' (found: {', '.join(found)}); "
                        "name a table that has them: --prompts")
    names = ("task_id", "query_id", "llm", "effect", "cost_usd" if "cost_usd" in found else "cost", own)
    for line, (task, sample, model, performance, cost, text) in columns(args.file, ",", names):
        where = f"{args.file}:{line}"
        if args.prompts and sample not in texts:
            raise UserError(f"{where}: '{sample}' has no prompt in {args.prompts}")
        text = texts[sample] if args.prompts else last_question(words(text, where, f"'{own}'"))
        yield where, task, sample, text, model, performance, cost


def from_list(prompt: str, where: str) -> str:
    """Return the question of a prompt that is written as a Python list of one string; raise UserError for another."""
    try:
        value = ast.literal_eval(prompt)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list) or len(value) != 1:
        raise UserError(f"{where}: the prompt is no Python list of one string; it begins with {prompt[:40]!r}")
    return last_question(words(value[0], where, "the prompt"))


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


def ids(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name -> the name without spaces. Raise UserError for an empty name, or two names that become the same."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault("_".join(name.split()), name)
        if other != name or not name.strip():
            raise UserError(f"{path}: the names '{other}' and '{name}' would have one id" if name.strip()
                            else f"{path}: a name is empty")
    return {name: short for short, name in found.items()}
