"""Plain LoRA (arXiv 2106.09685) in fp32 on linear layers, made anew or begun from a PEFT adapter made elsewhere."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from ranker.engine.peft_folder import head_name, load_adapter
from ranker.engine.pretrained import ROUTER, is_mixture
from ranker.errors import UserError, nearest
from ranker.plugins import setting


@dataclass
class Options:
    rank: int = setting(16, low=1)
    alpha: float = setting(32.0, low=1e-6)
    targets: str = setting("all-linear")  # as in PEFT: `all-linear`, or module names joined by commas
    layers: int = setting(0, low=0)  # only the last so many: the backward pass ends there; 0: all
    start: str = setting("", file=True)  # a folder with a PEFT adapter to begin with; its rank and targets count then


def make(causal_lm: torch.nn.Module, options: Options) -> PeftModel:
    """Return the model with a fresh adapter: A drawn from torch's global generator, B zero.

    With `start` it has the adapter of that folder instead. Raise UserError for targets that are not there.
    """
    if options.start:
        return load_adapter(causal_lm, Path(options.start).expanduser())
    head, modules = head_name(causal_lm), dict(causal_lm.named_modules())
    targets = options.targets if options.targets == "all-linear" else [t.strip() for t in options.targets.split(",")]
    for target in targets if targets != "all-linear" else ():
        found = [name for name in modules if f".{name}".endswith(f".{target}")]
        if head in found:
            raise UserError(f"lora.targets: an adapter on {head} would be ignored, since scoring slices the head;"
                            " leave it out")
        if not found:
            raise UserError(f"lora.targets: no module of the model is called '{target}'"
                            f"{nearest(target, {name.split('.')[-1] for name in modules})}")
    if targets == "all-linear" and (options.layers or is_mixture(causal_lm.config)):
        # By name: PEFT would adapt router gates as well, and knows no layers of `all-linear`.
        targets = [name for name, module in modules.items()
                   if isinstance(module, torch.nn.Linear) and name != head and not ROUTER.search(name)]
    if options.layers:
        count = causal_lm.config.get_text_config().num_hidden_layers
        targets = [name for name in modules if any(f".{name}".endswith(f".{target}") for target in targets)
                   and (layer := re.search(r"\.(\d+)\.", name)) and int(layer[1]) >= count - options.layers]
    try:
        adapted = get_peft_model(causal_lm, LoraConfig(
            r=options.rank, lora_alpha=options.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"))
    except ValueError as error:
        raise UserError(f"lora.targets '{options.targets}': {str(error).splitlines()[0]}") from None
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted
