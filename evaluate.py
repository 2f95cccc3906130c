"""Rank held-out queries with a checkpoint, the untrained base and baselines; print and save the comparison.

    python evaluate.py --ckpt runs/iranker/best
    python evaluate.py --ckpt A --ckpt B --data test.jsonl      several checkpoints of one base on your own data
    python evaluate.py --config configs/iranker.yaml            the untrained base alone
    python evaluate.py --ckpt A --thoughts A/thoughts.jsonl     also the base, shown traces of a training run

All tasks of the test data are ranked by default, those that a checkpoint was not trained on too. Settings of the
checkpoint can be changed for the evaluation, such as --model.name=/path/to/base or --rollout.tokens_per_batch=65536.
"""

import json
import logging
import random
import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ranker import checkpoint, config as settings, report, sources, thoughts
from ranker.data import Query
from ranker.drive import load_ranker, run as rank
from ranker.errors import Parser, UserError, exit_status
from ranker.files import open_whole
from ranker.policy import load as load_policy, pick_device
from ranker.prompting import changed_prompts
from ranker.provenance import provenance
from ranker.rollout import Sampler, greedy_model

MUST_AGREE = {"model.name", "model.quantize", "model.dtype", "model.max_prompt", "ranker.name", "rollout.max_new_tokens",
              "eval.relevance_level"}


def main() -> None:
    parser = Parser(prog="evaluate.py", description=__doc__, usage="python evaluate.py (--ckpt PATH ... | --config CONFIG) [options]")
    parser.add_argument("--ckpt", action="append", default=[], help="a checkpoint folder or a run folder; may be repeated")
    parser.add_argument("--config", help="evaluate the untrained base of this config instead")
    parser.add_argument("--data", nargs="+", default=[], help="JSON lines files instead of the config's test data")
    parser.add_argument("--tasks", nargs="+", default=[], help="only these tasks")
    parser.add_argument("--ranker", help="another ranker than the config's")
    parser.add_argument("--thoughts", type=Path, help="thoughts.jsonl of a training run: rank also with the base that is shown its traces")
    parser.add_argument("--limit", type=int, help="at most this many queries per task")
    parser.add_argument("--orders", type=int, default=1, help="rank this many shuffles of each query's candidates")
    parser.add_argument("--out", type=Path, help="where to write (default: eval/ in the run folder)")
    args, overrides = parser.parse_known_args()
    if bool(args.ckpt) == bool(args.config):
        raise UserError("name either checkpoints (--ckpt PATH) or a config (--config CONFIG)")
    for name, value in (("--limit", args.limit), ("--orders", args.orders)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")

    folders = [checkpoint.find(path) for path in args.ckpt]
    records = [checkpoint.describe(folder) for folder in folders]
    config = read_config(folders, records, args, overrides)
    config.data.tasks = [t for text in args.tasks for t in text.split(",") if t] or config.data.tasks
    config.ranker.name = args.ranker or config.ranker.name
    settings.check(config, "command line")
    ranker = load_ranker(config.ranker.name)
    queries = test_queries(config, args, records)
    find = None
    if args.thoughts:
        decision = ranker.sampled_ask(queries[0], random.Random(0)).decision
        find = thoughts.finder(thoughts.read(args.thoughts), queries, decision, config.eval.thoughts, str(args.thoughts))
    out = args.out or default_out(folders, args.config, args.data)
    orders = [shuffled(queries, o, config.run.seed) for o in range(args.orders)]
    record = provenance(config, pick_device(config.model.device), args.data or [config.data.test or config.data.train]) | {
        "checkpoints": args.ckpt, "queries": len(queries), "orders": args.orders}

    level = config.eval.relevance_level
    rows = report.baseline_rows(orders, level)
    models = [(report.BASE, None, None, ())]  # name, adapter, how worked examples are found, tasks it was trained on
    models += [(f"{report.BASE} + thoughts", None, find, ())] if find else []
    models += [(name, folder, None, r["config"]["data"]["tasks"]) for name, folder, r in zip(args.ckpt, folders, records)]
    total = len(models) * args.orders * sum(ranker.calls(len(q.ids)) for q in queries)
    with tqdm(total=total, unit="ask", dynamic_ncols=True) as bar, open_whole(out / "traces.jsonl") as file:
        for name, folder, examples, trained in models:
            bar.set_description(name)
            policy = model = None  # let go of the model before the next one is loaded
            policy = load_policy(config.model, adapter=folder, max_new_tokens=config.rollout.max_new_tokens)
            model = greedy_model(Sampler(policy, config.rollout), bar.update)
            if examples:
                model = thoughts.with_thoughts(model, examples)
            ranked = []
            for number, order in enumerate(orders):
                def trace(ask, round_number, completion):
                    file.write(json.dumps({"row": name, "order": number, "query": ask.query.id, "decision": ask.decision, "round": round_number,
                                           "pool": ask.pool, "text": completion.text, "tokens": len(completion.ids),
                                           "status": completion.answer.status, "answer": completion.answer.value}, ensure_ascii=False) + "\n")
                ranked.append(rank(ranker, order, model, config.run.seed, trace))
            rows.append(report.model_row(name, ranked, level, policy.prompter.shortened, trained))

    source = ", ".join(args.data) or config.data.test or f"{config.data.train}, the test split"
    head = (f"{len(queries)} queries of {source}; {config.ranker.name}, greedy decoding, {args.orders} candidate order(s), seed {config.run.seed}.\n"
            f"MRR and Hit count {f'relevance from {level:g} on' if level else 'the best grade of a query'} as relevant;"
            " nDCG has linear gain, its ideal over the query's candidates.\n"
            "Strict: a query with an answer that could not be read counts 0.")
    base = next(row for row in rows if row.name == report.BASE)
    report.write(out, rows, base, head, record)
    print(f"\n{head}\n\n{report.tables(rows, base)}\nwritten to {out}: table.md, results.json, per_query.csv, traces.jsonl, TREC run and qrels files")


def read_config(folders: list[Path], records: list[dict], args, overrides: list[str]) -> settings.Config:
    """The config of a file, or of the checkpoints, which must agree on all that an evaluation depends on."""
    if args.config:
        return settings.load(args.config, overrides)
    for folder, record in zip(folders, records):
        changed = changed_prompts(record["prompts"])
        if changed:
            raise UserError(f"{folder} was trained with other prompts ({', '.join(changed)} changed); restore them, or train again")
        differing = [key for key in settings.differences(records[0]["config"], record["config"])
                     if key in MUST_AGREE or key.startswith("data.") and key != "data.tasks" and not args.data]
        if differing:
            raise UserError(f"{folder} and {folders[0]} differ in {', '.join(differing)}; evaluate them one by one")
    config = settings.build(records[0]["config"], str(folders[0] / "checkpoint.json"))
    config.data.tasks = []  # not only those that were trained on
    for text in overrides:
        settings.override(config, text)
    return config


def test_queries(config: settings.Config, args, records: list[dict]) -> list[Query]:
    """What to rank: the files named, or the test data of the config. Never what a checkpoint was trained on."""
    if args.data:
        queries = sources.first_of_each_task(sources.read_files(args.data, config.data.tasks), args.limit)
        for record in records:
            trained = settings.build(record["config"], "checkpoint.json").data
            sources.refuse_shared(queries, replace(trained, tasks=[]), ", ".join(args.data))
        return queries
    world = (config.data.test or config.data.train) == "world"
    return sources.held_out(config.data, "test", args.limit or (config.eval.test_queries if world else None))


def shuffled(queries: list[Query], order: int, seed: int) -> list[Query]:
    """The queries with their candidates in another order; order 0 is the one given."""
    if order == 0:
        return queries
    result = []
    for query in queries:
        pairs = list(zip(query.candidates, query.relevance))
        random.Random(f"{seed}/{order}/{query.id}").shuffle(pairs)
        candidates, relevance = zip(*pairs)
        result.append(replace(query, candidates=candidates, relevance=relevance))
    return result


def default_out(folders: list[Path], config: str | None, data: list[str]) -> Path:
    """`eval/` of the (first) run, with a folder of its own for each data file."""
    name = Path(data[0]).stem if data else "test"
    if config:
        return Path("runs") / f"eval-{Path(config).stem}" / name
    run = folders[0].resolve().parent
    return (run.parent if run.name == "checkpoints" else run) / "eval" / name


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    sys.exit(exit_status(main))
