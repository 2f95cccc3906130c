"""What no single setting can know: whether those of a config go together."""

import re
import urllib.parse
from pathlib import Path

from ranker.errors import UserError, nearest


def check(config, where: str) -> None:
    """What no single field can know. Rewards check their own names and options when they are loaded."""
    if config.train.warmup >= config.train.steps and config.train.warmup:
        raise UserError(f"{where}: train.warmup ({config.train.warmup}) must be below train.steps ({config.train.steps})")
    for key, name, folder in (("ranker.name", config.ranker["name"], "rankers"), ("train.objective", config.train.objective, "objectives")):
        known = [p.stem for p in (Path(__file__).parent / folder).glob("*.py") if p.stem != "__init__"]
        if name not in known:
            raise UserError(f"{where}: unknown {key} '{name}'{nearest(str(name), known)}")
    train, ppo = config.train, config.train.objective == "ppo"
    if train.value_warmup + train.warmup >= train.steps and train.value_warmup:
        raise UserError(f"{where}: train.value_warmup ({train.value_warmup}) and train.warmup ({train.warmup}) leave none of"
                        f" {train.steps} steps to the policy")
    if ppo and not train.value_lr:
        raise UserError(f"{where}: train.objective=ppo needs a learning rate for its value head: --train.value_lr=1e-2")
    if train.kl_in == "reward" and not ppo:
        raise UserError(f"{where}: train.kl_in=reward needs train.objective=ppo; a group's advantage has no place for it")
    states, wanted = config.rollout.states, {"recorded": "sft", "hinted": "sft", "identifiers": "ranknet"}.get(config.rollout.states)
    if (wanted or train.objective) != train.objective or (train.objective == "ranknet" and not wanted):
        raise UserError(f"{where}: rollout.states={states} does not go with train.objective={train.objective}"
                        f"{f', only with {wanted}' if wanted else '; it needs rollout.states=identifiers'}")
    if bool(config.rollout.traces) != (states == "recorded"):
        raise UserError(f"{where}: rollout.traces names the file of rollout.states=recorded; give both or none")
    if config.data.teacher and config.data.train == "world":
        raise UserError(f"{where}: data.teacher needs a file in data.train, such as `python -m ranker.prepare world --out FILE` writes")
    if config.rollout.completions_per_prompt < 2 and train.objective == "grpo":
        raise UserError(f"{where}: rollout.completions_per_prompt must be at least 2 for grpo, which compares completions")
    check_llm(config.llm, where)


def check_llm(llm, where: str) -> None:
    if bool(llm.api) != bool(llm.model):
        raise UserError(f"{where}: a server needs both llm.api, such as http://127.0.0.1:8000/v1, and llm.model, its name for the model")
    if llm.api and not is_address(llm.api):  # a password in it would stand in every results.json
        raise UserError(f"{where}: llm.api must read as http://HOST:PORT/v1 or https://HOST/v1, without a name, a password or a question mark")
    if llm.key_env and not re.fullmatch(r"[A-Za-z_]\w*", llm.key_env, re.ASCII):
        raise UserError(f"{where}: llm.key_env must be the name of an environment variable that holds the key, not the key")


def is_address(text: str) -> bool:
    """Whether `text` is an HTTP address with nothing secret in it."""
    try:
        parts = urllib.parse.urlsplit(text)
        parts.port  # raises for what is no port
    except ValueError:
        return False
    plain = text.isascii() and not re.search(r"[\s@?#]", text)
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname)
