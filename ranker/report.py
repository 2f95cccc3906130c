"""Rankings -> rows -> tables and files. The training run's validation and evaluate.py use the same code.

A row is a way to rank: an order that needs no model, the untrained base, a checkpoint. Every metric comes twice for
a model: repaired (an answer that could not be read was replaced by the ranker's seeded fallback) and strict (a query
with such an answer counts 0). Metrics are averaged over all queries of a task, then over tasks.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ranker import baselines, metrics, stats
from ranker.data import STATUSES, Query
from ranker.drive import Ranking
from ranker.files import write_text
from ranker.prompting import wording

BASE = "untrained base"  # the row that gains are measured against


def scenario_of(task: str) -> str:
    return wording(task)["scenario"]


@dataclass
class Row:
    """Per-query metrics of one way to rank, and what it cost. `strict` is empty where nothing can fail to parse."""

    name: str
    tasks: dict[str, str]  # query id -> task
    repaired: dict[str, dict[str, float]]  # query id -> metric -> value, mean over the orders
    strict: dict[str, dict[str, float]] = field(default_factory=dict)
    rankings: list[Ranking] = field(default_factory=list)  # of all orders
    spread: float = 0.0  # standard deviation of mean MRR over the orders
    shortened: int = 0  # prompts whose texts had to be cut
    trained: frozenset[str] = frozenset()  # the tasks it was trained on; empty: all, or none

    def zero_shot(self, scenario: str | None) -> bool:
        """Whether it was trained, but on no task of this scenario."""
        return bool(self.trained) and scenario is not None and scenario not in map(scenario_of, self.trained)

    def mean(self, metric: str, group: Callable[[str], bool] = lambda task: True, strict: bool = False) -> float:
        """Mean over the tasks that `group` accepts of the task's mean over its queries."""
        values = self.strict if strict else self.repaired
        by_task: dict[str, list[float]] = {}
        for query, task in self.tasks.items():
            if group(task):
                by_task.setdefault(task, []).append(values[query][metric])
        return sum(sum(v) / len(v) for v in by_task.values()) / len(by_task)

    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(map(scenario_of, self.tasks.values())))

    def by_scenario(self, metric: str, scenario: str, strict: bool = False) -> float:
        return self.mean(metric, lambda task: scenario_of(task) == scenario, strict)


def model_row(name: str, orders: Sequence[Sequence[Ranking]], level: float, shortened: int = 0, trained: Sequence[str] = ()) -> Row:
    """The row of a model from one list of rankings per candidate order."""
    zero = dict.fromkeys(metrics.NAMES, 0.0)
    repaired: dict[str, list] = {}
    strict: dict[str, list] = {}
    for rankings in orders:
        for r in rankings:
            values = metrics.all_metrics(r.gains, level)
            repaired.setdefault(r.query.id, []).append(values)
            strict.setdefault(r.query.id, []).append(zero if r.failed else values)
    averages = [metrics.mean([metrics.all_metrics(r.gains, level) for r in rankings])["MRR"] for rankings in orders]
    centre = sum(averages) / len(averages)
    return Row(name, {r.query.id: r.query.task for r in orders[0]},
               {q: metrics.mean(v) for q, v in repaired.items()}, {q: metrics.mean(v) for q, v in strict.items()},
               [r for rankings in orders for r in rankings],
               (sum((a - centre) ** 2 for a in averages) / max(len(averages) - 1, 1)) ** 0.5, shortened, frozenset(trained))


def baseline_rows(orders: Sequence[Sequence[Query]], level: float) -> list[Row]:
    """Random order (its exact expectation), the order given, and BM25, over the same candidate orders as the models."""
    rows = [Row("random order", {q.id: q.task for q in orders[0]}, {q.id: metrics.random_order(q.relevance, level) for q in orders[0]})]
    for name, rank in (("input order", baselines.input_order), ("BM25", baselines.bm25)):
        row = model_row(name, [[Ranking(q, rank(q)) for q in queries] for queries in orders], level)
        row.strict = {}  # there is nothing to parse
        rows.append(row)
    return rows


def gain(base: Row, row: Row, metric: str = "MRR", scenario: str | None = None) -> dict[str, float]:
    """`row` minus `base`, paired by query: mean over queries, randomization p, 95% bootstrap interval, wins, losses."""
    ids = [q for q, task in base.tasks.items() if scenario is None or scenario_of(task) == scenario]
    differences = [row.repaired[q][metric] - base.repaired[q][metric] for q in ids]
    low, high = stats.bootstrap_interval(differences)
    return {"queries": len(ids), "gain": sum(differences) / len(ids), "p": stats.randomization_p(differences), "low": low,
            "high": high, "wins": sum(d > 1e-12 for d in differences), "losses": sum(d < -1e-12 for d in differences)}


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *lines]) for i in range(len(header))]
    pad = lambda row: "| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) + " |"  # noqa: E731
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([pad(header), rule, *map(pad, lines)])


def task_table(rows: Sequence[Row], metric: str = "MRR") -> str:
    """Ways to rank by tasks; a model's strict values stand below its repaired ones."""
    tasks = list(dict.fromkeys(rows[0].tasks.values()))
    lines = []
    for row in rows:
        for strict in (False, True) if row.strict else (False,):
            values = [row.mean(metric, lambda t, task=task: t == task, strict) for task in tasks]
            values.append(row.mean(metric, strict=strict))
            spread = f" ±{row.spread:.3f}" if row.spread and not strict else ""
            lines.append([row.name + (", strict" if strict else "")] + [f"{v:.3f}" for v in values[:-1]] + [f"{values[-1]:.3f}{spread}"])
    return markdown([metric, *tasks, "mean"], lines)


def metric_table(rows: Sequence[Row], by: str) -> str:
    """Every metric, by `scenario` or by `task`."""
    key = scenario_of if by == "scenario" else (lambda task: task)
    lines = []
    for group in dict.fromkeys(key(task) for task in rows[0].tasks.values()):
        for row in rows:
            for strict in (False, True) if row.strict else (False,):
                lines.append([f"{group}: {row.name}" + (", strict" if strict else ""),
                              *(f"{row.mean(m, lambda task: key(task) == group, strict):.3f}" for m in metrics.NAMES)])
    return markdown([f"by {by}", *metrics.NAMES], lines)


def gain_table(base: Row, rows: Sequence[Row]) -> str:
    """What each row gains over `base` in MRR (repaired), by scenario and over all queries."""
    lines = []
    for row in rows:
        for scenario in [*base.scenarios(), None]:
            g = gain(base, row, scenario=scenario)
            name = f"{row.name}: {scenario or 'all'}" + (" (zero-shot)" if row.zero_shot(scenario) else "")
            lines.append([name, str(g["queries"]), f"{g['gain']:+.3f}", f"{g['low']:+.3f} to {g['high']:+.3f}",
                          f"{g['p']:.4f}", str(g["wins"]), str(g["losses"])])
    return markdown([f"MRR against {base.name}", "queries", "gain", "95% interval", "p", "better", "worse"], lines)


def cost_table(rows: Sequence[Row]) -> str:
    """Calls, tokens and seconds per query, and how many asks failed to parse, by status."""
    failures = [status for status in STATUSES if status != "ok"]
    lines = []
    for row in rows:
        n = len(row.rankings)
        calls = sum(r.calls for r in row.rankings)
        statuses = sum((r.statuses for r in row.rankings), Counter())
        lines.append([row.name, f"{calls / n:.1f}", f"{sum(r.prompt_tokens for r in row.rankings) / n:.0f}",
                      f"{sum(r.completion_tokens for r in row.rankings) / n:.0f}", f"{sum(r.seconds for r in row.rankings) / n:.2f}",
                      f"{row.shortened / n:.1f}",
                      f"{sum(r.failed > 0 for r in row.rankings) / n:.1%}", *(f"{statuses[s] / max(calls, 1):.2%}" for s in failures)])
    return markdown(["per query", "calls", "prompt tokens", "completion tokens", "seconds", "prompts cut", "queries failed", *failures], lines)


def tables(rows: Sequence[Row], base: Row) -> str:
    """The whole report as Markdown. Models are the rows with strict values; `base` is the untrained one."""
    models = [row for row in rows if row.strict]
    others = [row for row in models if row is not base]
    parts = [task_table(rows)]
    if others:
        parts.append(gain_table(base, others))
    return "\n\n".join([*parts, metric_table(rows, "scenario"), cost_table(models)]) + "\n"


def write(folder: Path, rows: Sequence[Row], base: Row, head: str, provenance: dict) -> None:
    """table.md, results.json, per_query.csv, and TREC files: qrels.txt and run.NAME.txt for each row with an order."""
    others = [row for row in rows if row.strict and row is not base]
    write_text(folder / "table.md", f"{head}\n\n{tables(rows, base)}\n{metric_table(rows, 'task')}\n")
    write_text(folder / "results.json", json.dumps(provenance | {
        "rows": {row.name: {"repaired": averages(row), "strict": averages(row, strict=True) if row.strict else None,
                            "spread_over_orders": row.spread, "prompts_cut": row.shortened,
                            "statuses": dict(sum((r.statuses for r in row.rankings), Counter()))} for row in rows},
        "gains": {row.name: {s or "all": gain(base, row, scenario=s) for s in [*base.scenarios(), None]} for row in others},
    }, indent=1) + "\n")
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(["name", "qid", "measure", "value"])
    for row in rows:
        for suffix, values in (("", row.repaired), (" strict", row.strict)):
            writer.writerows([row.name, q, m + suffix, f"{v:.6f}"] for q, by_metric in values.items() for m, v in by_metric.items())
    write_text(folder / "per_query.csv", sheet.getvalue())
    trec_files(folder, rows)


def averages(row: Row, strict: bool = False) -> dict:
    """Every metric's mean over all tasks, per scenario and per task."""
    over = lambda group: {m: row.mean(m, group, strict) for m in metrics.NAMES}  # noqa: E731
    return {"mean": over(lambda task: True),
            "scenarios": {s: over(lambda task, s=s: scenario_of(task) == s) for s in row.scenarios()},
            "tasks": {t: over(lambda task, t=t: task == t) for t in dict.fromkeys(row.tasks.values())}}


def trec_files(folder: Path, rows: Sequence[Row]) -> None:
    """Runs with scores that never tie, and qrels with whole grades: real-valued relevance in hundredths of a query's best."""
    queries = {r.query.id: r.query for row in rows for r in row.rankings}
    relevance = [value for q in queries.values() for value in q.relevance]
    whole = all(value == int(value) for value in relevance) and max(relevance) <= 100
    grade = lambda value, best: int(value) if whole else round(100 * value / best)  # noqa: E731
    write_text(folder / "qrels.txt", "".join(f"{q.id} 0 {c} {grade(q.rel[c], max(q.relevance))}\n" for q in queries.values() for c in q.ids))
    for row in rows:
        first = {r.query.id: r for r in reversed(row.rankings)}  # the first order
        if first:
            tag = row.name.replace(" ", "_").replace("/", "_")
            write_text(folder / f"run.{tag}.txt", "".join(
                f"{q} Q0 {c} {i} {len(r.order) - i + 1} {tag}\n" for q, r in sorted(first.items()) for i, c in enumerate(r.order, 1)))
