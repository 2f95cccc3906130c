"""Several processes of one run, as torchrun starts them: each samples and learns from its share of a step's queries.

Every process knows all completions of a step (they are small), so all compute the same rewards, advantages and logs.
The gradients are summed, so all take the same optimizer step as a single process with all queries would. Only the first
process writes. With a single process the functions here exchange nothing.
"""

import os
from collections.abc import Sequence
from itertools import compress

import torch
import torch.distributed as processes


def start(device: str = "auto") -> None:
    """Join the other processes if torchrun started this process; `device` is `model.device`, where tensors are."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not processes.is_initialized():
        cuda = device != "cpu" and torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        processes.init_process_group("nccl" if cuda else "gloo")


def size() -> int:
    """Return the number of processes."""
    return processes.get_world_size() if processes.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0 on."""
    return processes.get_rank() if processes.is_initialized() else 0


def first() -> bool:
    """Tell whether this is the first process, the only process that writes."""
    return rank() == 0


def wait() -> None:
    """Wait until all processes have called this."""
    if size() > 1:
        processes.barrier()


def share(count: int) -> range:
    """Return the share of this process in `count` things."""
    return range(rank() * count // size(), (rank() + 1) * count // size())


def gather(item) -> list:
    """Return every process's item, in the order of the processes. Tensors in an item must be on the CPU."""
    items = [item]
    if size() > 1:
        items = [None] * size()
        processes.all_gather_object(items, item)
    return items


def total(number: float) -> float:
    """Return the sum of a number over the processes."""
    return sum(gather(number))


def summed(numbers: dict[str, float]) -> dict[str, float]:
    """Return the sum over the processes of every number, by name; a process may lack a name."""
    found: dict[str, float] = {}
    for part in gather(numbers):
        for name, value in part.items():
            found[name] = found.get(name, 0.0) + value
    return found


def merged(tensors: dict[int, torch.Tensor], device: torch.device) -> dict[int, torch.Tensor]:
    """Return the tensors of all processes by key, on `device`."""
    if size() == 1:
        return tensors
    parts = gather({key: tensor.cpu() for key, tensor in tensors.items()})
    return {key: tensor.to(device) for part in parts for key, tensor in part.items()}


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sum every gradient over the processes.

    A gradient that no process has stays None, since Adam would count zeros as a step.
    """
    if size() == 1:
        return
    learned = map(any, zip(*gather([p.grad is not None for p in parameters])))
    parameters = list(compress(parameters, learned))
    if not parameters:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    processes.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad = part.view_as(parameter)
