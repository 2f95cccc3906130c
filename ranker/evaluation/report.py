"""Rankings -> rows -> tables and files. The validation of a training run and evaluate.py use the same code.

A row is a way to rank: a baseline that needs no model, the untrained base, or a checkpoint. Every metric of a model
comes twice: repaired (an answer that could not be read was replaced by the ranker's seeded fallback) and strict (a
query with such an answer counts 0). Metrics are averaged over the queries of a task, then over tasks. Rows are compared
by the first metric.
"""

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ranker import metrics, trec_files
from ranker.evaluation import baselines, cost_quality, places, stats
from ranker.data import STATUSES, Query
from ranker.drive import Cost, Ranking
from ranker.files import write_text, writing
from ranker.templates import wording

BASE = "untrained base"  # the name of the row that gains are measured against
REMEDIES = {  # status -> the remedy where it is the most frequent status of answers that could not be read
    "truncated": "more rollout.max_new_tokens, or an instruct model (model.name)",
    "missing_answer": "an instruct model (model.name, model.chat_template), or "
                      "a cold start (a first stage with objective.name=sft)",
    "not_a_candidate": "an instruct model (model.name), or training",
    "repetition": "smaller pools, or training",
    "missing_ids": "smaller pools, or training",
}


def scenario_of(task: str) -> str:
    """Return the scenario of a task, such as recommendation, from its wording."""
    return wording(task)["scenario"]


@dataclass
class Row:
    """Hold the metrics per query of a way to rank, and its cost. `strict` is empty where no answers are parsed."""

    name: str
    tasks: dict[str, str]  # query id -> task
    repaired: dict[str, dict[str, float]]  # query id -> metric -> value, mean over the orders
    strict: dict[str, dict[str, float]] = field(default_factory=dict)
    rankings: list[Ranking] = field(default_factory=list)  # of all orders
    spread: float = 0.0  # standard deviation of the first metric's mean over the orders
    by_place: dict[str, tuple[float, int]] = field(default_factory=dict)  # see evaluation/places.py
    trained: frozenset[str] = frozenset()  # the tasks trained on; empty: all of them, or none
    prices: tuple[float, float] = (0.0, 0.0)  # dollars per million prompt, completion tokens; 0: unknown
    hourly: float = 0.0  # dollars an hour of the machine that ranks; 0: unknown

    def dollars_of(self, cost: Cost) -> float:
        """Return the dollars of a ranking, or of a role's part of it."""
        return (self.prices[0] * cost.prompt_tokens + self.prices[1] * cost.completion_tokens) / 1e6 + (
            self.hourly * cost.seconds / 3600)

    @property
    def dollars(self) -> float:
        """Return the dollars that all rankings of the row cost."""
        return sum(map(self.dollars_of, self.rankings))

    @property
    def statuses(self) -> Counter:
        """Return how often each status was that of an answer."""
        return sum((r.statuses for r in self.rankings), Counter())

    @property
    def notes(self) -> Counter:
        """Count what the ranker said of itself."""
        return sum((r.notes for r in self.rankings), Counter())

    def seconds(self, group: Callable[[str], bool] = lambda task: True) -> str:
        """Return the mean seconds of ranking a query of the tasks that `group` accepts, as text; empty: not ranked."""
        found = [r.seconds for r in self.rankings if group(r.query.task)]
        return f"{sum(found) / len(found):.3f}" if found else ""

    @property
    def names(self) -> list[str]:
        """Return the names of the row's metrics, the main metric first."""
        return list(next(iter(self.repaired.values())))

    def zero_shot(self, scenario: str | None) -> bool:
        """Tell whether the model was trained, but on no task of this scenario."""
        return bool(self.trained) and scenario is not None and scenario not in map(scenario_of, self.trained)

    def mean(self, metric: str, group: Callable[[str], bool] = lambda task: True, strict: bool = False) -> float:
        """Return the mean, over the tasks that `group` accepts, of the task's mean over its queries."""
        values = self.strict if strict else self.repaired
        by_task: dict[str, list[float]] = {}
        for query, task in self.tasks.items():
            if group(task):
                by_task.setdefault(task, []).append(values[query][metric])
        return sum(sum(v) / len(v) for v in by_task.values()) / len(by_task)

    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(map(scenario_of, self.tasks.values())))

    def by_scenario(self, metric: str, scenario: str, strict: bool = False) -> float:
        """Return the mean over the tasks of a scenario."""
        return self.mean(metric, lambda task: scenario_of(task) == scenario, strict)


def model_row(name: str, orders: Sequence[Sequence[Ranking]], level: float, trained: Sequence[str] = (),
              names: Sequence[str] = metrics.NAMES, judged: dict[str, Sequence[float]] | None = None) -> Row:
    """Return the row of a model from `orders`, which holds a list of rankings per candidate order.

    `level`: the least relevance that counts as relevant; `trained`: the tasks the model was trained on; `names`: the
    metrics; `judged`: query id -> all its grades, where documents are judged that are no candidates. Queries without
    labels are ranked and cost something, and have no metrics.
    """
    ranked = [r for rankings in orders for r in rankings]
    orders = [[r for r in rankings if judged or r.query.labelled] for rankings in orders]
    queries = [r.query for r in orders[0]]
    if not queries:
        return Row(name, {}, {}, {}, ranked, trained=frozenset(trained))
    known = [judged[q.id] for q in queries] if judged else None
    # [orders, metrics, Q]
    values = np.array([list(metrics.compute(names, [r.gains for r in rankings], known, level).values())
                       for rankings in orders])
    failed = np.array([[bool(r.failed) for r in rankings] for rankings in orders])  # [orders, Q]
    table = lambda matrix: {q.id: dict(zip(names, row))  # noqa: E731
                            for q, row in zip(queries, matrix.mean(0).T.tolist())}
    spread = values[:, 0].mean(1).std(ddof=1) if len(orders) > 1 else 0.0
    return Row(name, {q.id: q.task for q in queries}, table(values), table(np.where(failed[:, None], 0.0, values)),
               ranked, float(spread), places.by_place(ranked, names[0], level), frozenset(trained))


def unread(rows: Sequence[Row]) -> list[str]:
    """Return a warning for every row with mostly unreadable answers: their number, by status, and the remedy."""
    warnings = []
    for row in rows:
        statuses = row.statuses
        failed = Counter({status: count for status, count in statuses.items() if status != "ok"})
        if failed.total() > statuses.total() / 2:
            counts = ", ".join(f"{count} {status}" for status, count in failed.most_common())
            warnings.append(f"{row.name}: {failed.total()} of {statuses.total()} answers could not be read ({counts}). "
                            f"Remedy: {REMEDIES[failed.most_common(1)[0][0]]}")
    return warnings


def strange_texts(model: str, data: Sequence[str]) -> list[str]:
    """Return a warning where the built-in policy is to rank the texts of files: it only knows those of its world."""
    files = ", ".join(name for name in data if name not in ("", "world"))
    return [f"the built-in policy (model.name=tiny) only knows its built-in world and will not understand {files}; "
            "name a pretrained model with --model.name=FOLDER"] if model == "tiny" and files else []


def baseline_rows(orders: Sequence[Sequence[Query]], level: float, names: Sequence[str] = metrics.NAMES,
                  rankers: dict[str, Callable[[Query], list[str]]] = baselines.PLAIN,
                  judged: dict[str, Sequence[float]] | None = None) -> list[Row]:
    """Return the row of random order (its exact expectation), and a row for each of `rankers`.

    `orders` holds the queries once per candidate order, the same orders as the models rank. `level`, `names` and
    `judged` are those of `model_row`.
    """
    measured = [q for q in orders[0] if judged or q.labelled]
    chance = {q.id: metrics.random_order(q.relevance, level, names, judged and judged[q.id]) for q in measured}
    rows = [Row("random order", {q.id: q.task for q in measured}, chance)]
    for name, rank in rankers.items():
        row = model_row(name, [[timed(rank, q) for q in queries] for queries in orders], level, names=names,
                        judged=judged)
        row.strict = {}  # a baseline writes no answers that could fail to parse
        rows.append(row)
    return rows


def timed(rank: Callable[[Query], list[str]], query: Query) -> Ranking:
    """Return a baseline's ranking with the seconds that it took."""
    start = time.perf_counter()
    order = rank(query)
    return Ranking(query=query, order=order, seconds=time.perf_counter() - start)


def gain(base: Row, row: Row, scenario: str | None = None) -> dict[str, float]:
    """Return `row` minus `base` in the first metric, paired by query, over a scenario's queries (None: over all).

    The keys are those of `stats.compare`: mean, randomization p, 95% bootstrap interval, wins, ties, losses.
    """
    ids, metric = ([q for q, task in base.tasks.items() if scenario is None or scenario_of(task) == scenario],
                   base.names[0])
    differences = [row.repaired[q][metric] - base.repaired[q][metric] for q in ids]
    return stats.compare(differences)


def gains(base: Row, rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Return row name -> scenario (or `all`) -> gain; its `holm` is p corrected over the rows of that scenario."""
    scenarios = base.scenarios() if len(base.scenarios()) > 1 else []  # a single scenario would repeat `all`
    table = {row.name: {s or "all": gain(base, row, s) for s in [*scenarios, None]} for row in rows}
    for scenario in [*scenarios, "all"]:
        for row, p in zip(rows, stats.holm([table[row.name][scenario]["p"] for row in rows])):
            table[row.name][scenario]["holm"] = p
    return table


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return an aligned Markdown table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *lines]) for i in range(len(header))]
    pad = lambda row: "| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w)  # noqa: E731
                                        for i, (c, w) in enumerate(zip(row, widths))) + " |"
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([pad(header), rule, *map(pad, lines)])


def task_table(rows: Sequence[Row]) -> str:
    """Return a table of rows by tasks in the first metric; the strict values of a model stand below the repaired."""
    metric = rows[0].names[0]
    tasks = list(dict.fromkeys(rows[0].tasks.values()))
    lines = []
    for row in rows:
        for strict in (False, True) if row.strict else (False,):
            values = [row.mean(metric, lambda t, task=task: t == task, strict) for task in tasks]
            values.append(row.mean(metric, strict=strict))
            spread = f" ±{row.spread:.3f}" if row.spread and not strict else ""
            lines.append([row.name + (", strict" if strict else "")] + [f"{v:.3f}" for v in values[:-1]]
                         + [f"{values[-1]:.3f}{spread}", row.seconds()])
    return markdown([metric, *tasks, "mean", "seconds"], lines)


def metric_table(rows: Sequence[Row], by: str) -> str:
    """Return a table of every metric of every row, by `scenario` or by `task`."""
    key = scenario_of if by == "scenario" else (lambda task: task)
    lines = []
    for group in dict.fromkeys(key(task) for task in rows[0].tasks.values()):
        for row in rows:
            for strict in (False, True) if row.strict else (False,):
                lines.append([f"{group}: {row.name}" + (", strict" if strict else ""),
                              *(f"{row.mean(m, lambda task: key(task) == group, strict):.3f}" for m in row.names),
                              row.seconds(lambda task: key(task) == group)])
    return markdown([f"by {by}", *rows[0].names, "seconds"], lines)


def gain_table(base: Row, rows: Sequence[Row], found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return a table of each row's gain over `base` in the first metric (repaired), by scenario and over all queries.

    `found` is the answer of `gains`.
    """
    lines, several = [], len(rows) > 1
    for row in rows:
        for scenario, g in found[row.name].items():
            shown = scenario if scenario != "all" or len(base.scenarios()) > 1 else base.scenarios()[0]
            name = f"{row.name}: {shown}" + (" (zero-shot)" if shown != "all" and row.zero_shot(shown) else "")
            lines.append([name, str(g["queries"]), f"{g['gain']:+.3f}", f"{g['low']:+.3f} to {g['high']:+.3f}",
                          f"{g['p']:.4f}", *([f"{g['holm']:.4f}"] if several else []),
                          *(str(g[k]) for k in ("wins", "ties", "losses")),
                          row.seconds(lambda task, s=scenario: s == "all" or scenario_of(task) == s)])
    return markdown([f"{base.names[0]} against {base.name}", "queries", "gain", "95% interval", "p",
                     *(["Holm"] if several else []), "better", "same", "worse", "seconds"], lines)


def cost_table(rows: Sequence[Row]) -> str:
    """Return a table of each row's cost per query: calls, tokens, seconds and, where a price is known, dollars.

    Behind the cost stand the prompts that were cut, the share of queries with a failed ask, and the failed asks by
    status. Where several roles were asked, the cost of each stands below the row's.
    """
    failures = [status for status in STATUSES if status != "ok"]
    priced, lines = any(row.dollars for row in rows), []
    for row in rows:
        n, calls = len(row.rankings), sum(r.calls for r in row.rankings)
        statuses = row.statuses
        lines.append([row.name, *cost_of(row.rankings, n),
                      *([f"{row.dollars / n:.5f}" if row.dollars else ""] if priced else []),
                      f"{sum(r.cut for r in row.rankings) / n:.1f}",
                      f"{sum(r.failed > 0 for r in row.rankings) / n:.1%}",
                      *(f"{statuses[s] / max(calls, 1):.2%}" for s in failures)])
        roles = list(dict.fromkeys(role for r in row.rankings for role in r.roles))
        for role in roles if len(roles) > 1 else ():
            costs = [r.roles[role] for r in row.rankings if role in r.roles]
            lines.append([f"{row.name}: {role}", *cost_of(costs, n), *([""] if priced else []),
                          f"{sum(c.cut for c in costs) / n:.1f}", f"{sum(c.failed > 0 for c in costs) / n:.1%}",
                          *("" for _ in failures)])
    return markdown(["per query", "calls", "prompt tokens", "completion tokens", "seconds",
                     *(["dollars"] if priced else []), "prompts cut", "queries failed", *failures], lines)


def cost_of(costs: Sequence[Cost], queries: int) -> list[str]:
    """Return the mean calls, prompt tokens, completion tokens and seconds of a query."""
    return [f"{sum(getattr(c, name) for c in costs) / queries:{form}}" for name, form in
            (("calls", ".1f"), ("prompt_tokens", ".0f"), ("completion_tokens", ".0f"), ("seconds", ".2f"))]


def compared(rows: Sequence[Row], base: Row) -> list[Row]:
    """Return the rows whose gain over `base` is shown: models if `base` is a model, else every row with rankings."""
    return [row for row in rows if row is not base and row.rankings and (row.strict or not base.strict)]


def tables(rows: Sequence[Row], base: Row, found: dict, budget: float | None = None) -> str:
    """Return the whole report as Markdown: gains are measured against `base`, `found` is the answer of `gains`.

    Seconds are those of a query, in every table. `budget`: dollars per 1000 queries that routing may cost.
    """
    models, others = [row for row in rows if row.strict], compared(rows, base)
    parts = [task_table(rows), *([gain_table(base, others, found)] if others else []), metric_table(rows, "scenario")]
    queries = list({r.query.id: r.query for r in base.rankings}.values())
    if cost_quality.measured(queries):
        ranked = [row for row in rows if row.rankings]
        parts.append(markdown(*cost_quality.table_lines(ranked, queries)))
        parts += [markdown(*cost_quality.budget_lines(ranked, budget))] if budget is not None else []
    if base.rankings and len(base.rankings) > len(queries):  # several orders; with one, a place is a query's fate
        shown = {row.name: row.by_place for row in rows if row.by_place}
        parts += [markdown(*places.table_lines(shown, rows[0].names[0]))] if shown else []
    return "\n\n".join([*parts, *([cost_table(models)] if models else [])]) + "\n"


def write(folder: Path, rows: Sequence[Row], base: Row, head: str, provenance: dict, budget: float | None = None
          ) -> str:
    """Write the files of an evaluation, and return the text to show.

    The files are table.md, results.json, per_query.csv, for routing routing.png, and TREC files: qrels.txt, and
    run.NAME.txt for each row with rankings.
    """
    for stale in (path for name in ("run.*.txt", "routing.png") for path in folder.glob(name)):
        with writing(stale):
            stale.unlink()  # of an evaluation that stood here before
    found = gains(base, compared(rows, base))
    text = f"{head}\n\n{tables(rows, base, found, budget)}"
    write_text(folder / "table.md", f"{text}\n{metric_table(rows, 'task')}\n")
    write_text(folder / "results.json", json.dumps(provenance | {
        "head": head, "base": base.name, "metrics": base.names, "rows": {row.name: {
            "repaired": averages(row), "strict": averages(row, strict=True) if row.strict else None,
            "spread_over_orders": row.spread, "by_place": row.by_place,
            "prompts_cut": sum(r.cut for r in row.rankings), "cost": costs(row),
            "statuses": dict(row.statuses), "notes": dict(row.notes)} for row in rows}, "gains": found,
    }, indent=1) + "\n")
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(["name", "qid", "measure", "value"])
    for row in rows:
        for suffix, values in (("", row.repaired), (" strict", row.strict)):
            writer.writerows([row.name, q, m + suffix, f"{v:.6f}"] for q, by_metric in values.items()
                             for m, v in by_metric.items())
    write_text(folder / "per_query.csv", sheet.getvalue())
    queries = list({r.query.id: r.query for r in base.rankings}.values())
    if cost_quality.measured(queries):
        cost_quality.plot(folder / "routing.png", [row for row in rows if row.rankings], queries)
    write_trec(folder, rows)
    return text


def write_rankings(folder: Path, rows: Sequence[Row], head: str, provenance: dict, shown: int = 3) -> str:
    """Write the rankings of queries without labels, and return the text to show: the first queries, and the cost.

    The files are table.md, results.json, rankings.jsonl (a line per row and query) and a TREC run per row.
    """
    models = [row for row in rows if any(r.calls for r in row.rankings)]
    parts = [head]
    for row in models:
        for r in row.rankings[:shown]:
            lines = [f"{place:3}. {c}  {' '.join(r.query.texts[c].split())[:80]}"
                     for place, c in enumerate(r.order[:5], 1)]
            parts.append("\n".join([f"{row.name}, query {r.query.id}:", *lines]))
    text = "\n\n".join([*parts, *([cost_table(models)] if models else [])]) + "\n"
    write_text(folder / "table.md", text)
    write_text(folder / "results.json", json.dumps(provenance | {"head": head, "metrics": [], "rows": {
        row.name: {"statuses": dict(row.statuses), "notes": dict(row.notes)} for row in models}}, indent=1) + "\n")
    write_text(folder / "rankings.jsonl", "".join(json.dumps(
        {"row": row.name, "query": r.query.id, "ids": r.order, **({"scores": r.scores} if r.scores else {})},
        ensure_ascii=False) + "\n" for row in models for r in row.rankings))
    for row in models:
        write_run(folder, row)
    return text


def averages(row: Row, strict: bool = False) -> dict:
    """Return every metric's mean over all tasks, per scenario and per task."""
    over = lambda group: {m: row.mean(m, group, strict) for m in row.names}  # noqa: E731
    return {"mean": over(lambda task: True),
            "scenarios": {s: over(lambda task, s=s: scenario_of(task) == s) for s in row.scenarios()},
            "tasks": {t: over(lambda task, t=t: task == t) for t in dict.fromkeys(row.tasks.values())}}


def costs(row: Row) -> dict[str, dict[str, float]]:
    """Return scenario -> mean calls, prompt tokens, completion tokens and seconds of a query."""
    found = {}
    for scenario in row.scenarios():
        rankings = [r for r in row.rankings if scenario_of(r.query.task) == scenario]
        found[scenario] = {name: sum(getattr(r, name) for r in rankings) / max(len(rankings), 1)
                           for name in ("calls", "prompt_tokens", "completion_tokens", "seconds")}
    return found


def write_trec(folder: Path, rows: Sequence[Row]) -> None:
    """Write TREC runs with scores that never tie, of the first candidate order, and qrels with whole grades.

    Relevance that is no whole number becomes hundredths of the query's best relevance.
    """
    queries = {r.query.id: r.query for row in rows for r in row.rankings}
    relevance = [value for q in queries.values() for value in q.relevance]
    whole = all(value == int(value) for value in relevance) and max(relevance) <= 100
    grade = lambda value, best: int(value) if whole else round(100 * value / (best or 1))  # noqa: E731
    trec_files.write_qrels(folder / "qrels.txt", {q.id: {c: grade(q.rel[c], max(q.relevance)) for c in q.ids}
                                                  for q in queries.values()})
    for row in rows:
        write_run(folder, row)


def write_run(folder: Path, row: Row) -> None:
    """Write a row's rankings of the first candidate order as a TREC run."""
    first = {r.query.id: r.order for r in reversed(row.rankings)}  # reversed: the first candidate order stays
    if first:
        tag = row.name.replace(" ", "_").replace("/", "_")
        trec_files.write_run(folder / f"run.{tag}.txt", sorted(first.items()), tag)
