"""Rank held-out queries with a checkpoint, the untrained base and baselines; print and save the comparison.

    python evaluate.py --ckpt runs/iranker/best
    python evaluate.py --ckpt A --ckpt B --data test.jsonl      several checkpoints of one base on your own data
    python evaluate.py --config configs/iranker.yaml            the untrained base alone
    python evaluate.py --ckpt ADAPTER --config CONFIG           a PEFT adapter made elsewhere, ranked as the config says
    python evaluate.py --ckpt B --base runs/A/eval              the untrained base was ranked before, beside A
    python evaluate.py --ckpt A --prompts checkpoint            with the prompts that A was trained with
    python evaluate.py --ckpt A --thoughts A/thoughts.jsonl     also the base, shown traces of a training run
    python evaluate.py --data FILE.jsonl --baselines            what a model must beat, in seconds, without one
    python evaluate.py --run RUN --qrels QRELS                  the run of another tool
    python evaluate.py --run RUN --qrels QRELS --corpus FILE --replay RESPONSES.jsonl --window 20 --step 10
    python evaluate.py --run RUN --qrels QRELS --corpus FILE --config configs/rankgpt.yaml     ranked again by a model
    python evaluate.py --run RUN --corpus FILE --ckpt A         ranked again, without judgements

It reads: queries -> models -> rankings -> rows -> tables. Where --llm.api=URL --llm.model=NAME name a model of an
OpenAI-compatible server, it is ranked with in the base's place. All tasks of the test data are ranked by default, those
that a checkpoint was not trained on too. Settings of the checkpoint can be changed for the evaluation, such as
--model.name=/path/to/base or --rollout.tokens_per_batch=65536.
"""

import argparse
import logging
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ranker import answers, config as settings, llms, metrics, sources, templates, thoughts, trec_files
from ranker.asking import load_roles
from ranker.data import Query
from ranker.drive import Models, load_ranker, run as rank
from ranker.engine.policy import check_adapters, load_prompter, pick_device
from ranker.errors import Parser, UserError, exit_status
from ranker.evaluation import baselines, foreign, heads, inputs, report
from ranker.evaluation.ask_log import AskLog
from ranker.evaluation.report import Row
from ranker.files import sha256
from ranker.plugins import Plugin
from ranker.provenance import interpreter, provenance


def main() -> None:
    args, overrides = arguments()
    names = [metrics.canonical(name) for name in args.metrics.split(",")] if args.metrics else None
    (evaluate_run if args.run else evaluate_queries)(args, overrides, names)


def evaluate_queries(args: argparse.Namespace, overrides: list[str], names: list[str] | None) -> None:
    """Rank queries with baselines, the untrained base and checkpoints."""
    found = inputs.checkpoints(args.ckpt, args.config)
    config = inputs.read_config(found, args, overrides)
    if config.llm.api and args.ckpt:
        raise UserError("a server's model takes no checkpoint: name --ckpt or --llm.api, one evaluation for each")
    templates.use(args.prompts, [c.record for c in found if c.record])
    prompter = load_prompter(config.model) if (args.ckpt or args.config) and not config.llm.api else None
    chat = prompter.chat.version if prompter else ""
    files = args.data or [config.data.test or config.data.train]
    warnings = inputs.warnings_of(found, chat, config)
    warnings += report.strange_texts(config.model.name, files) if prompter else []
    for warning in warnings:
        logging.warning(warning)
    ranker = load_ranker(config.ranker, "command line")
    queries, train = inputs.test_queries(config, args, found)
    find = worked_examples(args.thoughts, ranker, queries, config.eval.thoughts) if args.thoughts else None
    orders = [queries] + [[q.shuffled(random.Random(f"{config.run.seed}/{o}/{q.id}")) for q in queries]
                          for o in range(1, args.orders)]

    table = Table(config, config.eval.relevance_level, names or list(metrics.NAMES))
    known = baselines.every(queries, train) if args.baselines else baselines.PLAIN
    rows = report.baseline_rows(orders, table.level, table.names, known)
    models = []  # name, adapter, how worked examples are found, tasks it was trained on
    if args.ckpt or args.config or config.llm.api:
        untrained = config.llm.model or report.BASE
        models = [(untrained, None, None, ())] + ([(f"{untrained} + thoughts", None, find, ())] if find else [])
        models += [(c.name, c.folder, None, c.tasks) for c in found]
        check_adapters(config.model, [c.folder for c in found])
    out = args.out or inputs.default_out(found, args, config, overrides)
    if prompter:
        prompter.check(llms.rehearsal(ranker, max(queries, key=lambda q: len(q.ids))))
    record = provenance(config, pick_device(config.model.device), files, chat)
    record |= {"checkpoints": args.ckpt, "queries": len(queries), "orders": args.orders}
    asked = AskLog(out, inputs.identity(record) | {
        "checkpoint": inputs.adapters(found, config), "orders": args.orders, "queries": len(queries),
        "thoughts": args.thoughts and sha256(args.thoughts)},
        lent=inputs.answers_of(report.BASE, args.base, record) if args.base else ())
    record["base answered in"] = args.base and str(args.base)
    rows += table.model_rows(models, ranker, orders, out, asked)
    head = heads.of_queries(args, config, orders, models, table.level, warnings + report.unread(rows))
    base = next(row for row in rows if row.name == (report.BASE if models and not config.llm.api else "input order"))
    base = base if any(q.labelled for q in queries) else None  # nothing can be measured
    finish(out, rows, base, head, record, asked, args.budget)


def evaluate_run(args: argparse.Namespace, overrides: list[str], names: list[str] | None) -> None:
    """Judge a run of another tool, and what recorded completions or models make of it.

    Without judgements it is ranked again, and nothing is measured.
    """
    found = inputs.checkpoints(args.ckpt, args.config)
    config = inputs.read_config(found, args, overrides)
    models = [(c.name, c.folder, None, ()) for c in found] or (
        [(config.llm.model or report.BASE, None, None, ())] if config.llm.model or args.config else [])
    ranked_by = [name for name, *_ in models]
    inputs.refuse_missing(args, ranked_by)
    templates.use(args.prompts, [c.record for c in found if c.record])
    ranker = load_ranker(config.ranker, args.config or "command line")
    qrels = trec_files.read_qrels(args.qrels) if args.qrels else None
    run = trec_files.read_run(args.run, args.ties, qrels)
    texts = foreign.read_corpus(args.corpus, args.topics) if args.corpus else None
    queries, judged, unjudged = foreign.queries(run, qrels or {query: {} for query in run}, texts, str(args.corpus))
    absent = sum(not q.ids for q in queries)
    if absent == len(queries):
        raise UserError(f"{args.run} and {args.qrels} have no query in common")
    plain = ["nDCG@10", "nDCG@1", "nDCG@5", "MRR@10", "AP", "Recall@100"]
    table = Table(config, config.eval.relevance_level or 1.0, names or plain, judged if qrels else None)
    rows = report.baseline_rows([queries], table.level, table.names, {args.run.name: baselines.input_order},
                                table.judged)
    files = [str(path) for path in (args.run, args.qrels, args.corpus, args.topics, args.replay) if path]
    out = args.out or inputs.run_out(args, ",".join(ranked_by), config, overrides, files)
    prompter = load_prompter(config.model) if models and not config.llm.api else None
    if prompter:
        prompter.check(llms.rehearsal(ranker, max(queries, key=lambda q: len(q.ids))))
        check_adapters(config.model, [c.folder for c in found])
    chat = prompter.chat.version if prompter else ""
    record = provenance(config, pick_device(config.model.device if models else "cpu"), files, chat)
    record |= {"queries": len(queries), "checkpoints": args.ckpt}
    warnings = inputs.warnings_of(found, chat, config)
    warnings += report.strange_texts(config.model.name, [str(args.corpus)]) if prompter else []
    # What a server answered stands in a file of its own, so everything else is asked again.
    asked = AskLog(out, inputs.identity(record) | {"ties": args.ties, "checkpoint": inputs.adapters(found, config)},
                   anew=True)
    ways = {"replay": answers.parse_recorded} if args.parse == "answer" else {}
    recording = llms.replay(args.replay) if args.replay else None
    for row, read in (ways | {"replay, digits": answers.digits}).items() if recording else ():
        # Costs nothing, and what the recording lacks or has too much shows before anything is written.
        rehearsed = recording.again(read)
        rank(ranker, queries, rehearsed)
        rehearsed.finish(unjudged)
        rows.append(table.model_row(row, ranker, [queries], recording.again(read), asked))
    rows += table.model_rows(models, ranker, [queries], out, asked)
    warnings += report.unread(rows[-len(models):] if models else [])
    head = heads.of_run(args, config, ranked_by, len(queries), absent, len(unjudged), table.level, warnings)
    finish(out, rows, rows[1] if qrels else None, head, record, asked)


@dataclass
class Table:
    """What all rows of one evaluation share."""

    config: settings.Config
    level: float  # relevance from which MRR, Hit, ... count; 0: a query's best grade
    names: list[str]  # metrics
    judged: dict[str, list[float]] | None = None

    def model_row(self, name: str, ranker: Plugin, orders: Sequence[Sequence[Query]], models: Models, asked: AskLog,
                  trained: Sequence[str] = (), progress: Callable[[int], None] = lambda asks: None) -> Row:
        """Return the row of who stands behind the driver; every ask goes to the log of asks, or comes from it."""
        seed = self.config.run.seed
        ranked = [rank(ranker, order, asked.models(name, number, models, progress), seed)
                  for number, order in enumerate(orders)]
        row = report.model_row(name, ranked, self.level, trained, self.names, self.judged)
        row.prices = self.config.llm.price_in, self.config.llm.price_out
        row.hourly = self.config.eval.machine_price * (not self.config.llm.api)
        return row

    def model_rows(self, models: Sequence[tuple], ranker: Plugin, orders: Sequence[Sequence[Query]], out: Path,
                   asked: AskLog) -> list[Row]:
        """Return rows of models (name, adapter, how examples are found, tasks trained on), one loaded at a time."""
        rows, total = [], len(models) * sum(ranker.calls(len(q.ids)) for order in orders for q in order)
        with tqdm(total=total, unit="ask", dynamic_ncols=True, disable=not models) as bar:
            for name, folder, examples, trained in models:
                bar.set_description(name)
                model = None  # let go of the one before, before the next is loaded
                model = load_roles(self.config, folder, out, bar.update)
                model = thoughts.with_thoughts(model, examples) if examples else model
                rows.append(self.model_row(name, ranker, orders, model, asked, trained, bar.update))
        return rows


def worked_examples(path: Path, ranker: Plugin, queries: Sequence[Query], count: int) -> Callable:
    """Return what finds worked examples for an ask in a file of thoughts."""
    examples, longest = thoughts.read(path), max(queries, key=lambda query: len(query.ids))
    asks, told = llms.rehearsal(ranker, longest), {ask.decision for ask, _ in examples}
    asks += ranker.sampled_asks(longest, random.Random(0), None)  # where nothing is left to ask
    like = next((ask for ask in asks if ask.decision in told), asks[0])
    return thoughts.finder(examples, queries, like, count, str(path))


def finish(out: Path, rows: list[Row], base: Row | None, head: str, record: dict, asked: AskLog,
           budget: float | None = None) -> None:
    """Write the evaluation and print its table; without a `base` to compare with, the rankings alone."""
    asked.begin()
    text = (report.write(out, rows, base, head, record, budget) if base
            else report.write_rankings(out, rows, head, record))
    asked.finish()
    files = "per_query.csv, TREC run and qrels files" if base else "rankings.jsonl, TREC runs"
    print(f"\n{text}\nwritten to {out}: table.md, results.json, traces.jsonl, {files}\n"
          f"see why: {interpreter()} -m ranker.show {out}")


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return the arguments and the settings among them. Raise UserError."""
    usage = "python evaluate.py (--ckpt PATH ... | --config CONFIG | --baselines | --run RUN) [options]"
    parser = Parser(prog="evaluate.py", description=__doc__, usage=usage)
    add = parser.add_argument
    add("--ckpt", action="append", default=[], help="a checkpoint folder or a run folder; may be repeated")
    add("--config", help="evaluate the untrained base of this config; beside --ckpt, rank with adapters made elsewhere")
    add("--data", nargs="+", default=[], help="JSON lines files instead of the config's test data")
    add("--baselines", action="store_true",
        help="all baselines, fitted on the training queries; alone: a file's own test split is ranked")
    add("--tasks", nargs="+", default=[], help="only these tasks")
    add("--ranker", help="another ranker than the config's")
    add("--prompts", help="a folder of prompts like prompts/, or `checkpoint`: those that it was trained with")
    add("--thoughts", type=Path, help="thoughts.jsonl of a training run: also the base, shown its traces")
    add("--base", type=Path, help="an earlier evaluation: its answers of the untrained base are taken, not asked again")
    add("--metrics", help="names joined by commas, such as ndcg_cut_10,mrr@10,hr@1; rows are compared by the first")
    add("--budget", type=float, help="dollars per 1000 queries that routing may cost: the threshold that keeps them")
    add("--split", choices=sources.SPLITS, default="test", help="of the config's data; train: to make traces from")
    add("--limit", type=int, help="at most this many queries per task")
    add("--orders", type=int, default=1, help="rank this many shuffles of each query's candidates")
    add("--out", type=Path, help="where to write (default: eval/ in the run folder)")
    for name, text in (("run", "a TREC run"), ("qrels", "its judgements"), ("topics", "query texts, id TAB text"),
                       ("corpus", "its texts: retrieve_results JSON, or JSON lines with --topics"),
                       ("replay", "recorded completions to rank the run again with")):
        add(f"--{name}", type=Path, help=text)
    add("--ties", choices=trec_files.TIES, help="how to order documents of equal score")
    add("--parse", choices=("answer", "digits"), default="answer", help="digits: the rule of older tools, nothing else")
    for name in ("window", "step", "depth"):
        add(f"--{name}", type=int, help=f"short for --ranker.{name}")
    args, overrides = parser.parse_known_args()
    if not (args.ckpt or args.config or args.run or args.baselines):
        raise UserError("name what to evaluate: checkpoints (--ckpt PATH), a config's base (--config CONFIG), a run"
                        " (--run RUN), or --baselines")
    for name, value in (("--limit", args.limit), ("--orders", args.orders)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if args.budget is not None and not args.budget > 0:
        raise UserError(f"--budget must be dollars above 0, got {args.budget}")
    if args.base and (args.run or not args.ckpt):
        raise UserError("--base goes with --ckpt: it saves ranking with the untrained base again")
    if args.ranker or args.run and not (args.config or args.ckpt):
        overrides.insert(0, f"--ranker.name={args.ranker or 'sliding'}")
    overrides += [f"--ranker.{name}={value}" for name in ("window", "step", "depth")
                  if (value := getattr(args, name)) is not None]
    return args, overrides


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    sys.exit(exit_status(main))
