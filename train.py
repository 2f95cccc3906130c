"""Train a model to rank by reasoning, on one GPU or none.

    python train.py configs/iranker.yaml [--section.key=value ...] [--dry_run] [--fresh]

It reads from top to bottom as one training step: sample queries -> asks -> groups of completions -> answers ->
rewards -> advantages -> loss -> step -> log. What a method changes (ranker, decision, draw, reward, objective, lesson,
adapter) is a file named in the config. Left out on purpose:

1. a second copy of the model for the reference: it is the policy with its adapter off, or the adapter a stage began
   with;
2. a second model for the critic: it is one layer on the policy's hidden states;
3. an inference server: sampling shares the weights;
4. a sharded model: `torchrun --nproc-per-node N train.py ...` gives every process the whole one and a share of the
   queries.
"""

import logging
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count

import torch
from tqdm import tqdm

from ranker import config as settings, credit, log, passes, preview, rewarding, sources
from ranker.asking import Sample, load_models, local_model
from ranker.data import Group, Query
from ranker.drive import load_ranker, run as rank
from ranker.engine import distributed, memory
from ranker.engine.policy import Policy, load as load_policy, load_prompter
from ranker.engine.sampler import Sampler
from ranker.engine.scoring import Row
from ranker.errors import Parser, UserError, exit_status
from ranker.evaluation import report
from ranker.plugins import Plugin, load as load_plugin
from ranker.run import Run, hidden
from ranker.settings import text as all_settings
from ranker.stages import Stage, at, load as load_stages, new_optimizer, schedule


def main() -> int | None:
    args, config = arguments()
    distributed.start(config.model.device)
    source = sources.training(config.data, config.run.seed, sources.planned(config, args.config))
    validation = sources.held_out(config.data, "validation", config.eval.queries)
    ranker = load_ranker(config.ranker, args.config)
    stages = load_stages(config, ranker, source, args.config)
    prompter = load_prompter(config.model)
    run = Run(config, prompter.chat.version, fresh=args.fresh, dry=args.dry_run)
    if run.finished:
        return run.say_finished()
    longest = preview.rehearse(config, stages, ranker, source, validation, prompter)

    torch.manual_seed(config.run.seed)  # for the fresh adapter; everything later is drawn from (seed, step)
    adapter = load_plugin("lora", config.lora, args.config)
    policy = load_policy(config.model, adapter, run.checkpoint, config.rollout.max_new_tokens)
    sampler, optimizer = Sampler(policy, config.rollout), new_optimizer(config.train, policy, stages)
    run.restore(policy, optimizer)
    models = load_models(config, sampler, run.folder)
    plan = memory.plan(config, policy, sampler, optimizer, longest, len(validation), ranker)
    step_of = partial(take_step, ranker=ranker, policy=policy, sampler=sampler, optimizer=optimizer, models=models)
    if args.dry_run:
        return preview.show(config, stages[0], policy, plan, ranker, validation, step_of)

    run.begin(policy, plan, sources.names(config))
    if not run.done:
        with plan.phase("validation"):
            run.first_validation(validate(config, sampler, ranker, models, validation, 0), validation)
    for step in run.steps():
        started, stage = time.perf_counter(), at(stages, step)
        if step == stage.first and (step > 1 or config.lora.get("start")):  # its reference is what it begins with
            policy.freeze()
            optimizer.state.clear()
        groups, record = step_of(stage, step, run.state, plan)
        record = {"step": step} | record | run.costs(groups, time.perf_counter() - started, plan)
        run.show(record, stage.rewards)
        if step % config.eval.every == 0 or step == config.train.steps:
            with plan.phase("validation"):
                record["validation"] = validate(config, sampler, ranker, models, validation, step)
        stop = run.keep(record, groups, policy, optimizer)
        if step % config.run.save_every == 0:
            memory.give_back()  # what the C library keeps of freed blocks would grow with the run
        if stop:
            return stop
    run.finish()


def arguments():
    """Return the arguments and the config. Raise UserError."""
    usage = "python train.py CONFIG [--section.key=value ...] [--dry_run] [--fresh]"
    parser = Parser(prog="train.py", description=__doc__, usage=usage, more=all_settings)
    parser.add_argument("config", help="a YAML file, such as configs/iranker.yaml")
    parser.add_argument("--dry_run", action="store_true", help="show a prompt, rewards and estimates; train nothing")
    parser.add_argument("--fresh", action="store_true", help="begin anew; an old run folder is moved aside")
    args, overrides = parser.parse_known_args()
    config = settings.load(args.config, overrides)
    sources.refuse_unmade(sources.names(config), args.config)
    if config.llm.api:
        raise UserError("a server's model can be evaluated, not trained; add --llm.api= --llm.model=")
    return args, config


def take_step(stage: Stage, step: int, state: dict, plan: memory.Plan, *, ranker: Plugin, policy: Policy,
              sampler: Sampler, optimizer: torch.optim.Optimizer | None,
              models: dict) -> tuple[list[Group], dict[str, float]]:
    """Take one training step: sample, reward, learn. Return its groups, and what to log."""
    sample = Sample(sampler, ranker, stage.config.rollout, stage.config.run.seed)
    with plan.phase("sampling"):
        groups = stage.draw.draw(stage.source, sample, partial(judge, stage, models), state)
    found = credit.completions(groups)
    record = log.reward_means(groups) | log.rollout_means(groups)
    record["dead"] = credit.dead(groups)
    if not optimizer and not stage.objective.WHOLE_GROUPS:  # an estimate is for a step that learns from all
        credit.mark(found, torch.ones(len(found), dtype=torch.bool))
    with plan.phase("learning"):
        if optimizer:
            record["lr"] = schedule(optimizer, stage, step - stage.first + 1)
        record |= update(stage, policy, optimizer, groups, step - stage.first + 1)
    return groups, record


_judged = count()  # tells the cohorts of one call of `judge` from those of another


def judge(stage: Stage, models, groups: Sequence[Group], discount: float = 1.0) -> list[Group]:
    """Return the groups of all processes with their rewards, each completion `alive` (learned from) or not."""
    groups, call = list(groups), next(_judged)
    for c in credit.completions(groups):
        c.cohort = call, distributed.rank(), c.cohort
    groups = [group for part in distributed.gather(groups) for group in part]
    rewarding.score(stage.rewards, groups, models)
    credit.add_returns(groups, discount)
    stage.objective.alive(groups)
    return groups


def update(stage: Stage, policy: Policy, optimizer: torch.optim.Optimizer | None, groups: Sequence[Group],
           step: int) -> dict[str, float]:
    """Take the optimizer steps of one step, on the completions that are alive, and return what to log.

    Each process computes its share. Nothing alive: no optimizer step. With `optimizer` None the gradients are computed
    and thrown away, for an estimate of time and memory.
    """
    train, objective, temperature = stage.config.train, stage.objective, stage.config.rollout.temperature
    taught, budget = [c for c in credit.completions(groups) if c.alive], train.tokens_per_batch
    if not taught:
        return {"loss": 0.0, "grad_norm": 0.0}
    rows = passes.rows_of(groups, math.inf if objective.WHOLE_GROUPS else budget)
    rows = [rows[i] for i in distributed.share(len(rows))]
    adapter = list(policy.adapter_parameters().values())
    own = [parameter for name in stage.own for parameter in policy.own[name].parameters()]
    several = train.updates_per_rollout * train.minibatches > 1  # else the policy still is the one that sampled
    sums, seen = {}, 0  # seen: units learned from
    with policy.training_graph():
        passes.run(objective.passes() | ({"old"} if several else set()), taught, policy, rows, temperature, budget)
        record = objective.targets(groups)
        for number, minibatch in enumerate(minibatches(rows, train, f"{stage.config.run.seed}/minibatch/{step}")):
            units = distributed.total(passes.units(minibatch, objective.UNIT))  # of this optimizer step
            drift, seed = 0.0, random.Random(f"{stage.config.run.seed}/loss/{step}/{number}").getrandbits(60)
            for batch in passes.batched(policy, minibatch, temperature, budget, step, seed, stage.own):
                loss, parts = objective.loss(batch)
                (loss / units).backward()
                passes.keep_first("old", batch)
                drift += parts.get("drift", 0.0) / units
                for name, value in (parts | {"loss": loss.item()}).items():
                    sums[name] = sums.get(name, 0.0) + value
            seen += units
            distributed.sum_gradients(adapter + own)
            norms = [torch.nn.utils.clip_grad_norm_(part, train.grad_clip or math.inf) for part in (adapter, own)]
            drifted = 0 < train.target_kl < distributed.total(drift)
            if not sum(norms).isfinite():  # it must not reach the weights
                logging.warning("the gradient is not finite; this step changes nothing")
            elif optimizer and not drifted:
                optimizer.step()
                for name, value in policy.adapter.after_step(policy, optimizer).items():
                    record[name] = record.get(name, 0.0) + value
            for parameter in adapter + own:
                parameter.grad = None
            if drifted:
                break
    means = {name: value / seen for name, value in distributed.summed(sums).items()}
    norm = norms[0].item() if norms[1].isfinite() else math.inf
    adapter_norm = torch.stack([p.detach().norm() for p in adapter]).norm().item()
    gaps = passes.sampler_gap(taught if stage.draw.GIVES != "texts" else [], policy.device)
    return record | means | gaps | {"grad_norm": norm, "adapter_norm": adapter_norm}


def minibatches(rows: Sequence[Row], train: settings.Train, seed: str) -> Iterator[list[Row]]:
    """Yield the rows of each optimizer step: every pass over them in an order of its own, cut into
    `train.minibatches`."""
    rng = random.Random(seed)
    for _ in range(train.updates_per_rollout):
        order = rng.sample(rows, len(rows)) if train.minibatches > 1 else rows
        for i in range(min(train.minibatches, max(distributed.gather(len(rows))))):
            yield order[i::train.minibatches]


def validate(config: settings.Config, sampler: Sampler, ranker: Plugin, models: dict, queries: Sequence[Query],
             step: int) -> dict[str, float]:
    """Return MRR per scenario and its mean over the tasks, by greedy decoding; the code is that of evaluate.py."""
    mine = queries[distributed.rank()::distributed.size()]
    total = sum(ranker.calls(len(q.ids)) for q in mine)
    with tqdm(total=total, desc=f"validation at step {step}", unit="ask", leave=False, dynamic_ncols=True,
              disable=hidden()) as bar:
        rankings = rank(ranker, mine, models | {"policy": local_model(sampler, bar.update)}, config.run.seed)
    rankings = [r for part in distributed.gather(rankings) for r in part]
    row = report.model_row("policy", [rankings], config.eval.relevance_level)
    means = {"mean": row.mean("MRR"), "mean_strict": row.mean("MRR", strict=True)}
    return {s: row.by_scenario("MRR", s) for s in row.scenarios()} | means


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    sys.exit(exit_status(main))
