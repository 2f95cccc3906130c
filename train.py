"""Train a model to rank by reasoning, on one GPU or none.

    python train.py configs/iranker.yaml [--section.key=value ...] [--dry_run] [--fresh]

It reads from top to bottom as one training step: sample queries -> asks -> groups of completions -> answers ->
rewards -> advantages -> loss -> step -> log. What a method changes (prompt, decoding, reward, loss) is a file named in
the config. Left out on purpose: a value network (the group's mean is the baseline), a second copy of the model for the
reference (it is the policy with its adapter off), an inference server (sampling shares the weights), several GPUs
(start one run per card for seeds and sweeps).
"""

import logging
import math
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from ranker import checkpoint, config as settings, llms, log, losses, report, rewarding, sources
from ranker.answers import parse
from ranker.data import Completion, Group
from ranker.drive import load_ranker, run as rank
from ranker.errors import Parser, UserError, exit_status
from ranker.provenance import interpreter, provenance
from ranker.policy import Policy, load as load_policy
from ranker.rollout import Sampler, greedy_model, sample_groups
from ranker.score import batches, pack, score, score_all, stack

MAX_BROKEN_STEPS = 5  # steps in a row without a finite gradient


def main() -> int | None:
    parser = Parser(prog="train.py", description=__doc__, usage="python train.py CONFIG [--section.key=value ...] [--dry_run] [--fresh]")
    parser.add_argument("config", help="a YAML file, such as configs/iranker.yaml")
    parser.add_argument("--dry_run", action="store_true", help="show a prompt, rewards and estimates; train nothing")
    parser.add_argument("--fresh", action="store_true", help="begin anew; an old run folder is moved aside")
    args, overrides = parser.parse_known_args()
    config = settings.load(args.config, overrides)
    reward_parts = rewarding.load(config.reward, args.config)
    next_query = sources.training(config.data, config.run.seed)
    validation = sources.held_out(config.data, "validation", config.eval.queries)
    ranker = load_ranker(config.ranker.name)
    run_dir = Path(config.run.dir)
    done = 0 if args.dry_run else checkpoint.inspect_run(config, args.fresh)
    if done is None:
        print(f"{run_dir} is finished. Evaluate it: {interpreter()} evaluate.py --ckpt {run_dir}/best   Train anew: add --fresh")
        return 0

    torch.manual_seed(config.run.seed)  # for the fresh adapter; everything later is drawn from (seed, step)
    policy = load_policy(config.model, config.lora, run_dir / "last" if done else None, config.rollout.max_new_tokens)
    longest = max([next_query(0), *validation], key=lambda q: len(q.ids))
    policy.prompter.encode(ranker.sampled_ask(longest, random.Random(0), len(longest.ids)))  # better to fail now than at step 500
    sampler = Sampler(policy, config.rollout)
    optimizer = torch.optim.AdamW(policy.adapter_parameters().values(), lr=config.train.lr, weight_decay=config.train.weight_decay)
    if args.dry_run:
        return dry_run(config, policy, sampler, ranker, next_query, validation, reward_parts)
    checkpoint.start_run(config, args.fresh, provenance(config, policy.device, sources.names(config.data)))
    for name in ("metrics.jsonl", "completions.jsonl"):  # what a crash left behind the last checkpoint is written again
        log.cut_after(run_dir / name, done or -1)
    if done:
        checkpoint.restore(run_dir / "last", optimizer)
        print(f"resuming {run_dir} after step {done}")
    history = log.read(run_dir / "metrics.jsonl")
    best = max((r["validation"]["mean"] for r in history if "validation" in r and r["step"]), default=-math.inf)  # of trained ones

    stopped_by, broken = catch_signals(), 0
    if not done:
        before = validate(config, sampler, ranker, validation, 0)
        log.append(run_dir / "metrics.jsonl", [{"step": 0, "validation": before}])
    bar = tqdm(range(done + 1, config.train.steps + 1), desc="train", unit="step", initial=done, total=config.train.steps, dynamic_ncols=True)
    for step in bar:
        started = time.perf_counter()
        shortened = policy.prompter.shortened
        groups = roll_out(config, sampler, ranker, next_query, step)
        rewards = rewarding.score(reward_parts, groups)  # [groups][G] of named parts
        task = torch.tensor([[r["task"] for r in row] for row in rewards])  # [groups, G]
        total = torch.tensor([[r["total"] for r in row] for row in rewards])  # [groups, G]
        # The task part alone decides what is alive: form must not revive a group in which every ranking was as good.
        live = losses.live_groups(task, config.train.min_spread)  # [groups]
        advantages = losses.group_advantages(total, config.train.advantage)  # [groups, G]
        record = {"step": step, **reward_means(rewards), **rollout_means(groups), "dead_groups": 1 - live.float().mean().item(),
                  "shortened": (policy.prompter.shortened - shortened) / len(groups)}
        record["lr"] = optimizer.param_groups[0]["lr"] = config.train.lr * learning_rate_share(config.train, step)
        record |= update(config, policy, optimizer, [g for g, alive in zip(groups, live) if alive], advantages[live])
        broken = 0 if math.isfinite(record["grad_norm"]) else broken + 1
        if broken == MAX_BROKEN_STEPS:
            raise UserError(f"the gradient was not finite in {broken} steps in a row (the last is {step}); lower train.lr;"
                            f" {run_dir}/last is the last good checkpoint, if there is one")
        seconds = time.perf_counter() - started
        record |= {"seconds": seconds, "peak_gb": log.peak_gb(policy.device),
                   "tokens_per_second": sum(len(c.ids) for g in groups for c in g.completions) / seconds}
        show(bar, record, reward_parts)

        last = step == config.train.steps
        if step % config.eval.every == 0 or last:
            record["validation"] = validate(config, sampler, ranker, validation, step)
        mrr = record.get("validation", {}).get("mean", -math.inf)
        improved, best = mrr > best, max(best, mrr)
        log.append(run_dir / "completions.jsonl", log.completion_records(step, groups, rewards, advantages * live[:, None]))
        log.append(run_dir / "metrics.jsonl", [record])
        if "validation" in record:
            log.curves(run_dir)
        if improved or last or stopped_by or step % config.run.save_every == 0:
            checkpoint.save(config, policy, optimizer, step, record.get("validation", {}), improved)
        if stopped_by and not last:
            bar.close()
            print(f"stopped after step {step}; the same command goes on from there")
            return 128 + stopped_by[0]
    finish(config, run_dir)


def roll_out(config: settings.Config, sampler: Sampler, ranker, next_query, step: int) -> list[Group]:
    """The groups of one step: queries -> asks -> sampled completions -> answers."""
    count = config.rollout.prompts_per_step
    asks = []
    for i in range((step - 1) * count, step * count):
        asks.append(ranker.sampled_ask(next_query(i), random.Random(f"{config.run.seed}/ask/{i}")))
    seed = random.Random(f"{config.run.seed}/sample/{step}").getrandbits(60)
    return sample_groups(sampler, asks, config.rollout.completions_per_prompt, config.rollout.temperature, seed)


def update(config: settings.Config, policy: Policy, optimizer, groups: list[Group], advantages: torch.Tensor) -> dict[str, float]:
    """Optimizer steps on live groups; advantages [groups, G]. Returns what to log. No groups: no step.

    With `optimizer` None the gradients are computed and thrown away, for an estimate of time and memory.
    """
    train, temperature = config.train, config.rollout.temperature
    if not groups:
        return {"loss": 0.0, "grad_norm": 0.0}
    rows = pack([g.prompt for g in groups], [[c.ids for c in g.completions] for g in groups], train.tokens_per_batch)
    sampled = {k: torch.tensor(c.logprobs, device=policy.device) for k, c in enumerate(c for g in groups for c in g.completions)}
    advantage = advantages.flatten().to(policy.device)  # [completions]
    tokens = sum(map(len, sampled.values()))  # the denominator of the whole optimizer step, whatever the micro-batches
    parameters = list(policy.adapter_parameters().values())
    sums: dict[str, float] = {}
    gap = 0.0  # the largest difference between sampling and scoring
    with policy.training_graph():
        reference = old = None
        if train.beta > 0:
            with policy.reference():
                reference = score_all(policy, rows, temperature, train.tokens_per_batch)
        if train.updates_per_rollout > 1:  # with a single one the policy still is the one that sampled
            old = score_all(policy, rows, temperature, train.tokens_per_batch)
        for inner in range(train.updates_per_rollout):
            for batch in batches(rows, train.tokens_per_batch):
                keys = [k for row in batch for k in row.keys]
                logprobs, mask = score(policy, batch, temperature)  # [N, T]
                loss, parts = losses.policy_loss(
                    logprobs, stack(old, keys, mask) if old else logprobs.detach(), advantage[keys][:, None], mask, tokens,
                    clip_low=train.clip_low, clip_high=train.clip_high, beta=train.beta, kl=train.kl,
                    reference=stack(reference, keys, mask) if reference else None)
                loss.backward()
                parts["loss"] = loss.item() * tokens
                if inner == 0:
                    difference = (logprobs.detach() - stack(sampled, keys, mask)).abs() * mask
                    parts["sampler_gap"], gap = difference.sum().item(), max(gap, difference.max().item())
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value
            norm = torch.nn.utils.clip_grad_norm_(parameters, train.grad_clip or math.inf)
            if not norm.isfinite():  # it must not reach the weights
                logging.warning("the gradient is not finite; this step changes nothing")
            elif optimizer:
                optimizer.step()
            for parameter in parameters:
                parameter.grad = None
    updates = {"sampler_gap": 1}  # measured in the first update only
    adapter_norm = torch.stack([p.detach().norm() for p in parameters]).norm().item()
    return {name: value / tokens / updates.get(name, train.updates_per_rollout) for name, value in sums.items()} | {
        "sampler_gap_max": gap, "grad_norm": norm.item(), "adapter_norm": adapter_norm}


def validate(config: settings.Config, sampler: Sampler, ranker, queries, step: int) -> dict[str, float]:
    """MRR per scenario and its mean over the tasks, by greedy decoding; the code is that of evaluate.py."""
    total = sum(ranker.calls(len(q.ids)) for q in queries)
    with tqdm(total=total, desc=f"validation at step {step}", unit="ask", leave=False, dynamic_ncols=True) as bar:
        model = greedy_model(sampler, bar.update)
        row = report.model_row("policy", [rank(ranker, queries, model, config.run.seed)], config.eval.relevance_level)
    return {s: row.by_scenario("MRR", s) for s in row.scenarios()} | {"mean": row.mean("MRR"), "mean_strict": row.mean("MRR", strict=True)}


def reward_means(rewards: list[list[dict[str, float]]]) -> dict[str, float]:
    """Mean of the reward and of each part over the completions that could be scored."""
    means = {}
    for name in rewards[0][0]:
        values = [r[name] for row in rewards for r in row if not math.isnan(r[name])]
        means["reward" if name == "total" else f"reward/{name}"] = sum(values) / max(len(values), 1)
    return means


def rollout_means(groups: list[Group]) -> dict[str, float]:
    completions = [c for g in groups for c in g.completions]
    count = len(completions)
    return {"parse_rate": sum(c.answer.ok for c in completions) / count, "truncated": sum(not c.finished for c in completions) / count,
            "length": sum(len(c.ids) for c in completions) / count, "prompt_length": sum(len(g.prompt) for g in groups) / len(groups)}


def learning_rate_share(train: settings.Train, step: int) -> float:
    """Share of train.lr in step `step` (from 1): linear warm-up, then constant or a cosine down to a tenth."""
    if step <= train.warmup:
        return step / (train.warmup + 1)
    if train.schedule == "constant":
        return 1.0
    progress = (step - train.warmup) / max(train.steps - train.warmup, 1)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def show(bar: tqdm, record: dict, reward_parts) -> None:
    """The line people watch. The loss is not in it: with one update per rollout it is about zero by construction."""
    parts = {p.name: f"{record[f'reward/{p.name}']:.2f}" for p in reward_parts}
    kl = {"kl": f"{record['kl']:.4f}"} if "kl" in record else {}
    bar.set_postfix({"reward": f"{record['reward']:.3f}", **parts, "parsed": f"{record['parse_rate']:.0%}",
                     "dropped": f"{record['dead_groups']:.0%}", "len": f"{record['length']:.0f}", **kl,
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


def finish(config: settings.Config, run_dir: Path) -> None:
    """The before and after table, and what to type next."""
    records = [r for r in log.read(run_dir / "metrics.jsonl") if "validation" in r]
    first, top = records[0], max(records[1:], key=lambda r: r["validation"]["mean"])
    rows = [("before training", first), (f"best, step {top['step']}", top), (f"last, step {records[-1]['step']}", records[-1])]
    columns = [name for name in first["validation"]]
    print(f"\nMRR on the validation queries (at most {config.eval.queries} per task), greedy decoding:\n")
    print(report.markdown(["", *columns], [[name, *(f"{r['validation'][c]:.3f}" for c in columns)] for name, r in rows]))
    print(f"\ncurves: {run_dir}/curves.png   next: {interpreter()} evaluate.py --ckpt {run_dir}/best")


def dry_run(config, policy: Policy, sampler: Sampler, ranker, next_query, validation, reward_parts) -> None:
    """One prompt, a right and a wrong completion with their rewards, and estimates from one real step. Trains nothing."""
    ask = ranker.sampled_ask(next_query(0), random.Random(f"{config.run.seed}/ask/0"))
    print(policy.tokenizer.decode(policy.prompter.encode(ask)))
    for name, write in (("right", llms.right_answer), ("wrong", llms.wrong_answer)):
        text = write(ask)
        completion = Completion([], [], text, True, parse(text, ask))
        parts = rewarding.score(reward_parts, [Group(ask, [], [completion])])[0][0]
        shown = "  ".join(f"{part} {value:g}" for part, value in parts.items())
        print(f"\n--- a {name} completion\n{text}\n    answer: {completion.answer.status} {', '.join(map(str, completion.answer.value))}\n    reward: {shown}")
    print("\nmeasuring one step (nothing is trained) ...", flush=True)
    started = time.perf_counter()
    groups = roll_out(config, sampler, ranker, next_query, 1)
    sampled = time.perf_counter()
    update(config, policy, None, groups, torch.ones(len(groups), config.rollout.completions_per_prompt))
    ended = time.perf_counter()
    asks = sum(ranker.calls(len(q.ids)) for q in validation)
    count = len(groups) * config.rollout.completions_per_prompt
    validations = 1 + math.ceil(config.train.steps / config.eval.every)
    # A validation ask has a prompt of its own, so it costs more than a sampled completion: this is a lower bound.
    seconds = config.train.steps * (ended - started) + validations * asks * (sampled - started) / count
    trained = sum(p.numel() for p in policy.adapter_parameters().values())
    print(f"steps      {config.train.steps}, each {config.rollout.prompts_per_step} prompts x {config.rollout.completions_per_prompt} completions\n"
          f"validation {validations} times, {len(validation)} queries, {asks} asks each\n"
          f"adapter    {trained / 1e6:.2f} million parameters, {trained * 12 / 1e9:.2f} GB with optimizer state\n"
          f"time       about {seconds / 60:.0f} min on {policy.device}: {sampled - started:.1f} s sampling and at most {ended - sampled:.1f} s"
          f" learning a step (before training completions can be longer)\n"
          f"memory     {log.peak_gb(policy.device):.2f} GB at the peak of this step")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    sys.exit(exit_status(main))
