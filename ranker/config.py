"""Configuration: dataclasses <- YAML <- --section.key=value.

The fields below are what every run has. What a plug-in has besides (a ranker, a draw, an objective, a reward, a lesson,
the adapter) are the fields of its own `Options`: the section of its kind holds `name` and those.

Every value is cast by the type of its field or refused: PyYAML reads `1e-5` as a string and `no` as False, so a YAML
type is never trusted. An unknown key, a wrong type or a value out of range ends with one line that says where it
stands and the nearest valid key; a key that has moved, its new place.
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ranker import plugins
from ranker.checks import check
from ranker.errors import UserError, nearest
from ranker.plugins import cast, setting, shown


class _Loader(yaml.SafeLoader):
    """Without it the last of two equal keys would win, and a section that stands twice would lose its first half."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' stands twice",
                                                            key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> object:
    """What a YAML text holds. Raises ValueError with line and reason."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"{f'line {mark.line + 1}: ' if mark else ''}{error.problem or error.context}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # PyYAML's own slips on `!!int ""`, `!!bool x`, ...
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"a value cannot be read: {error}") from None


@dataclass
class Run:
    dir: str = ""  # where the run lives; empty: runs/<name of the config file>
    seed: int = 0
    save_every: int = setting(20, low=1)  # steps between two checkpoints
    keep: int = setting(2, low=1)  # newest checkpoints kept; `best` always stays
    # the numbers of a step also go there; metrics.jsonl and curves.png are always written
    log: str = setting("", choices=("", "tensorboard", "wandb"))


@dataclass
class Model:
    name: str = "tiny"  # `tiny` (built in), a local folder, a GGUF file, `smollm2` (a package), or a model hub name
    # auto: nf4 on CUDA and for `tiny`; on a CPU none where the weights fill at most a third of the memory
    quantize: str = setting("auto", choices=("auto", "none", "nf4"))
    device: str = setting("auto", choices=("auto", "cpu", "cuda"))
    # compute; auto: bfloat16 on CUDA and, for all but small models, on CPUs that multiply it natively, else float32
    dtype: str = setting("auto", choices=("auto", "float32", "bfloat16"))
    attention: str = setting("auto", choices=("auto", "sdpa", "flash_attention_2"))  # for sampling; scoring is SDPA
    max_prompt: int = setting(1400, low=32)  # tokens; longer prompts have their texts cut
    chat_template: str = ""  # a Jinja file, or `plain` (for base models) or `chatml`; empty: the tokenizer's own
    think: bool = True  # false: no thought is asked for, and the prompt begins the answer
    gradient_checkpointing: bool = False


@dataclass
class Data:
    train: str = "world"  # `world` (built in), or a JSON lines file
    validation: str = ""  # a file; empty: held out from `train` by query
    test: str = ""
    tasks: list[str] = setting([])  # empty: all tasks of the data
    unlabelled: bool = False  # train on queries without labels too, which a reward that asks a judge can pay for
    # what is done to training queries, in this order: {name: FILE in lessons/, options}
    lessons: list[dict] = setting([])
    seed: int = 0  # of the built-in world


@dataclass
class Rollout:
    prompts_per_step: int = setting(16, low=1)  # queries, where a draw asks several things about each
    completions_per_prompt: int = setting(8, low=1)  # the group, or the episodes of a query
    temperature: float = setting(1.0, low=0.01, high=10.0)  # of sampling and scoring alike
    max_new_tokens: int = setting(1024, low=1)
    tokens_per_batch: int = setting(131072, low=16)  # held in the cache at once: rows x (prompt + max_new_tokens)
    tokens_per_prefill: int = setting(16384, low=16)  # prompt tokens in one forward pass
    tokens_kept: int = setting(65536, low=0)  # prompt tokens an evaluation keeps for the next asks about their queries
    # dense: a dequantised copy while sampling, faster and 2 bytes a parameter larger
    weights: str = setting("nf4", choices=("nf4", "dense"))
    graph: bool = True  # CUDA: steps of decoding are captured and replayed; dynamic RoPE cannot be


@dataclass
class Train:
    steps: int = setting(100, low=1)
    lr: float = setting(1e-5, low=0.0)
    schedule: str = setting("constant", choices=("constant", "cosine"))
    warmup: int = setting(0, low=0)  # steps
    weight_decay: float = setting(0.0, low=0.0)
    grad_clip: float = setting(1.0, low=0.0)  # 0: off
    updates_per_rollout: int = setting(1, low=1)  # passes over one step's completions
    minibatches: int = setting(1, low=1)  # optimizer steps a pass
    # passes end when a minibatch has drifted further from the sampler; 0: never
    target_kl: float = setting(0.0, low=0.0)
    tokens_per_batch: int = setting(16384, low=16)  # tokens in one forward pass; groups are split to fit
    max_bad_steps: int = setting(5, low=1)  # steps in a row whose gradient is not finite; then the run stops
    collapse_margin: float = setting(0.3, low=0.0)  # parse rate or reward this far below the run's best, ...
    collapse_steps: int = setting(10, low=1)  # ... for so many steps, is announced as a collapse


@dataclass
class Eval:
    every: int = setting(20, low=1)  # steps between two validations
    queries: int = setting(10, low=1)  # validation queries per task
    test_queries: int = setting(50, low=1)  # per task, in evaluate.py
    thoughts: int = setting(1, low=0)  # worked examples shown with an ask when evaluate.py is given --thoughts
    relevance_level: float = setting(0.0, low=0.0)  # MRR and Hit count relevance >= this; 0: the query's best grade
    machine_price: float = setting(0.0, low=0.0)  # dollars an hour of the machine that ranks; 0: not known


@dataclass
class Llm:
    api: str = ""  # an OpenAI-compatible server, such as http://127.0.0.1:8000/v1; empty: the policy answers
    model: str = ""  # its name there
    key_env: str = ""  # the environment variable that holds the key; never the key itself
    temperature: float = setting(0.0, low=0.0, high=2.0)
    # the server's name for rollout.max_new_tokens
    limit_field: str = setting("max_tokens", choices=("max_tokens", "max_completion_tokens"))
    # of a text; a longer one loses its middle, since the server's tokens are not known
    words: int = setting(300, low=1)
    multi_turn: bool = False  # each candidate in a turn of its own
    concurrency: int = setting(8, low=1)  # calls at a time
    timeout_s: float = setting(300.0, low=0.01)
    retries: int = setting(5, low=0)  # of one call, the pauses between them doubling from about a second
    cache: str = ""  # a file of answers, which are not asked for again; empty: answers.jsonl beside the results
    price_in: float = setting(0.0, low=0.0)  # dollars per million prompt tokens; 0: not known
    price_out: float = setting(0.0, low=0.0)  # and per million completion tokens


@dataclass
class Role:
    """Who answers the asks that name a role: an adapter on the base of the policy, or a server's model."""

    adapter: str = setting("", file=True)  # a checkpoint or a run folder
    llm: dict = setting({})  # as the section llm, for a server


@dataclass
class Config:
    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    lora: dict = field(default_factory=dict)  # a file in ranker/adapters/, and its options
    data: Data = field(default_factory=Data)
    ranker: dict = field(default_factory=dict)  # a file in ranker/rankers/, and its options
    draw: dict = field(default_factory=dict)  # a file in ranker/draws/, and its options
    rollout: Rollout = field(default_factory=Rollout)
    # files in rewards/ -> weight, tasks, options
    reward: dict = field(default_factory=lambda: {plugins.default("reward"): {}})
    objective: dict = field(default_factory=dict)  # a file in ranker/objectives/, and its options
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)
    llm: Llm = field(default_factory=Llm)
    roles: dict = field(default_factory=dict)  # name -> who plays it
    stages: list = field(default_factory=list)  # the first steps of a run: {steps: 10, train: {...}, ...}

    def __post_init__(self):
        for section in plugins.SECTIONS:
            setattr(self, section, {"name": plugins.default(section)} | getattr(self, section))


def load(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Return the config of a YAML file with `section.key=value` overrides. Raise UserError."""
    path = Path(path)
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"{path}: {error.strerror}{nearest(path.stem, near) if near else ''}") from None
    except ValueError as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    config = build(raw, str(path))
    for text in overrides:
        override(config, text)
    config.run.dir = config.run.dir or f"runs/{path.stem}"
    resolve(config, str(path))
    for first, stage in stages(config, str(path)):
        check(stage, f"{path}{f', the stage of step {first}' if config.stages else ''}")
    return config


def resolve(config: Config, where: str) -> None:
    """Give the sections of plug-ins all their options, cast and checked. Raise UserError."""
    for section in plugins.SECTIONS:
        setattr(config, section, plugins.resolved(section, getattr(config, section), where))
    config.data.lessons = [plugins.resolved("lesson", lesson, where) for lesson in config.data.lessons]
    config.reward = {name: plugins.resolved_reward(name, entry, where) for name, entry in config.reward.items()}


IN_A_STAGE = {  # sections that a stage may change, and the keys of those whose other keys are the run's
    "draw": None, "reward": None, "objective": None,
    "rollout": ("prompts_per_step", "completions_per_prompt", "temperature"),
    "train": ("lr", "schedule", "warmup", "grad_clip", "updates_per_rollout", "minibatches", "target_kl",
              "tokens_per_batch")}


def stages(config: Config, where: str = "config") -> list[tuple[int, Config]]:
    """Return (first step, settings) of each stage; the last is that of the config itself. Raise UserError.

    There `train.steps` is the stage's own.
    """
    found, first = [], 1
    if not isinstance(config.stages, list):
        raise UserError(f"{where}: stages must be a list, got {shown(config.stages)}")
    for number, changes in enumerate(config.stages, 1):
        stage = _stage(config, changes, f"{where}: stage {number}")
        found.append((first, stage))
        first += stage.train.steps
    if first > config.train.steps:
        raise UserError(f"{where}: the stages take {first - 1} steps and leave none of "
                        f"train.steps={config.train.steps}")
    rest = dataclasses.replace(config.train, steps=config.train.steps - first + 1)
    return [*found, (first, dataclasses.replace(config, train=rest, stages=[]))]


def _stage(config: Config, changes: object, here: str) -> Config:
    """Return the config as a stage changes it."""
    if not isinstance(changes, dict):
        raise UserError(f"{here} must hold steps and sections, got {shown(changes)}")
    if "steps" not in changes:
        raise UserError(f"{here} needs its number of steps")
    stage = dataclasses.replace(
        config, rollout=dataclasses.replace(config.rollout), train=dataclasses.replace(config.train), stages=[])
    for section, values in changes.items():
        if section == "steps":
            stage.train.steps = cast(values, int, {"low": 1}, f"{here}: steps")
            continue
        if section not in IN_A_STAGE or not isinstance(values, dict):
            raise UserError(f"{here}: '{section}' cannot change there; a stage has steps and the sections"
                            f" {', '.join(IN_A_STAGE)}")
        keys = IN_A_STAGE[section]
        known = {f.name for f in dataclasses.fields(getattr(config, section))} if keys else ()
        for key in values:
            if key in known and key not in keys:
                raise UserError(f"{here}: {section}.{key} cannot change in a stage; it is the run's")
        _section(stage, section, values, here)
    resolve(stage, here)
    return stage


def build(raw: object, where: str) -> Config:
    """Return a Config from nested dicts, every value cast. `where` names the source in errors."""
    if raw is not None and not isinstance(raw, dict):
        raise UserError(f"{where}: expected sections (run, model, ...), got {type(raw).__name__}")
    config = Config()
    for section, values in (raw or {}).items():
        _known_section(section, where)
        if section == "stages":
            config.stages = values
        elif not isinstance(values, dict):
            raise UserError(f"{where}: section '{section}' must hold keys, got {shown(values)}")
        else:
            _section(config, section, values, where)
    return config


def _section(config: Config, section: str, values: dict, where: str) -> None:
    """Set the values of a section."""
    if section == "reward":
        config.reward = {name: plugins.reward_entry(entry) for name, entry in values.items()}
    elif section == "roles":
        config.roles = {name: _role(name, entry, where) for name, entry in values.items()}
    elif section in plugins.SECTIONS:
        before = getattr(config, section)
        kept = before if values.get("name", before["name"]) == before["name"] else {}  # another one has other options
        setattr(config, section, kept | values)
    else:
        for key, value in values.items():
            _set(config, section, key, value, where)


def _role(name: str, entry: object, where: str) -> dict:
    role = Role()
    if not isinstance(entry, dict):
        raise UserError(f"{where}: roles.{name} must hold adapter or llm, got {shown(entry)}")
    for key, value in entry.items():
        _set_field(role, f"roles.{name}", key, value, where)
    llm = Llm()
    for key, value in role.llm.items():
        _set_field(llm, f"roles.{name}.llm", key, value, where)
    if bool(role.adapter) == bool(role.llm):
        raise UserError(f"{where}: roles.{name} needs either adapter, a checkpoint, or llm, a server's model")
    return dataclasses.asdict(role) | {"llm": dataclasses.asdict(llm) if role.llm else {}}


def override(config: Config, text: str) -> None:
    """Apply one `--section.key=value` (leading dashes optional) to `config`. Raise UserError."""
    where = "command line"
    name, equals, value = text.lstrip("-").partition("=")
    parts = name.split(".")
    if not equals or len(parts) < 2:
        raise UserError(f"'{text}' is no setting: write --section.key=value, for example --train.lr=1e-4")
    _known_section(parts[0], where)
    if parts[0] == "stages":
        raise UserError(f"{where}: stages are changed in the file")
    try:
        value = parse_yaml(value) if value else ""
    except ValueError:
        raise UserError(f"{where}: cannot read the value of '{text}'") from None
    if parts[0] == "reward":
        _override_reward(config, parts, value)
    elif parts[0] == "roles":
        _override_role(config, parts, value)
    elif parts[:2] == ["data", "lessons"] and len(parts) == 4:  # data.lessons.NAME.option
        lessons = {str(lesson.get("name")): lesson for lesson in config.data.lessons}
        lessons[parts[2]] = lessons.get(parts[2], {"name": parts[2]}) | {parts[3]: value}
        config.data.lessons = list(lessons.values())
    else:
        _section(config, parts[0], {".".join(parts[1:]): value}, where)


def _override_reward(config: Config, parts: list[str], value: object) -> None:
    if len(parts) > 3:
        raise UserError(f"command line: '{'.'.join(parts)}' has too many parts: write --reward.NAME.option=value")
    entry = plugins.reward_entry(value) if len(parts) == 2 else config.reward.get(parts[1], {}) | {parts[2]: value}
    config.reward = config.reward | {parts[1]: entry}


def _override_role(config: Config, parts: list[str], value: object) -> None:
    if parts[2:] == ["adapter"]:
        entry = {"adapter": value}
    elif len(parts) == 4 and parts[2] == "llm":
        before = config.roles.get(parts[1], {}).get("llm") or {}
        entry = {"llm": before | {parts[3]: value}}
    else:
        raise UserError(f"command line: write --roles.NAME.adapter=FOLDER or --roles.NAME.llm.KEY=value, not"
                        f" '{'.'.join(parts)}'")
    config.roles = config.roles | {parts[1]: _role(parts[1], entry, "command line")}


def _known_section(name: str, where: str) -> None:
    sections = [f.name for f in dataclasses.fields(Config)]
    if name not in sections:
        raise UserError(f"{where}: unknown section '{name}'{nearest(str(name), sections)}")


def _set(config: Config, section: str, key: str, value: object, where: str) -> None:
    _set_field(getattr(config, section), section, key, value, where)


def _set_field(target: object, section: str, key: str, value: object, where: str) -> None:
    known = {f.name: f for f in dataclasses.fields(target)}
    if key not in known:
        tail = plugins.moved(section, str(key)) or nearest(str(key), known)
        raise UserError(f"{where}: unknown key '{section}.{key}'{tail}")
    hint = typing.get_type_hints(type(target))[key]
    setattr(target, key, cast(value, hint, known[key].metadata, f"{where}: {section}.{key}"))


def as_dict(config: Config) -> dict:
    return dataclasses.asdict(config)


def as_yaml(config: Config) -> str:
    return yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)


def differences(a: dict, b: dict) -> list[str]:
    """`section.key` names on which two resolved configs differ."""
    flat = lambda d, prefix="": {k: v for key, value in d.items() for k, v in (  # noqa: E731
        flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}).items()}
    x, y = flat(a), flat(b)
    return sorted(key for key in x.keys() | y.keys() if x.get(key) != y.get(key))
