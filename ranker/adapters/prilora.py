"""PRILoRA-style (arXiv 2401.11316): LoRA whose rank rises with depth, and whose A is pruned while it learns.

The rank of layer l of L is first + (last - first) * l / (L - 1), rounded, for all its modules; the output's scale alpha
/ rank is the same in every layer (or alpha is, with `scale: fixed_alpha`). Every `interval` steps after `start`, in
each row of A the `share` of entries of the lowest |A_ij| * x_j is set to zero, where x_j is a moving average of the
norm of the module's j-th input over the tokens that were learned from; zeros go on learning, so this is no mask, and
Adam's moments stay as they are unless `moments` says so. Ours, since the abstract is all that could be read: that
formula and all numbers; the start behind the warm-up; inputs of learning alone, where states predict tokens that are
learned from.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from ranker.engine import distributed
from ranker.engine.peft_folder import head_name
from ranker.engine.pretrained import ROUTER
from ranker.errors import UserError
from ranker.plugins import setting

OWN = "prilora"  # where the policy keeps the statistics


@dataclass
class Options:
    first: int = setting(4, low=1)  # rank of the first layer
    last: int = setting(12, low=1)  # rank of the last layer
    alpha: float = setting(2.0, low=1e-6)  # of every rank: alpha / rank is this everywhere
    scale: str = setting("constant", choices=("constant", "fixed_alpha"))  # fixed_alpha: alpha is that of the mean rank
    interval: int = setting(40, low=1)  # steps between two prunings
    share: float = setting(0.5, low=0.0, high=0.999)  # of a row's entries that are set to zero; 0: none
    decay: float = setting(0.9, low=0.0, high=1.0)  # of the moving average
    start: int = setting(0, low=0)  # no pruning in or before this step; a warm-up's last is a good one
    moments: bool = False  # whether Adam's moments of what is pruned become zero too


class Statistics(torch.nn.Module):
    """The moving averages [in] of adapted modules by name, zero before the first, and the optimizer steps so far."""

    def __init__(self, sizes: dict[str, int], device: torch.device):
        super().__init__()
        self.squares: dict[str, torch.Tensor] = {}  # of inputs since the last optimizer step, [in]
        for name, size in sizes.items():
            self.register_buffer(key(name), torch.zeros(size, device=device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device=device))  # of the optimizer

    def see(self, name: str, inputs: torch.Tensor) -> None:
        """Take in the inputs [..., in] of a module."""
        found = inputs.detach().float().flatten(0, -2).square().sum(0)
        self.squares[name] = self.squares[name] + found if name in self.squares else found

    def move(self, decay: float) -> None:
        """Move the averages by what was seen since the last call, in all processes."""
        seen = distributed.gather({name: squares.cpu() for name, squares in self.squares.items()})
        for name in dict.fromkeys(name for part in seen for name in part):  # also what only others have seen
            average = getattr(self, key(name))
            norm = sum(part[name] for part in seen if name in part).sqrt().to(average.device)
            if norm.isfinite().all():
                average.copy_(decay * average + (1 - decay) * norm if average.any() else norm)
        self.steps += 1
        self.squares = {}


def key(name: str) -> str:
    """Return a module's name as a buffer's, which holds no dots."""
    return name.replace(".", "/")


def ranks(layers: int, first: int, last: int) -> list[int]:
    """Return the rank of each layer, from `first` to `last` in equal steps, rounded."""
    return [round(first + (last - first) * layer / (layers - 1)) if layers > 1 else first for layer in range(layers)]


def make(causal_lm: torch.nn.Module, options: Options) -> PeftModel:
    """Return the model with a fresh adapter on all linear layers: A drawn from torch's global generator, B zero."""
    head, count = head_name(causal_lm), causal_lm.config.get_text_config().num_hidden_layers
    by_layer, rank_of = ranks(count, options.first, options.last), {}
    for name, module in causal_lm.named_modules():
        layer = re.search(r"\.(\d+)\.", name)
        if isinstance(module, torch.nn.Linear) and name != head and layer and not ROUTER.search(name):
            rank_of[name] = by_layer[int(layer[1])]
    if not rank_of:
        raise UserError("lora.name=prilora finds no linear layer whose name tells its depth; take lora.name=lora")
    mean = sum(by_layer) / count
    alpha_of = {name: options.alpha * (rank if options.scale == "constant" else mean) for name, rank in rank_of.items()}
    adapted = get_peft_model(causal_lm, LoraConfig(
        r=options.last, lora_alpha=options.alpha * mean, lora_dropout=0.0, target_modules=list(rank_of),
        rank_pattern=rank_of, alpha_pattern=alpha_of, task_type="CAUSAL_LM"))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def begin(policy, options: Options) -> None:
    """Look at the inputs of adapted modules while the policy learns, whether its adapter is fresh or saved."""
    modules = dict(adapted_modules(policy))
    statistics = Statistics({name: module.in_features for name, module in modules.items()}, policy.device)
    policy.own[OWN] = statistics
    for name, module in modules.items():
        def look(module, inputs, name=name):
            # Neither sampling, nor the reference, nor a measurement of memory, nor a layer computed again.
            if torch.is_grad_enabled() and policy.taught is not None and not (module.disable_adapters
                                                                              or policy.measured):
                statistics.see(name, inputs[0][:, policy.taught])
        module.register_forward_pre_hook(look)


def adapted_modules(policy) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in policy.causal_lm.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            yield name, module


@torch.no_grad()
def after_step(policy, optimizer: torch.optim.Optimizer, options: Options) -> dict[str, float]:
    """Move the averages, and prune where it is due: `pruned` 1 in the log, next to which the KL is to be watched."""
    statistics = policy.own[OWN]
    statistics.move(options.decay)
    done = int(statistics.steps)  # a step of the run may have several
    due = done > options.start and done % options.interval == 0
    for name, module in adapted_modules(policy) if due else ():
        weight = module.lora_A["default"].weight
        weight.copy_(pruned(weight, getattr(statistics, key(name)), options.share))
        for moment in ("exp_avg", "exp_avg_sq") if options.moments and weight in optimizer.state else ():
            optimizer.state[weight][moment][weight == 0] = 0.0
    return {"pruned": float(due)}


def pruned(weight: torch.Tensor, average: torch.Tensor, share: float) -> torch.Tensor:
    """Return A [r, in] with the floor(in * share) entries of each row zero that have the lowest |A_ij| * x_j.

    Of equal ones the first go, so that the count is exact.
    """
    count = int(weight.shape[1] * share)
    lowest = (weight.abs() * average).argsort(dim=1, stable=True)[:, :count]
    return weight.scatter(1, lowest, 0.0)
