"""What no single setting can know: whether those of a config go together."""

import re
import urllib.parse

from ranker import plugins
from ranker.errors import UserError


def check(config, where: str) -> None:
    """Raise UserError for settings that do not go together. A plug-in checks its own options when it is loaded."""
    train, llm = config.train, config.llm
    objective, draw = (plugins.load(kind, getattr(config, kind), where) for kind in ("objective", "draw"))
    for section in ("ranker", "lora"):
        plugins.load(section, getattr(config, section), where)
    waits = objective.adapter_waits()
    if train.warmup + waits >= train.steps and train.warmup + waits:
        said = f"train.warmup ({train.warmup})" + (f" and the {waits} steps in which the adapter waits" if waits
                                                   else "")
        raise UserError(f"{where}: {said} must be below train.steps ({train.steps})")
    if draw.GIVES not in objective.LEARNS_FROM:
        fitting = [name for name in plugins.names("draw")
                   if plugins.module("draw", name).GIVES in objective.LEARNS_FROM]
        raise UserError(f"{where}: draw.name={draw.name} gives {draw.GIVES}, and objective.name={objective.name} learns"
                        f" from {' or '.join(sorted(objective.LEARNS_FROM))}; draws that give them: "
                        f"{', '.join(fitting)}")
    if draw.GIVES in ("samples", "thoughts") and config.rollout.completions_per_prompt < objective.LEAST:
        raise UserError(f"{where}: rollout.completions_per_prompt must be at least {objective.LEAST} for"
                        f" {objective.name}, which compares completions")
    wanting = [name for name in config.reward
               if getattr(plugins.module("reward", name, where), "WANTS_THOUGHT", False)]
    if wanting and not config.model.think:
        raise UserError(f"{where}: with model.think=false no thought is written, and reward {wanting[0]} wants one;"
                        " take another reward, such as top1_hit, ndcg or half")
    if not config.model.think and llm.api:
        raise UserError(f"{where}: a server's prompt cannot begin the answer: leave out model.think=false")
    for lesson in config.data.lessons:
        plugins.load("lesson", lesson, where)
    if config.data.lessons and config.data.train == "world":
        raise UserError(f"{where}: data.lessons need a file in data.train, such as"
                        " `python -m ranker.prepare world --out FILE` writes")
    for name, section in {"": llm, **{f"roles.{n}.": r["llm"] for n, r in config.roles.items() if r["llm"]}}.items():
        check_llm(section, where, name)


def check_llm(llm, where: str, prefix: str = "") -> None:
    """Raise UserError for a server's settings that do not go together; `llm` is a section or its values."""
    api, model, key = (llm[k] if isinstance(llm, dict) else getattr(llm, k) for k in ("api", "model", "key_env"))
    if bool(api) != bool(model):
        raise UserError(f"{where}: a server needs both {prefix}llm.api, such as http://127.0.0.1:8000/v1, and"
                        f" {prefix}llm.model, its name for the model")
    if api and not is_address(api):  # a password in it would stand in every results.json
        raise UserError(f"{where}: {prefix}llm.api must read as http://HOST:PORT/v1 or https://HOST/v1, without a name,"
                        " a password or a question mark")
    if key and not re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII):
        raise UserError(f"{where}: {prefix}llm.key_env must be the name of an environment variable that holds the key,"
                        " not the key")


def is_address(text: str) -> bool:
    """Tell whether `text` is an HTTP address with nothing secret in it."""
    try:
        parts = urllib.parse.urlsplit(text)
        parts.port  # raises for what is no port
    except ValueError:
        return False
    plain = text.isascii() and not re.search(r"[\s@?#]", text)
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname)
