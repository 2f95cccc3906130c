"""What an evaluation is of: its settings, the queries to rank, and the folder it is written to."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ranker import api, checkpoint, config as settings, log, plugins, sources, templates
from ranker.data import Query
from ranker.errors import UserError, one_line
from ranker.files import sha256

MUST_AGREE = {"model.name", "model.think", "model.chat_template", "model.quantize", "model.dtype", "model.max_prompt",
              "rollout.max_new_tokens", "eval.relevance_level"}  # and what begins with `ranker.` or `data.`, but
OF_TRAINING = {"data.tasks", "data.lessons", "data.unlabelled"}
# Settings that change no ranking: an evaluation with other patience or other prices is the same one.
PATIENCE = (*(f"llm.{name}=" for name in api.CHANGES_NO_ANSWER), "eval.machine_price=")


@dataclass
class Checkpoint:
    """A checkpoint to evaluate: its name as typed, its folder, and what `checkpoint.json` says of it."""

    name: str
    folder: Path
    record: dict = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """Return the tasks it was trained on; none: all, or not known."""
        return self.record["config"]["data"]["tasks"] if self.record else []


def checkpoints(paths: Sequence[str], config: str | None) -> list[Checkpoint]:
    """Return what the paths name. With a config file beside them they may be PEFT adapters made elsewhere."""
    found = []
    for path in paths:
        folder = checkpoint.find(path)
        foreign = config and not (folder / "checkpoint.json").is_file()
        found.append(Checkpoint(path, folder, {} if foreign else checkpoint.describe(folder)))
    return found


def read_config(found: Sequence[Checkpoint], args, overrides: Sequence[str]) -> settings.Config:
    """Return the config of a file, or of the checkpoints, which must agree on all that an evaluation depends on.

    Raise UserError. `args.data` loses the file that takes the place of the training data.
    """
    if args.config:
        config = settings.load(args.config, overrides)
        if not args.data:  # a file of one's own is ranked without the config's
            sources.refuse_unmade([config.data.train, config.data.test], args.config)
    elif found:
        config = agreed([c for c in found if c.record], bool(args.data))
        config.data.tasks = []  # not only those that were trained on
        for text in overrides:
            settings.override(config, text)
    else:
        config = defaults(overrides)
        if args.data and config.data.train == "world":  # a file alone is split as training would split it
            if len(args.data) > 1:
                raise UserError("several files are ranked by what another one teaches: name it with --data.train=FILE")
            config.data.train, args.data = args.data[0], []
    config.data.tasks = [t for text in args.tasks for t in text.split(",") if t] or config.data.tasks
    settings.resolve(config, "command line")
    settings.check(config, "command line")
    return config


def agreed(found: Sequence[Checkpoint], other_data: bool) -> settings.Config:
    """Return the config of checkpoints. Raise UserError where they differ in what an evaluation depends on."""
    first = found[0]
    for c in found:
        differing = differences(first.record["config"], c.record["config"], other_data)
        if differing:
            raise UserError(f"{c.folder} and {first.folder} differ in {', '.join(differing)}; evaluate them one by one")
    return settings.build(first.record["config"], str(first.folder / "checkpoint.json"))


def differences(one: dict, other: dict, other_data: bool) -> list[str]:
    """Return the settings that differ among those that an evaluation depends on."""
    return [key for key in settings.differences(one, other) if key in MUST_AGREE or key.startswith("ranker.")
            or key.startswith("data.") and key not in OF_TRAINING and not other_data]


def answers_of(row: str, folder: Path, now: dict) -> list[dict]:
    """Return the log's records of a row of the finished evaluation in `folder`, to be lent to the one of record `now`.

    Raise UserError where it answered by other settings or prompts, and for a folder without such records. (The data may
    be others: every record holds its ask.)
    """
    try:
        before = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        found = [r for r in log.read(folder / "traces.jsonl") if r["row"] == row]
        changed = differences(before["config"], now["config"], other_data=True)
        changed += ["roles"] * (before["config"]["roles"] != now["config"]["roles"])
        changed += ["prompts"] * (before["prompts"] != now["prompts"])
    except (OSError, ValueError, KeyError, TypeError):
        found = []
    if not found or (folder / "unfinished.json").exists():
        raise UserError(f"{folder} is no finished evaluation with a row '{row}'")
    if changed:
        raise UserError(f"{folder}: the row '{row}' was made with other {', '.join(changed)}; ask it anew")
    return found


def defaults(overrides: Sequence[str]) -> settings.Config:
    """Return the settings where no file and no checkpoint says any."""
    config = settings.Config(run=settings.Run(dir="runs"))
    for text in overrides:
        settings.override(config, text)
    return config


def warnings_of(found: Sequence[Checkpoint], chat: str, config: settings.Config) -> list[str]:
    """Return what speaks against the numbers of checkpoints: other prompts than now, a ranker that they do not fit, and
    notes of their training."""
    known = [c for c in found if c.record]
    changed = {c.folder: templates.changed_prompts(c.record["prompts"], chat) for c in known}
    return [f"{folder} was trained with other prompts: {', '.join(names)} changed since "
            "(--prompts=checkpoint ranks with"
            " its own)" for folder, names in changed.items() if names] + [
        f"{c.folder} was trained for {other}" for c in known for other in unfit(c.record["config"], config)] + [
        one_line(f"{c.folder}, in training: {note}") for c in known for note in c.record["notes"]]


def unfit(trained: dict, config: settings.Config) -> list[str]:
    """Return the settings that a ranker's checkpoint was trained for, where others are given now."""
    if trained["ranker"]["name"] != config.ranker["name"]:
        return []
    found = []
    for option in plugins.load("ranker", config.ranker).TRAINED_FOR:
        before, now = trained["ranker"].get(option), config.ranker.get(option)
        if before != now:
            found.append(f"ranker.{option}={before}, and is used with {now}")
        elif option.endswith("_role") and trained.get("roles", {}).get(now) != config.roles.get(now):
            found.append(f"ranker.{option}={before}, and is used with {now}, which is another model now")
    return found


def test_queries(config: settings.Config, args, found: Sequence[Checkpoint]) -> tuple[list[Query], list[Query]]:
    """Return (what to rank, what baselines are fitted on): the files named, or the test data of the config.

    Never what a checkpoint was trained on.
    """
    train = sources.held_out(config.data, "train") if args.baselines and config.data.train != "world" else []
    if args.data:
        queries = sources.first_of_each_task(sources.read_files(args.data, config.data.tasks), args.limit)
        trained = [settings.build(c.record["config"], "checkpoint.json").data for c in found if c.record]
        for data in [config.data] if train else trained:
            sources.refuse_shared(queries, replace(data, tasks=[]), ", ".join(args.data))
        return queries, train
    of_world = (config.data.test or config.data.train) == "world"
    if of_world and args.split == "train":
        raise UserError("--split train: the training queries of the built-in world have no end; write some to a file: "
                        "python -m ranker.prepare world --out FILE")
    limit = args.limit or (config.eval.test_queries if of_world else None)
    return sources.held_out(config.data, args.split, limit), train


def default_out(found: Sequence[Checkpoint], args, config: settings.Config, overrides: Sequence[str]) -> Path:
    """Return the folder of an evaluation of queries, named by all that tells it from another.

    It lies in `eval/` of the (first) run. Plainly `test` is the best checkpoint on its own test data with nothing
    changed; else the name says data, checkpoint and changes, and ends with a digest of them.
    """
    data = args.data or ([] if found or args.config else [config.data.train])
    folders = [c.folder.resolve() for c in found]
    words = [Path(data[0]).stem if data else "test"]
    words += [f.name for c, f in zip(found, folders) if c.folder.name != "best" or len(found) > 1]
    words += [f"{name}={value}" for name, value in changes(args).items()]
    changed = [text.lstrip("-") for text in overrides if not text.lstrip("-").startswith(PATIENCE)]
    words += [re.sub(r"^(ranker\.|llm\.(?=model=))?(name=|model=)?", "", text) for text in changed
              if not text.startswith("llm.api=")]
    name = named(words, [*map(str, folders), *words, *changed, *(sources.checksum(path) for path in data)]) if (
        len(words) > 1 or data) else words[0]
    if found:
        run = folders[0].parent
        out = (run.parent if run.name == "checkpoints" else run) / "eval" / name
        return out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out
    return Path("runs") / (f"eval-{Path(args.config).stem}" if args.config else "eval-baselines") / name


def changes(args) -> dict[str, object]:
    """Return the arguments of an evaluation that change its results."""
    values = {name: getattr(args, name) for name in ("limit", "tasks", "thoughts", "prompts", "metrics", "budget")}
    values |= {"orders": args.orders if args.orders > 1 else None, "split": args.split.replace("test", "")}
    return {name: ",".join(value) if isinstance(value, list) else value for name, value in values.items() if value}


def run_out(args, model: str, config: settings.Config, overrides: Sequence[str], files: Sequence[str]) -> Path:
    """Return the folder of an evaluation of a run: the run's name and who ranked it again, with a digest of all."""
    words = [args.replay.stem if args.replay else model.replace("/", "_") or "run", *(
        f"{name}={value}" for name, value in {"ties": args.ties, "metrics": args.metrics}.items() if value)]
    of = [*words, *overrides, *(sources.checksum(path) for path in files), *map(str, config.ranker.values())]
    return Path("runs") / f"eval-{args.run.stem}" / named(words, of)


def named(words: Sequence[str], of: Sequence[str]) -> str:
    """Return a folder's name made of words, at most 80 characters of them, and a digest of what it is the name of."""
    digest = hashlib.sha256(json.dumps(list(of)).encode()).hexdigest()[:6]
    return "-".join([re.sub(r"[^\w.=,+-]+", "_", "-".join(words))[:80], digest])


def identity(record: dict) -> dict:
    """Return what must be the same when a killed evaluation goes on."""
    llm = {key: value for key, value in record["config"]["llm"].items() if key not in api.CHANGES_NO_ANSWER}
    eval = {key: value for key, value in record["config"]["eval"].items() if key != "machine_price"}
    return {"data": record["data"], "prompts": record["prompts"],
            "settings": record["config"] | {"llm": llm, "eval": eval}}


def adapters(found: Sequence[Checkpoint], config: settings.Config) -> dict[str, str]:
    """Return the hashes of the weights of checkpoints, and of the adapters that play roles."""
    folders = {c.name: c.folder for c in found}
    folders |= {f"role {name}": checkpoint.find(r["adapter"]) for name, r in config.roles.items() if r["adapter"]}
    return {name: sha256(folder / "adapter_model.safetensors") for name, folder in folders.items()}


def refuse_missing(args, models: Sequence[str]) -> None:
    """Raise UserError where a file is missing that the evaluation of a run needs."""
    if not (args.qrels or models or args.replay):
        raise UserError("--run needs --qrels FILE to be judged, or somebody who ranks it again (--ckpt, "
                        "--config, --replay)")
    if args.replay and not args.corpus:
        raise UserError("--replay needs --corpus FILE: an answer may name a passage by its text")
    if models and not args.corpus:
        raise UserError(f"--corpus FILE is needed: {models[0]} ranks by the texts of queries and documents")
