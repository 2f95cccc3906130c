"""Rank held-out queries with a checkpoint, the untrained base and baselines; print and save the comparison.

    python evaluate.py --ckpt runs/iranker/best
    python evaluate.py --ckpt A --ckpt B --data test.jsonl      several checkpoints of one base on your own data
    python evaluate.py --config configs/iranker.yaml            the untrained base alone
    python evaluate.py --ckpt A --thoughts A/thoughts.jsonl     also the base, shown traces of a training run
    python evaluate.py --data FILE.jsonl --baselines            what a model must beat, in seconds, without one
    python evaluate.py --run RUN --qrels QRELS                  the run of another tool
    python evaluate.py --run RUN --qrels QRELS --corpus FILE --replay RESPONSES.jsonl --window 20 --step 10
    python evaluate.py --run RUN --qrels QRELS --corpus FILE --config configs/rankgpt.yaml     ranked again by a model

Where --llm.api=URL --llm.model=NAME name a model of an OpenAI-compatible server, it is ranked with in the base's place.
All tasks of the test data are ranked by default, those that a checkpoint was not trained on too. Settings of the
checkpoint can be changed for the evaluation, such as --model.name=/path/to/base or --rollout.tokens_per_batch=65536.
"""

import logging
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from ranker import answers, api, baselines, checkpoint, config as settings, foreign, llms, metrics, report, sources, thoughts, trec
from ranker.data import Query
from ranker.drive import Model, load_ranker, run as rank
from ranker.errors import Parser, UserError, exit_status, one_line
from ranker.files import sha256
from ranker.prompting import Chat, changed_prompts
from ranker.policy import check_adapters, load as load_policy, load_prompter, pick_device
from ranker.provenance import provenance
from ranker.report import Row
from ranker.rollout import Sampler, greedy_model
from ranker.traces import Traces

MUST_AGREE = {"model.name", "model.chat_template", "model.quantize", "model.dtype", "model.max_prompt",
              "rollout.max_new_tokens", "eval.relevance_level"}


def main() -> None:
    parser = Parser(prog="evaluate.py", description=__doc__, usage="python evaluate.py (--ckpt PATH ... | --config CONFIG | --baselines | --run RUN) [options]")
    parser.add_argument("--ckpt", action="append", default=[], help="a checkpoint folder or a run folder; may be repeated")
    parser.add_argument("--config", help="evaluate the untrained base of this config instead")
    parser.add_argument("--data", nargs="+", default=[], help="JSON lines files instead of the config's test data")
    parser.add_argument("--baselines", action="store_true", help="all baselines, fitted on the training queries; alone: a file's own test split is ranked")
    parser.add_argument("--tasks", nargs="+", default=[], help="only these tasks")
    parser.add_argument("--ranker", help="another ranker than the config's")
    parser.add_argument("--thoughts", type=Path, help="thoughts.jsonl of a training run: rank also with the base that is shown its traces")
    parser.add_argument("--metrics", help="names joined by commas, such as ndcg_cut_10,mrr@10,hr@1; rows are compared by the first")
    parser.add_argument("--limit", type=int, help="at most this many queries per task")
    parser.add_argument("--orders", type=int, default=1, help="rank this many shuffles of each query's candidates")
    parser.add_argument("--out", type=Path, help="where to write (default: eval/ in the run folder)")
    for name, text in (("run", "a TREC run"), ("qrels", "its judgements"), ("corpus", "its texts: retrieve_results JSON, or JSON lines with --topics"),
                       ("topics", "query texts, id TAB text"), ("replay", "recorded completions to rank the run again with")):
        parser.add_argument(f"--{name}", type=Path, help=text)
    parser.add_argument("--ties", choices=trec.TIES, help="how to order documents of equal score")
    parser.add_argument("--parse", choices=("answer", "digits"), default="answer", help="digits: the rule of older tools, and nothing else")
    for name in ("window", "step", "depth"):
        parser.add_argument(f"--{name}", type=int, help=f"short for --ranker.{name}")
    args, overrides = parser.parse_known_args()
    if args.ckpt and (args.config or args.run) or not (args.ckpt or args.config or args.run or args.baselines):
        raise UserError("name what to evaluate: checkpoints (--ckpt PATH), a config's base (--config CONFIG), a run (--run RUN), or --baselines")
    for name, value in (("--limit", args.limit), ("--orders", args.orders)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if args.ranker or args.run and not args.config:
        overrides.insert(0, f"--ranker.name={args.ranker or 'sliding'}")
    overrides += [f"--ranker.{name}={value}" for name, value in (("window", args.window), ("step", args.step), ("depth", args.depth)) if value is not None]
    names = [metrics.canonical(name) for name in args.metrics.split(",")] if args.metrics else None
    (evaluate_run if args.run else evaluate_queries)(args, overrides, names)


def evaluate_queries(args, overrides: list[str], names: list[str] | None) -> None:
    """Baselines, the untrained base and checkpoints on queries."""
    folders = [checkpoint.find(path) for path in args.ckpt]
    records = [checkpoint.describe(folder) for folder in folders]
    config = read_config(folders, records, args, overrides)
    config.data.tasks = [t for text in args.tasks for t in text.split(",") if t] or config.data.tasks
    settings.check(config, "command line")
    if config.llm.api and args.ckpt:
        raise UserError("a server's model takes no checkpoint: name one of --ckpt and --llm.api, or evaluate them one after the other")
    prompter = load_prompter(config.model) if (args.ckpt or args.config) and not config.llm.api else None
    chat = prompter.chat.version if prompter else ""
    changed = {folder: changed_prompts(record["prompts"], chat) for folder, record in zip(folders, records)}
    warnings = [f"{folder} was trained with other prompts: {', '.join(prompts)} changed since" for folder, prompts in changed.items() if prompts]
    warnings += [one_line(f"{folder}, in training: {note}")
                 for folder, record in zip(folders, records) for note in record["notes"]]
    files = args.data or [config.data.test or config.data.train]
    if prompter:
        warnings += report.strange_texts(config.model.name, files)
    for warning in warnings:
        logging.warning(warning)
    ranker = load_ranker(config.ranker, "command line")
    queries, train = test_queries(config, args, records)
    find = None
    if args.thoughts:
        like = ranker.sampled_ask(queries[0], random.Random(0), len(queries[0].ids))
        find = thoughts.finder(thoughts.read(args.thoughts), queries, like, config.eval.thoughts, str(args.thoughts))
    orders = [queries] + [[q.shuffled(random.Random(f"{config.run.seed}/{o}/{q.id}")) for q in queries] for o in range(1, args.orders)]
    table = Table(config, config.eval.relevance_level, names or list(metrics.NAMES))
    rows = report.baseline_rows(orders, table.level, table.names, baselines.every(queries, train) if args.baselines else baselines.PLAIN)
    models = []  # name, adapter, how worked examples are found, tasks it was trained on
    if args.ckpt or args.config or config.llm.api:
        untrained = config.llm.model or report.BASE
        models = [(untrained, None, None, ())]
        models += [(f"{untrained} + thoughts", None, find, ())] if find else []
        models += [(name, folder, None, r["config"]["data"]["tasks"]) for name, folder, r in zip(args.ckpt, folders, records)]
        check_adapters(config.model, folders)
    out = args.out or default_out(folders, args.config, args.data or ([] if args.ckpt or args.config else [config.data.train]))
    if prompter:
        prompter.check(llms.rehearsal(ranker, max(queries, key=lambda q: len(q.ids))))
    total = len(models) * args.orders * sum(ranker.calls(len(q.ids)) for q in queries)
    record = provenance(config, pick_device(config.model.device), files, chat)
    record |= {"checkpoints": args.ckpt, "queries": len(queries), "orders": args.orders}
    traces = Traces(out, evaluation_of(record) | {
        "checkpoint": {name: sha256(folder / "adapter_model.safetensors") for name, folder in zip(args.ckpt, folders)}, "orders": args.orders,
        "thoughts": args.thoughts and sha256(args.thoughts), "queries": len(queries)})
    with tqdm(total=total, unit="ask", dynamic_ncols=True, disable=not models) as bar:
        for name, folder, examples, trained in models:
            bar.set_description(name)
            model = None  # let go of the one before, before the next is loaded
            model = load_model(config, folder, out, bar.update)
            model = thoughts.with_thoughts(model, examples) if examples else model
            rows.append(table.model_row(name, ranker, orders, model, traces, trained, bar.update))
            rows[-1].prices = config.llm.price_in, config.llm.price_out

    source = ", ".join(args.data) or config.data.test or f"{config.data.train}, the test split"
    decoding = f"temperature {config.llm.temperature:g}" if config.llm.api and config.llm.temperature else "greedy decoding"
    how = f"{config.ranker['name']}, {decoding}, " if models else ""
    head = (f"{len(queries)} queries of {source}; {how}{args.orders} candidate order(s), seed {config.run.seed}.\n{relevance_words(table.level)}"
            f"; nDCG has linear gain, its ideal over the query's candidates.\nOn average a positive stands at place {input_place(orders):.1f} of the order given."
            + (" Strict: a query with an answer that could not be read counts 0." if models else "")
            + warned(warnings + report.unread(rows)))
    base = next(row for row in rows if row.name == (report.BASE if models and not config.llm.api else "input order"))
    finish(out, rows, base, head, record, traces)


def evaluate_run(args, overrides: list[str], names: list[str] | None) -> None:
    """A run of another tool, and what recorded completions or a model make of it."""
    config = settings.load(args.config, overrides) if args.config else defaults(overrides)
    settings.check(config, args.config or "command line")
    name = config.llm.model or (report.BASE if args.config else "")  # of the model
    if not args.qrels or (args.replay or name) and not args.corpus:
        raise UserError("--run needs --qrels FILE" if not args.qrels else "--replay needs --corpus FILE: an answer may name a passage by its text"
                        if args.replay else f"--corpus FILE is needed: {name} ranks by the texts of queries and documents")
    ranker = load_ranker(config.ranker, args.config or "command line")
    qrels = trec.read_qrels(args.qrels)
    run = trec.read_run(args.run, args.ties, qrels)
    texts = foreign.read_corpus(args.corpus, args.topics) if args.corpus else None
    queries, judged, unjudged = foreign.queries(run, qrels, texts, str(args.corpus))
    absent = sum(not q.ids for q in queries)
    if absent == len(queries):
        raise UserError(f"{args.run} and {args.qrels} have no query in common")
    table = Table(config, config.eval.relevance_level or 1.0, names or ["nDCG@10", "nDCG@1", "nDCG@5", "MRR@10", "AP", "Recall@100"], judged)
    rows = report.baseline_rows([queries], table.level, table.names, {args.run.name: baselines.input_order}, judged)
    out = args.out or Path("runs") / f"eval-{args.run.stem}" / (args.replay.stem if args.replay else name.replace("/", "_") or "run")
    files = [str(path) for path in (args.run, args.qrels, args.corpus, args.topics, args.replay) if path]
    prompter = load_prompter(config.model) if args.config and not config.llm.api else None
    if prompter:
        prompter.check(llms.rehearsal(ranker, max(queries, key=lambda q: len(q.ids))))
    record = provenance(config, pick_device(config.model.device if name else "cpu"), files,
                        prompter.chat.version if prompter else "") | {"queries": len(queries)}
    warnings = report.strange_texts(config.model.name, [str(args.corpus)]) if prompter else []
    traces = Traces(out, evaluation_of(record) | {"ties": args.ties}, anew=True)  # what a server answered stands in a file of its own
    for row, read in ((("replay", answers.parse_recorded),) if args.parse == "answer" else ()) + (("replay, digits", answers.digits),):
        if args.replay:
            rank(ranker, queries, llms.replay(args.replay, read))  # costs nothing, and what the recording lacks shows before anything is written
            rows.append(table.model_row(row, ranker, [queries], llms.replay(args.replay, read), traces))
    if name:
        with tqdm(total=sum(ranker.calls(len(q.ids)) for q in queries), unit="ask", dynamic_ncols=True, desc=name) as bar:
            model = load_model(config, None, out, bar.update)
            rows.append(table.model_row(name, ranker, [queries], model, traces, (), bar.update))
            rows[-1].prices = config.llm.price_in, config.llm.price_out
    by = " and ".join(filter(None, (args.replay and f"{args.replay} replayed", name and f"ranked by {name}")))
    how = f"{by} with {' '.join(f'{k}={v}' for k, v in config.ranker.items())}" if by else "the run as it is"
    head = (f"{len(queries)} judged queries of {args.qrels}, {how}; {absent} of them are not in the run and count 0,"
            f" {len(unjudged)} of the run's have no judgements and are left out.\n{relevance_words(table.level)}; nDCG has linear gain,"
            " its ideal over all judged documents."
            + ("\nStrict: a query with an answer that could not be read counts 0." if by else "")
            + warned(warnings + report.unread(rows[-1:] if name else [])))
    finish(out, rows, rows[1], head, record, traces)


@dataclass
class Table:
    """What all rows of one evaluation share."""

    config: settings.Config
    level: float  # relevance from which MRR, Hit, ... count; 0: a query's best grade
    names: list[str]  # metrics
    judged: dict[str, list[float]] | None = None

    def model_row(self, name: str, ranker, orders: Sequence[Sequence[Query]], model: Model, traces: Traces, trained=(),
                  progress: Callable[[int], None] = lambda asks: None) -> Row:
        """The row of what stands behind the driver; every ask goes to the traces, or comes from them."""
        ranked = [rank(ranker, order, traces.model(name, number, model, progress), self.config.run.seed) for number, order in enumerate(orders)]
        return report.model_row(name, ranked, self.level, trained, self.names, self.judged)


def load_model(config: settings.Config, folder: Path | None, out: Path, progress: Callable[[int], None]) -> Model:
    """Return what stands behind the driver: the server's model, or the policy with an adapter."""
    if config.llm.api:
        path = Path(config.llm.cache).expanduser() if config.llm.cache else out / "answers.jsonl"
        return api.server_model(config.llm, Chat(config.llm.words, config.llm.multi_turn), config.rollout.max_new_tokens, path, progress)
    policy = load_policy(config.model, adapter=folder, max_new_tokens=config.rollout.max_new_tokens)
    return greedy_model(Sampler(policy, config.rollout), progress)


def evaluation_of(record: dict) -> dict:
    """What must be the same when a killed evaluation goes on."""
    llm = {key: value for key, value in record["config"]["llm"].items() if key not in api.CHANGES_NO_ANSWER}
    return {"data": record["data"], "prompts": record["prompts"], "settings": record["config"] | {"llm": llm}}


def finish(out: Path, rows: list[Row], base: Row, head: str, record: dict, traces: Traces) -> None:
    traces.begin()
    text = report.write(out, rows, base, head, record)
    traces.finish()
    print(f"\n{text}\nwritten to {out}: table.md, results.json, per_query.csv, traces.jsonl, TREC run and qrels files")


def warned(warnings: Sequence[str]) -> str:
    """Return the lines of a report's head that say what speaks against its numbers."""
    return "".join(f"\nWARNING {warning}." for warning in warnings)


def relevance_words(level: float) -> str:
    return f"MRR, AP, Hit, Recall and P count {f'relevance from {level:g} on' if level else 'the best grade of a query'} as relevant"


def input_place(orders: Sequence[Sequence[Query]]) -> float:
    """Mean place of the positives, from 1: half of the pool's size where nothing leaks through the order."""
    places = [q.ids.index(c) + 1 for order in orders for q in order for c in q.positives]
    return sum(places) / len(places)


def defaults(overrides: list[str]) -> settings.Config:
    """The settings where no file and no checkpoint says any."""
    config = settings.Config(run=settings.Run(dir="runs"))
    for text in overrides:
        settings.override(config, text)
    return config


def read_config(folders: list[Path], records: list[dict], args, overrides: list[str]) -> settings.Config:
    """The config of a file, or of the checkpoints, which must agree on all that an evaluation depends on."""
    if args.config:
        return settings.load(args.config, overrides)
    if not folders:
        config = defaults(overrides)
        if args.data and config.data.train == "world":  # a file alone is split as training would split it
            if len(args.data) > 1:
                raise UserError("several files are ranked by what another one teaches: name it with --data.train=FILE")
            config.data.train, args.data = args.data[0], []
        return config
    for folder, record in zip(folders, records):
        differing = [key for key in settings.differences(records[0]["config"], record["config"])
                     if key in MUST_AGREE or key.startswith("ranker.") or key.startswith("data.") and key != "data.tasks" and not args.data]
        if differing:
            raise UserError(f"{folder} and {folders[0]} differ in {', '.join(differing)}; evaluate them one by one")
    config = settings.build(records[0]["config"], str(folders[0] / "checkpoint.json"))
    config.data.tasks = []  # not only those that were trained on
    for text in overrides:
        settings.override(config, text)
    return config


def test_queries(config: settings.Config, args, records: list[dict]) -> tuple[list[Query], list[Query]]:
    """(what to rank, what baselines are fitted on): the files named, or the test data of the config.

    Never what a checkpoint was trained on.
    """
    train = sources.held_out(config.data, "train") if args.baselines and config.data.train != "world" else []
    if args.data:
        queries = sources.first_of_each_task(sources.read_files(args.data, config.data.tasks), args.limit)
        for data in [config.data] if train else [settings.build(r["config"], "checkpoint.json").data for r in records]:
            sources.refuse_shared(queries, replace(data, tasks=[]), ", ".join(args.data))
        return queries, train
    limit = args.limit or (config.eval.test_queries if (config.data.test or config.data.train) == "world" else None)
    return sources.held_out(config.data, "test", limit), train


def default_out(folders: list[Path], config: str | None, data: list[str]) -> Path:
    """`eval/` of the (first) run, with a folder of its own for each data file."""
    name = Path(data[0]).stem if data else "test"
    if config:
        return Path("runs") / f"eval-{Path(config).stem}" / name
    if not folders:
        return Path("runs") / "eval-baselines" / name
    run = folders[0].resolve().parent
    return (run.parent if run.name == "checkpoints" else run) / "eval" / name


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    sys.exit(exit_status(main))
