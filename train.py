"""Train a model to rank by reasoning, on one GPU or none.

    python train.py configs/iranker.yaml [--section.key=value ...] [--dry_run] [--fresh]

It reads from top to bottom as one training step: sample queries -> asks -> groups of completions -> answers ->
rewards -> advantages -> loss -> step -> log. What a method changes (prompt, decoding, reward, objective) is a file
named in the config. Left out on purpose: a second copy of the model for the reference (it is the policy with its
adapter off) or for the critic (it is one layer on the policy's hidden states), an inference server (sampling shares the
weights), a sharded model (`torchrun --nproc-per-node N train.py ...` gives every process the whole one and a share of the
queries).
"""

import logging
import math
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from tqdm import tqdm

from ranker import checkpoint, config as settings, distributed, llms, log, losses, memory, report, rewarding, sources, states, thoughts
from ranker.data import Completion, Group
from ranker.drive import load_ranker, run as rank
from ranker.errors import Parser, UserError, exit_status
from ranker.provenance import interpreter, provenance
from ranker.policy import Policy, load as load_policy, load_prompter
from ranker.rollout import Sampler, answer_mask, greedy_model
from ranker.score import Row, batches, pack, score, score_all, stack
from ranker.stages import Stage, load as load_stages
from ranker.states import Experience


def main() -> int | None:
    parser = Parser(prog="train.py", description=__doc__, usage="python train.py CONFIG [--section.key=value ...] [--dry_run] [--fresh]")
    parser.add_argument("config", help="a YAML file, such as configs/iranker.yaml")
    parser.add_argument("--dry_run", action="store_true", help="show a prompt, rewards and estimates; train nothing")
    parser.add_argument("--fresh", action="store_true", help="begin anew; an old run folder is moved aside")
    args, overrides = parser.parse_known_args()
    config = settings.load(args.config, overrides)
    if config.llm.api:
        raise UserError("a server's model can be evaluated, not trained; add --llm.api= --llm.model=")
    distributed.start(config.model.device)
    next_query = sources.training(config.data, config.run.seed)
    validation = sources.held_out(config.data, "validation", config.eval.queries)
    ranker = load_ranker(config.ranker, args.config)
    stages = load_stages(config, ranker, next_query, args.config)
    run_dir = Path(config.run.dir)
    prompter = load_prompter(config.model)
    done = 0 if args.dry_run else checkpoint.inspect_run(config, args.fresh, prompter.chat.version)
    if done is None:
        print(f"{run_dir} is finished. Evaluate it: {interpreter()} evaluate.py --ckpt {run_dir}/best   Train anew: add --fresh")
        return 0

    if distributed.first():
        for words in report.strange_texts(config.model.name, [config.data.train, config.data.validation]):
            print(words)
    some = (*validation, *map(next_query, range(config.rollout.prompts_per_step)))
    longest = max(some, key=lambda q: len(str(q.context)) + sum(map(len, q.texts.values())))
    ask = ranker.sampled_ask(longest, random.Random(0), len(longest.ids))  # encoded by the plan: better to fail now than at step 500
    for stage in stages:
        judged(stage.reward_parts, ask, llms.right_answer)
    prompter.check(llms.rehearsal(ranker, max(some, key=lambda q: len(q.ids))))
    torch.manual_seed(config.run.seed)  # for the fresh adapter; everything later is drawn from (seed, step)
    policy = load_policy(config.model, config.lora, run_dir / "last" if done else None, config.rollout.max_new_tokens)
    sampler = Sampler(policy, config.rollout)
    optimizer = torch.optim.AdamW(policy.adapter_parameters().values(), lr=config.train.lr, weight_decay=config.train.weight_decay)
    if any("critic" in stage.objective.NEEDS for stage in stages):
        policy.add_critic()
        optimizer.add_param_group({"params": list(policy.critic.parameters()), "lr": config.train.value_lr})
    if done:  # before the run folder is written to
        checkpoint.restore(run_dir / "last", policy, optimizer)
    plan = memory.plan(config, policy, sampler, optimizer, ask, len(validation), ranker.calls(len(longest.ids)),
                       len(ranker.sampled_asks(longest, random.Random(0))))
    if args.dry_run:
        return dry_run(config, stages[0], policy, plan, sampler, ranker, validation)
    distributed.wait()  # until all have read what stands there
    if distributed.first():
        record = provenance(config, policy.device, sources.names(config), prompter.chat.version)
        held = checkpoint.start_run(config, args.fresh, record)
        for name in ("metrics.jsonl", "completions.jsonl", "thoughts.jsonl"):  # what a crash left behind the last checkpoint is written again
            log.cut_after(run_dir / name, done or -1)
        print(plan.outlook())
        if done:
            print(f"resuming {run_dir} after step {done}")
    distributed.wait()
    watch = log.watch(log.collapse(config.train.collapse_margin, config.train.collapse_steps),
                      log.GAP_BF16 if policy.head.weight.dtype == torch.bfloat16 else log.GAP)
    best = log.standing({})
    for record in log.read(run_dir / "metrics.jsonl"):  # of the run that goes on
        watch(record)
        if record["step"]:  # of trained ones
            best = max(best, log.standing(record))

    stopped_by, broken = catch_signals(), 0
    position = checkpoint.describe(run_dir / "last")["position"] if done else {}
    if not done:
        with plan.phase("validation"):
            before = validate(config, sampler, ranker, validation, 0)
        if distributed.first():
            log.append(run_dir / "metrics.jsonl", [{"step": 0, "validation": before}])
    bar = tqdm(range(done + 1, config.train.steps + 1), desc="train", unit="step", initial=done, total=config.train.steps, dynamic_ncols=True,
               disable=not distributed.first())
    for step in bar:
        started = time.perf_counter()
        stage = next(s for s in reversed(stages) if s.first <= step)
        now, objective = stage.config, stage.objective
        if step == stage.first > 1:  # its reference is the policy it begins with
            policy.freeze()
            optimizer.state.clear()
        with plan.phase("sampling"):
            experience, rewards = roll_out(stage, sampler, ranker, position)
        groups = experience.groups  # of all processes
        record = {"step": step, **log.reward_means(rewards), **log.rollout_means(groups)}
        # Return, of the task part and of all; an ask of its own has one reward, a step of an episode those after it too.
        task, total = (losses.returns_to_go(torch.tensor([r[part] for row in rewards for r in row]), experience.following, now.rollout.discount)
                       for part in ("task", "total"))  # [completions] each
        credit, alive = objective.credit(now.train, total, task, torch.tensor(experience.cohorts))  # [completions] each
        record["dead"] = 1 - alive.float().mean().item()
        for group, rate, wait in zip(optimizer.param_groups, (now.train.lr, now.train.value_lr), (now.train.value_warmup, 0)):
            group["lr"] = rate * learning_rate_share(now.train, step - stage.first + 1, wait)
        record["lr"] = optimizer.param_groups[0]["lr"]
        with plan.phase("learning"):
            learned, advantages = update(now, policy, optimizer, objective, experience, credit, alive, step - stage.first + 1)
        record |= learned
        record["bad"] = int(not math.isfinite(record["grad_norm"]))
        if alive.any():  # a step that learned nothing says nothing
            broken = (broken + 1) * record["bad"]
        seconds = time.perf_counter() - started
        record |= {"seconds": seconds, "peak_gb": max(plan.measured.values()) / 1e9,
                   "tokens_per_second": sum(len(c.ids) for g in groups for c in g.completions) / seconds}
        show(bar, record, stage.reward_parts)
        if step == done + 1 and distributed.first():
            tqdm.write(plan.table())

        last = step == config.train.steps
        if step % config.eval.every == 0 or last:
            with plan.phase("validation"):
                record["validation"] = validate(config, sampler, ranker, validation, step)
        improved, best = log.standing(record) > best, max(best, log.standing(record))
        signs = watch(record)
        gone_bad = broken == config.train.max_bad_steps
        stop = max(distributed.gather(stopped_by[0] if stopped_by else 0))
        if distributed.first():
            log.append(run_dir / "completions.jsonl", log.completion_records(step, groups, rewards, advantages))
            log.append(run_dir / "thoughts.jsonl", thoughts.kept(step, groups, rewards, advantages))
            log.append(run_dir / "metrics.jsonl", [record])
            for sign in signs.new:
                tqdm.write(sign)
            if "validation" in record:
                log.curves(run_dir)
            if improved or last or stop or gone_bad or signs.stop or step % config.run.save_every == 0:
                checkpoint.save(config, policy, optimizer, step, record.get("validation", {}), improved, signs.notes, position)
        if step % config.run.save_every == 0:
            memory.give_back()  # what the C library keeps of freed blocks would grow with the run
        if gone_bad:
            raise UserError(f"the gradient was not finite in {broken} steps in a row (the last is {step}), which changed nothing; {run_dir}/last is"
                            " saved; begin anew with a lower train.lr, or look at the rewards in completions.jsonl")
        if signs.stop:
            raise UserError(f"{signs.stop}; {run_dir}/last is saved")
        if stop and not last:
            bar.close()
            if distributed.first():
                print(f"stopped after step {step}; the same command goes on from there")
            return 128 + stop
    if distributed.first():
        held.close()
        finish(config, run_dir, signs.notes)
    distributed.wait()


def roll_out(stage: Stage, sampler: Sampler, ranker, position: dict[str, int]) -> tuple[Experience, list[list[dict[str, float]]]]:
    """What one step learns from: queries -> asks -> groups of completions -> answers, of all processes, and [groups][G] of named reward parts.

    With `rollout.refills` more is drawn until as many groups as wanted have unlike rewards. `position` says how much of
    each source was drawn so far, and how often (`draws`), by all stages; it goes on here.
    """
    rollout, mine = stage.config.rollout, distributed.share(stage.config.rollout.prompts_per_step)
    experience, rewards = Experience(), []
    for _ in range(1 + rollout.refills):
        source = rollout.traces or "queries"
        start = position.get(source, 0)
        queries = [stage.source(start + i) for i in mine]
        position[source], position["draws"] = start + rollout.prompts_per_step, position.get("draws", 0) + 1
        seed = random.Random(f"{stage.config.run.seed}/sample/{position['draws']}").getrandbits(60)
        drawn = getattr(states, rollout.states)(sampler, ranker, queries, rollout.completions_per_prompt, rollout.temperature, seed, mine.start)
        experience = states.joined([experience, *distributed.gather(drawn)])
        rewards = rewarding.score(stage.reward_parts, experience.groups)
        alive = losses.live(torch.tensor([r["task"] for row in rewards for r in row]), torch.tensor(experience.cohorts), stage.config.train.min_spread)
        if len({c for c, lives in zip(experience.cohorts, alive) if lives}) >= rollout.prompts_per_step:
            break
    return experience, rewards


def update(config: settings.Config, policy: Policy, optimizer, objective: ModuleType, experience: Experience, credit: torch.Tensor,
           alive: torch.Tensor, step: int) -> tuple[dict[str, float], list[float]]:
    """Optimizer steps on the completions that are `alive`; credit, alive [completions]. Each process computes its share of them.

    Returns what to log, and every completion's advantage (mean over its tokens, 0 where it took no part). Nothing
    alive: no step. With `optimizer` None the gradients are computed and thrown away, for an estimate of time and memory.
    """
    train, temperature, budget = config.train, config.rollout.temperature, config.train.tokens_per_batch
    groups = experience.groups
    completions = [c for g in groups for c in g.completions]
    taught = alive.nonzero()[:, 0].tolist()  # keys: completions are numbered through all groups
    advantages = [0.0] * len(completions)
    if not taught:
        return {"loss": 0.0, "grad_norm": 0.0}, advantages
    device = policy.device
    rows = pack([g.prompt for g in groups], [[c.ids for c in g.completions] for g in groups],
                math.inf if "cohort" in objective.NEEDS else budget, lambda key: bool(alive[key]))
    rows = [rows[i] for i in distributed.share(len(rows))]
    sampled = {k: torch.tensor(completions[k].logprobs, device=device) for k in taught}
    repeated = {k: torch.full_like(sampled[k], float(credit[k])) for k in taught}
    adapter = list(policy.adapter_parameters().values())
    critic = list(policy.critic.parameters()) if "critic" in objective.NEEDS else []
    several = train.updates_per_rollout * train.minibatches > 1
    sums: dict[str, float] = {}
    seen = 0  # tokens learned from
    with policy.training_graph():
        before = {}  # passes of the policy as it is before the first optimizer step: name -> key -> [tokens]
        if train.beta > 0 and "reference" in objective.NEEDS:
            with policy.reference():
                before["reference"], _ = score_all(policy, rows, temperature, budget)
        if several or critic:  # with a single step the policy still is the one that sampled
            before["old"], before["value"] = score_all(policy, rows, temperature, budget)
        before = {name: distributed.merged(tensors, device) for name, tensors in before.items()}
        if "answer" in objective.NEEDS:
            before["answer"] = {k: answer_mask(policy, completions[k].ids) for k in taught}
        if "cohort" in objective.NEEDS:
            before["cohort"] = {k: torch.full_like(sampled[k], experience.cohorts[k]) for k in taught}
        signals, record = objective.signals(train, repeated, before)
        scored = dict(before.get("old", {}))
        for minibatch in minibatches(rows, train, f"{config.run.seed}/minibatch/{step}"):
            # The denominator of this optimizer step.
            tokens = distributed.total(sum(len(sampled[k]) for row in minibatch for k in row.keys))
            drift = 0.0
            for batch in batches(minibatch, budget):
                keys = [k for row in batch for k in row.keys]
                logprobs, values, mask = score(policy, batch, temperature)  # [N, T]
                loss, parts = objective.loss(train, step, logprobs, values, mask,
                                             {name: stack(signal, keys, mask) for name, signal in signals.items() if signal}, tokens)
                loss.backward()
                if "old" not in before:
                    scored.update(zip(keys, (line[kept] for line, kept in zip(logprobs.detach(), mask))))
                drift += parts.get("drift", 0.0) / tokens
                for name, value in (parts | {"loss": loss.item() * tokens}).items():
                    sums[name] = sums.get(name, 0.0) + value
            seen += tokens
            distributed.sum_gradients(adapter + critic)
            drift = distributed.total(drift)
            norm, critic_norm = (torch.nn.utils.clip_grad_norm_(part, train.grad_clip or math.inf) for part in (adapter, critic))
            drifted = train.target_kl > 0 and drift > train.target_kl
            if not (norm + critic_norm).isfinite():  # it must not reach the weights
                logging.warning("the gradient is not finite; this step changes nothing")
            elif optimizer and not drifted:
                optimizer.step()
            for parameter in adapter + critic:
                parameter.grad = None
            if drifted:
                break
    for k in taught:
        advantages[k] = signals["advantage"][k].mean().item()
    scored = distributed.merged(scored, device)
    # Between sampling and scoring, before the first optimizer step.
    # Traces have none; what saw a hint is scored without it.
    gap = torch.cat([(scored[k] - sampled[k]).abs() for k in scored])
    gap = gap[~gap.isnan()].tolist() if config.rollout.states != "hinted" else []
    return record | {name: value / seen for name, value in distributed.summed(sums).items()} | {
        "sampler_gap": sum(gap) / len(gap) if gap else math.nan, "sampler_gap_max": max(gap, default=math.nan),
        "grad_norm": norm.item() if critic_norm.isfinite() else math.inf,
        "adapter_norm": torch.stack([p.detach().norm() for p in adapter]).norm().item()}, advantages


def minibatches(rows: list[Row], train: settings.Train, seed: str) -> Iterator[list[Row]]:
    """The rows of each optimizer step: every pass over them in an order of its own, cut into `train.minibatches`."""
    rng = random.Random(seed)
    for _ in range(train.updates_per_rollout):
        order = rng.sample(rows, len(rows)) if train.minibatches > 1 else rows
        for i in range(min(train.minibatches, max(distributed.gather(len(rows))))):
            yield order[i::train.minibatches]


def validate(config: settings.Config, sampler: Sampler, ranker, queries, step: int) -> dict[str, float]:
    """MRR per scenario and its mean over the tasks, by greedy decoding; the code is that of evaluate.py."""
    mine = queries[distributed.rank()::distributed.size()]
    total = sum(ranker.calls(len(q.ids)) for q in mine)
    with tqdm(total=total, desc=f"validation at step {step}", unit="ask", leave=False, dynamic_ncols=True, disable=not distributed.first()) as bar:
        rankings = rank(ranker, mine, greedy_model(sampler, bar.update), config.run.seed)
    row = report.model_row("policy", [[r for part in distributed.gather(rankings) for r in part]], config.eval.relevance_level)
    return {s: row.by_scenario("MRR", s) for s in row.scenarios()} | {"mean": row.mean("MRR"), "mean_strict": row.mean("MRR", strict=True)}


def learning_rate_share(train: settings.Train, step: int, wait: int = 0) -> float:
    """Share of a rate in step `step` (from 1): linear warm-up, then constant or a cosine down to a tenth.

    `wait` steps come before all that, such as those in which only the values learn.
    """
    step, steps = step - wait, train.steps - wait
    if step <= train.warmup:
        return max(step, 0) / (train.warmup + 1)
    if train.schedule == "constant":
        return 1.0
    progress = (step - train.warmup) / max(steps - train.warmup, 1)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def show(bar: tqdm, record: dict, reward_parts) -> None:
    """The line people watch. The loss is not in it: with one update per rollout it is about zero by construction."""
    parts = {p.name: f"{record[f'reward/{p.name}']:.2f}" for p in reward_parts}
    kl = {"kl": f"{record['kl']:.4f}"} if "kl" in record else {}
    bar.set_postfix({"reward": f"{record['reward']:.3f}", **parts, "parsed": f"{record['parse_rate']:.0%}",
                     "dropped": f"{record['dead']:.0%}", "len": f"{record['length']:.0f}", **kl,
                     "tok/s": f"{record['tokens_per_second']:.0f}"})


def catch_signals() -> list[int]:
    """A list that holds the signal once one came: the step is finished and saved. A second one ends at once."""
    caught: list[int] = []

    def note(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        tqdm.write("finishing this step, then saving; once more to stop at once")

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return caught


def finish(config: settings.Config, run_dir: Path, notes: list[str]) -> None:
    """Print the before and after table, what was announced of the run, and what to type next."""
    records = [r for r in log.read(run_dir / "metrics.jsonl") if "validation" in r]
    first, top = records[0], max(records[1:], key=log.standing)
    rows = [("before training", first), (f"best, step {top['step']}", top), (f"last, step {records[-1]['step']}", records[-1])]
    columns = [name for name in first["validation"]]
    print(f"\nMRR on the validation queries (at most {config.eval.queries} per task), greedy decoding:\n")
    print(report.markdown(["", *columns], [[name, *(f"{r['validation'][c]:.3f}" for c in columns)] for name, r in rows]))
    for note in notes:
        print(f"\nWARNING {note}")
    print(f"\ncurves: {run_dir}/curves.png   next: {interpreter()} evaluate.py --ckpt {run_dir}/best")


def judged(reward_parts, ask, write) -> tuple[Completion, dict[str, float]]:
    """What somebody who knows the relevance writes, and its rewards. Raises UserError for rewards that do not fit the ask."""
    [(_, completion)] = llms.scripted(write)([ask])
    return completion, rewarding.score(reward_parts, [Group(ask, [], [completion])])[0][0]


def dry_run(config, stage: Stage, policy: Policy, plan: memory.Plan, sampler: Sampler, ranker, validation) -> None:
    """One prompt, a right and a wrong completion with their rewards, and estimates from one real step. Trains nothing."""
    ask = ranker.sampled_ask(validation[0], random.Random(f"{config.run.seed}/ask/0"))
    print(policy.tokenizer.decode(policy.prompter.encode(ask)))
    for name, write in (("right", llms.right_answer), ("wrong", llms.wrong_answer)):
        completion, parts = judged(stage.reward_parts, ask, write)
        shown = "  ".join(f"{part} {value:g}" for part, value in parts.items())
        print(f"\n--- a {name} completion\n{completion.text}\n    answer: {completion.answer.status} {', '.join(map(str, completion.answer.value))}\n    reward: {shown}")
    print(f"\n{plan.outlook()}\n\nmeasuring one step (nothing is trained) ...", flush=True)
    started = time.perf_counter()
    with plan.phase("sampling"):
        experience, _ = roll_out(stage, sampler, ranker, {})
    sampled = time.perf_counter()
    groups, count = experience.groups, len(experience.cohorts)
    with plan.phase("learning"):
        update(stage.config, policy, None, stage.objective, experience, torch.ones(count), torch.ones(count, dtype=torch.bool), stage.config.train.steps)
    ended = time.perf_counter()
    asks = sum(ranker.calls(len(q.ids)) for q in validation)
    validations = 1 + math.ceil(config.train.steps / config.eval.every)
    # A validation ask has a prompt of its own, so it costs more than a sampled completion: this is a lower bound.
    seconds = config.train.steps * (ended - started) + validations * asks * (sampled - started) / count
    print(f"steps      {config.train.steps}, the first one of {len(groups)} prompts with {count} completions in all\n"
          f"validation {validations} times, {len(validation)} queries, {asks} asks each\n"
          f"time       about {seconds / 60:.0f} min on {policy.device}: {sampled - started:.1f} s sampling and at most {ended - sampled:.1f} s"
          f" learning a step (before training completions can be longer)\n\n{plan.table()}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    sys.exit(exit_status(main))
