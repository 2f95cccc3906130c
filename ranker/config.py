"""Configuration: dataclasses <- YAML <- --section.key=value. The dataclass fields are the whole list of settings.

Every value is cast by the type of its field or refused: PyYAML reads `1e-5` as a string and `no` as False, so a YAML
type is never trusted. An unknown key, a wrong type or a value out of range ends with one line that names where it
stands and the nearest valid key.
"""

import dataclasses
import inspect
import math
import re
import reprlib
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ranker.checks import check
from ranker.errors import UserError, nearest


_SHORT = reprlib.Repr()  # a few anchors of YAML can stand for more text than memory holds
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


class _Loader(yaml.SafeLoader):
    """Without it the last of two equal keys would win, and a section that stands twice would lose its first half."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' stands twice", key.start_mark)
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
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:  # PyYAML's own slips on `!!int ""`, `!!bool x`, ...
        raise ValueError(f"a value cannot be read: {error}") from None


def shown(value: object) -> str:
    """`value` as an error shows it, cut."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an int of more digits than Python prints
        return "a huge number"


def setting(default, low=None, high=None, choices=None):
    """A field with its valid range (inclusive) or its choices."""
    metadata = {"low": low, "high": high, "choices": choices}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Run:
    dir: str = ""  # where the run lives; empty: runs/<name of the config file>
    seed: int = 0
    save_every: int = setting(20, low=1)  # steps between two checkpoints
    keep: int = setting(2, low=1)  # newest checkpoints kept; `best` always stays


@dataclass
class Model:
    name: str = "tiny"  # `tiny` (built in), a local folder, or a model hub name
    quantize: str = setting("nf4", choices=("none", "nf4"))
    device: str = setting("auto", choices=("auto", "cpu", "cuda"))
    dtype: str = setting("auto", choices=("auto", "float32", "bfloat16"))  # compute; auto: bfloat16 on CUDA, else float32
    attention: str = setting("auto", choices=("auto", "sdpa", "flash_attention_2"))  # for sampling; scoring is SDPA
    max_prompt: int = setting(1400, low=32)  # tokens; longer prompts have their texts cut
    chat_template: str = ""  # a Jinja file, or `plain` (for base models) or `chatml`; empty: the tokenizer's own
    gradient_checkpointing: bool = False


@dataclass
class Lora:
    rank: int = setting(16, low=1)
    alpha: float = setting(32.0, low=1e-6)
    targets: str = "all-linear"  # as in PEFT: `all-linear`, or module names joined by commas


@dataclass
class Data:
    train: str = "world"  # `world` (built in), or a JSON lines file
    validation: str = ""  # a file; empty: held out from `train` by query
    test: str = ""
    teacher: str = ""  # a TREC run over the training queries, learned from instead of their relevance
    tasks: list[str] = setting([])  # empty: all tasks of the data
    seed: int = 0  # of the built-in world


@dataclass
class Rollout:
    states: str = setting("sampled", choices=("sampled", "on_policy", "recorded", "hinted", "identifiers"))  # see ranker/states.py
    traces: str = ""  # with recorded: a JSON lines file as training writes it, thoughts.jsonl
    refills: int = setting(0, low=0)  # draws that replace groups whose completions all earned the same (DAPO)
    prompts_per_step: int = setting(16, low=1)  # with on_policy: queries
    completions_per_prompt: int = setting(8, low=1)  # the group; with on_policy: episodes
    discount: float = setting(1.0, low=0.0, high=1.0)  # with on_policy: of the reward one ask later
    temperature: float = setting(1.0, low=0.01, high=10.0)  # of sampling and scoring alike
    max_new_tokens: int = setting(1024, low=1)
    tokens_per_batch: int = setting(131072, low=16)  # held in the cache at once: rows x (prompt + max_new_tokens)
    tokens_per_prefill: int = setting(16384, low=16)  # prompt tokens in one forward pass
    tokens_kept: int = setting(65536, low=0)  # prompt tokens an evaluation keeps for the next asks about their queries
    weights: str = setting("nf4", choices=("nf4", "dense"))  # dense: a dequantised copy while sampling, faster and 2 bytes a parameter larger
    graph: bool = True  # CUDA: steps of decoding are captured and replayed, not launched kernel by kernel; dynamic RoPE cannot be


@dataclass
class Train:
    objective: str = "grpo"  # a file in ranker/objectives/
    steps: int = setting(100, low=1)
    lr: float = setting(1e-5, low=0.0)
    schedule: str = setting("constant", choices=("constant", "cosine"))
    warmup: int = setting(0, low=0)  # steps
    weight_decay: float = setting(0.0, low=0.0)
    grad_clip: float = setting(1.0, low=0.0)  # 0: off
    updates_per_rollout: int = setting(1, low=1)  # passes over one step's completions
    minibatches: int = setting(1, low=1)  # optimizer steps a pass
    target_kl: float = setting(0.0, low=0.0)  # passes end when a minibatch has drifted further from the sampler; 0: never
    tokens_per_batch: int = setting(16384, low=16)  # tokens in one forward pass; groups are split to fit
    keep_above: float = setting(0.0)  # with sft: the least task reward of what is imitated
    thought_weight: float = setting(1.0, low=0.0)  # with sft: of the tokens before the answer
    rank_loss: str = setting("weighted_ranknet", choices=("ranknet", "weighted_ranknet", "lambdarank", "ndcg2", "listnet", "top1", "pointwise"))
    rank_weight: float = setting(10.0, low=0.0)  # of that loss
    lm_weight: float = setting(1.0, low=0.0)  # of imitating the written list beside it
    advantage: str = setting("mean", choices=("mean", "std"))
    min_spread: float = setting(1e-4, low=0.0)  # groups whose task reward spreads less teach nothing
    clip_low: float = setting(0.2, low=0.0, high=1.0)
    clip_high: float = setting(0.2, low=0.0)
    kl: str = setting("k2", choices=("k2", "k3"))
    beta: float = setting(0.0, low=0.0)  # weight of the KL to the reference; 0 skips the reference pass
    kl_in: str = setting("loss", choices=("loss", "reward"))  # where that KL counts; in the reward with PPO only
    value_lr: float = setting(0.0, low=0.0)  # of the value head; PPO needs one
    value_warmup: int = setting(0, low=0)  # steps in which only the values learn
    value_clip: float = setting(0.2, low=0.0)
    max_bad_steps: int = setting(5, low=1)  # steps in a row whose gradient is not finite; then the run stops
    collapse_margin: float = setting(0.3, low=0.0)  # parse rate or reward this far below the run's best, ...
    collapse_steps: int = setting(10, low=1)  # ... for so many steps, is announced as a collapse
    gamma: float = setting(1.0, low=0.0, high=1.0)  # of GAE, per token
    gae_lambda: float = setting(1.0, low=0.0, high=1.0)


@dataclass
class Eval:
    every: int = setting(20, low=1)  # steps between two validations
    queries: int = setting(10, low=1)  # validation queries per task
    test_queries: int = setting(50, low=1)  # per task, in evaluate.py
    thoughts: int = setting(1, low=0)  # worked examples shown with an ask when evaluate.py is given --thoughts
    relevance_level: float = setting(0.0, low=0.0)  # MRR and Hit count relevance >= this; 0: the query's best grade


@dataclass
class Llm:
    api: str = ""  # an OpenAI-compatible server that evaluate.py asks instead, such as http://127.0.0.1:8000/v1; empty: none
    model: str = ""  # its name there
    key_env: str = ""  # the environment variable that holds the key; never the key itself
    temperature: float = setting(0.0, low=0.0, high=2.0)
    limit_field: str = setting("max_tokens", choices=("max_tokens", "max_completion_tokens"))  # its name for rollout.max_new_tokens
    words: int = setting(300, low=1)  # of a text; a longer one loses its middle, since the server's tokens are not known
    multi_turn: bool = False  # each candidate in a turn of its own
    concurrency: int = setting(8, low=1)  # calls at a time
    timeout_s: float = setting(300.0, low=0.01)
    retries: int = setting(5, low=0)  # of one call, the pauses between them doubling from about a second
    cache: str = ""  # a file of answers, which are not asked for again; empty: answers.jsonl where the evaluation is written
    price_in: float = setting(0.0, low=0.0)  # dollars per million prompt tokens; 0: not known
    price_out: float = setting(0.0, low=0.0)  # and per million completion tokens


@dataclass
class Config:
    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    lora: Lora = field(default_factory=Lora)
    data: Data = field(default_factory=Data)
    ranker: dict = field(default_factory=lambda: {"name": "elimination"})  # a file in ranker/rankers/, and its options
    rollout: Rollout = field(default_factory=Rollout)
    reward: dict = field(default_factory=lambda: {"top1_hit": {"weight": 1.0}})  # file in rewards/ -> weight, options
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)
    llm: Llm = field(default_factory=Llm)
    stages: list = field(default_factory=list)  # the first steps of a run, each with other settings: {steps: 10, train: {...}, ...}


def load(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """The config of a YAML file with `section.key=value` overrides. Raises UserError."""
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
    for first, stage in stages(config, str(path)):
        check(stage, f"{path}{f', the stage of step {first}' if config.stages else ''}")
    return config


OF_THE_RUN = ("max_new_tokens", "tokens_per_batch", "tokens_per_prefill", "tokens_kept", "weights",  # of sampling, validation included
              "steps", "weight_decay", "value_lr", "max_bad_steps", "collapse_margin", "collapse_steps")


def stages(config: Config, where: str = "config") -> list[tuple[int, Config]]:
    """(first step, settings) of each stage; the last is that of the config itself. `train.steps` is the stage's own there. Raises UserError."""
    found, first = [], 1
    if not isinstance(config.stages, list):
        raise UserError(f"{where}: stages must be a list, got {shown(config.stages)}")
    for number, changes in enumerate(config.stages, 1):
        here = f"{where}: stage {number}"
        if not isinstance(changes, dict):
            raise UserError(f"{here} must hold steps and sections, got {shown(changes)}")
        stage = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout), train=dataclasses.replace(config.train), stages=[])
        for section, values in changes.items():
            if section == "steps":
                stage.train.steps = cast(values, int, {"low": 1}, f"{here}: steps")
            elif section not in ("rollout", "train", "reward") or not isinstance(values, dict):
                raise UserError(f"{here}: '{section}' cannot change there; a stage has steps and sections rollout, train and reward")
            elif section == "reward":
                stage.reward = {name: reward_entry(entry) for name, entry in values.items()}
            else:
                for key, value in values.items():
                    if key in OF_THE_RUN:
                        raise UserError(f"{here}: {section}.{key} cannot change in a stage; it is the run's")
                    _set(stage, section, key, value, here)
        if "steps" not in changes:
            raise UserError(f"{here} needs its number of steps")
        found.append((first, stage))
        first += stage.train.steps
    if first > config.train.steps:
        raise UserError(f"{where}: the stages take {first - 1} steps and leave none of train.steps={config.train.steps}")
    return [*found, (first, dataclasses.replace(config, train=dataclasses.replace(config.train, steps=config.train.steps - first + 1), stages=[]))]


def build(raw: object, where: str) -> Config:
    """A Config from nested dicts, every value cast. `where` names the source in errors."""
    if raw is not None and not isinstance(raw, dict):
        raise UserError(f"{where}: expected sections (run, model, ...), got {type(raw).__name__}")
    config = Config()
    for section, values in (raw or {}).items():
        _section(section, where)
        if section == "stages":
            config.stages = values
            continue
        if not isinstance(values, dict):
            raise UserError(f"{where}: section '{section}' must hold keys, got {shown(values)}")
        if section == "reward":
            config.reward = {name: reward_entry(entry) for name, entry in values.items()}
        elif section == "ranker":
            config.ranker = config.ranker | values
        else:
            for key, value in values.items():
                _set(config, section, key, value, where)
    return config


def override(config: Config, text: str) -> None:
    """Apply one `--section.key=value` (leading dashes optional) to `config`."""
    name, equals, value = text.lstrip("-").partition("=")
    parts = name.split(".")
    if not equals or len(parts) < 2:
        raise UserError(f"'{text}' is no setting: write --section.key=value, for example --train.lr=1e-4")
    _section(parts[0], "command line")
    if parts[0] == "stages":
        raise UserError("command line: stages are changed in the file")
    try:
        value = parse_yaml(value) if value else ""
    except ValueError:
        raise UserError(f"command line: cannot read the value of '{text}'") from None
    if parts[0] == "ranker":  # another ranker has other options
        config.ranker = ({} if parts[1] == "name" else config.ranker) | {".".join(parts[1:]): value}
    elif parts[0] != "reward":
        _set(config, parts[0], ".".join(parts[1:]), value, "command line")
    elif len(parts) == 2:
        config.reward[parts[1]] = reward_entry(value)
    elif len(parts) == 3:
        config.reward[parts[1]] = config.reward.get(parts[1], {}) | {parts[2]: value}
    else:
        raise UserError(f"command line: '{name}' has too many parts: write --reward.NAME.option=value")


def reward_entry(entry: object) -> dict:
    """`top1_hit: 2.0` means `top1_hit: {weight: 2.0}`, and `top1_hit:` its defaults."""
    return entry if isinstance(entry, dict) else {} if entry is None else {"weight": entry}


def _section(name: str, where: str) -> None:
    sections = [f.name for f in dataclasses.fields(Config)]
    if name not in sections:
        raise UserError(f"{where}: unknown section '{name}'{nearest(str(name), sections)}")


def _set(config: Config, section: str, key: str, value: object, where: str) -> None:
    target = getattr(config, section)
    known = {f.name: f for f in dataclasses.fields(target)}
    if key not in known:
        raise UserError(f"{where}: unknown key '{section}.{key}'{nearest(str(key), known)}")
    hint = typing.get_type_hints(type(target))[key]
    setattr(target, key, cast(value, hint, known[key].metadata, f"{where}: {section}.{key}"))


def cast(value: object, hint: type, limits: typing.Mapping, where: str):
    """`value` as type `hint` within `limits` (low, high, choices), or UserError."""
    if hint is bool:
        if not isinstance(value, bool):
            raise UserError(f"{where} must be true or false, got {shown(value)}")
    elif hint is str:
        if not isinstance(value, str):
            raise UserError(f"{where} must be text, got {shown(value)} (quote it)")
        if re.search("[\x00-\x1f\x7f\ud800-\udfff]", value) or any(len(part.encode()) > 255 for part in value.split("/")):
            raise UserError(f"{where} must be a name or a path, got {shown(value)}")  # the system would refuse it later, and less clearly
    elif typing.get_origin(hint) is list:
        value = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{where} must be a list of names, got {shown(value)}")
    else:  # int or float
        number = value
        try:
            if not isinstance(value, bool):  # PyYAML leaves `1e-5` a string
                number = float(value) if isinstance(value, str) or abs(value) > 2**53 else value
        except (TypeError, ValueError, OverflowError):
            number = None
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise UserError(f"{where} must be a number, got {shown(value)}")
        if hint is int and number != int(number):
            raise UserError(f"{where} must be a whole number, got {shown(value)}")
        value = hint(number)
        low, high = limits.get("low"), limits.get("high")
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise UserError(f"{where} must be {bounds}, got {value}")
    choices = limits.get("choices")
    if choices and value not in choices:
        raise UserError(f"{where} must be one of {', '.join(choices)}, got {shown(value)}{nearest(str(value), choices)}")
    return value


def options(function: typing.Callable, given: dict, where: str, name: str, taken: int, more: typing.Sequence[str] = ()) -> dict:
    """The options `given` in the section `name`, cast as the parameters of `function` say, the first `taken` aside. Raises UserError.

    `more` are options that are somebody else's, named in the error for an unknown one.
    """
    accepted = {p.name: p for p in list(inspect.signature(function).parameters.values())[taken:]}
    hints = typing.get_type_hints(function)
    for key in given:
        if key not in accepted:
            raise UserError(f"{where}: {name} has no option '{key}'{nearest(str(key), [*more, *accepted])}")
    missing = [p.name for p in accepted.values() if p.default is p.empty and p.name not in given]
    if missing:
        raise UserError(f"{where}: {name} needs its option '{missing[0]}': --{name}.{missing[0]}=value")
    return {key: cast(value, hints[key], {}, f"{where}: {name}.{key}") for key, value in given.items()}


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
