"""What an evaluation is of: its settings, the queries to rank, and the folder it is written to."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ranker import api, checkpoint, config as settings, prompting, sources
from ranker.data import Query
from ranker.errors import UserError, one_line
from ranker.files import sha256

MUST_AGREE = {"model.name", "model.chat_template", "model.quantize", "model.dtype", "model.max_prompt",
              "rollout.max_new_tokens", "eval.relevance_level"}  # and what begins with `ranker.` or `data.`


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
        differing = [key for key in settings.differences(first.record["config"], c.record["config"])
                     if key in MUST_AGREE or key.startswith("ranker.")
                     or key.startswith("data.") and key != "data.tasks" and not other_data]
        if differing:
            raise UserError(f"{c.folder} and {first.folder} differ in {', '.join(differing)}; evaluate them one by one")
    return settings.build(first.record["config"], str(first.folder / "checkpoint.json"))


def defaults(overrides: Sequence[str]) -> settings.Config:
    """Return the settings where no file and no checkpoint says any."""
    config = settings.Config(run=settings.Run(dir="runs"))
    for text in overrides:
        settings.override(config, text)
    return config


def warnings_of(found: Sequence[Checkpoint], chat: str) -> list[str]:
    """Return what speaks against the numbers of checkpoints: other prompts than now, notes of their training."""
    known = [c for c in found if c.record]
    changed = {c.folder: prompting.changed_prompts(c.record["prompts"], chat) for c in known}
    return [f"{folder} was trained with other prompts: {', '.join(names)} changed since "
            "(--prompts=checkpoint ranks with"
            " its own)" for folder, names in changed.items() if names] + [
        one_line(f"{c.folder}, in training: {note}") for c in known for note in c.record["notes"]]


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
    return sources.held_out(config.data, "test", args.limit or (config.eval.test_queries if of_world else None)), train


def default_out(found: Sequence[Checkpoint], args, config: settings.Config) -> Path:
    """Return `eval/` of the (first) run, with a folder of its own for each data file."""
    data = args.data or ([] if found or args.config else [config.data.train])
    name = Path(data[0]).stem if data else "test"
    if found:
        run = found[0].folder.resolve().parent
        return (run.parent if run.name == "checkpoints" else run) / "eval" / name
    return Path("runs") / (f"eval-{Path(args.config).stem}" if args.config else "eval-baselines") / name


def identity(record: dict) -> dict:
    """Return what must be the same when a killed evaluation goes on."""
    llm = {key: value for key, value in record["config"]["llm"].items() if key not in api.CHANGES_NO_ANSWER}
    return {"data": record["data"], "prompts": record["prompts"], "settings": record["config"] | {"llm": llm}}


def adapters(found: Sequence[Checkpoint], config: settings.Config) -> dict[str, str]:
    """Return the hashes of the weights of checkpoints, and of the adapters that play roles."""
    folders = {c.name: c.folder for c in found}
    folders |= {f"role {name}": checkpoint.find(r["adapter"]) for name, r in config.roles.items() if r["adapter"]}
    return {name: sha256(folder / "adapter_model.safetensors") for name, folder in folders.items()}
