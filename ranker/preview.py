"""What can be known before a run: that its asks, rewards and prompts fit together, what it will look like and take."""

import itertools
import math
from collections.abc import Callable, Sequence

from ranker import asking, config as settings, credit, llms, rewarding
from ranker.data import Ask, Completion, Group, Query
from ranker.drive import decisions
from ranker.engine import distributed, memory
from ranker.engine.policy import Policy
from ranker.evaluation import report
from ranker.plugins import Plugin
from ranker.prompting import Prompter, scored_texts
from ranker.sources import Source
from ranker.stages import Stage


def rehearse(config: settings.Config, stages: Sequence[Stage], ranker: Plugin, source: Source,
             validation: Sequence[Query], prompter: Prompter) -> Ask:
    """Return the longest ask about the longest query of some. Raise UserError for what would fail at step 500.

    Rewards that do not fit the asks, identifiers that are several tokens; texts that the tokenizer does not know are
    told.
    """
    if distributed.first():
        for words in report.strange_texts(config.model.name, [config.data.train, config.data.validation]):
            print(words)
    some = (*validation, *map(source.__getitem__, range(config.rollout.prompts_per_step)))
    longest = max(some, key=lambda q: len(str(q.context)) + sum(map(len, q.texts.values())))
    asks = list(decisions(ranker, longest, len(longest.ids)).values())
    for stage, ask in itertools.product(stages, asks):
        judged(stage.rewards, ask, llms.right_answer)
    prompter.check(llms.rehearsal(ranker, max(some, key=lambda q: len(q.ids))))
    return max(asks, key=lambda ask: len(prompter.encode(ask)))


def judged(rewards: Sequence[rewarding.Part], ask: Ask, write: Callable[[Ask], str]) -> Completion:
    """Return what somebody writes who knows the relevance, with its rewards, but for those that ask somebody.

    Raise UserError for rewards that do not fit the ask.
    """
    [(_, completion)] = llms.scripted(write)([ask])
    rewarding.score([part for part in rewards if not part.asks], [Group(ask, [], [completion])])
    return completion


def show(config: settings.Config, stage: Stage, policy: Policy, plan: memory.Plan, ranker: Plugin,
         validation: Sequence[Query], take_step: Callable) -> None:
    """Print a prompt of each decision, with a right and a wrong completion, and estimates from one real step.

    Nothing is trained.
    """
    for number, ask in enumerate(decisions(ranker, validation[0]).values()):
        if number:
            print("\n--- another decision")
        print(policy.tokenizer.decode(policy.prompter.encode(ask)))
        scored = scored_texts(ask)  # nothing is written
        if scored:
            print("\n--- scored behind it\n" + "\n".join(scored))
        for name, write in () if scored else (("right", llms.right_answer), ("wrong", llms.wrong_answer)):
            c = judged(stage.rewards, ask, write)
            shown = "  ".join(f"{part} {value:g}" for part, value in c.rewards.items())
            text = c.text if policy.prompter.think else asking.written(policy, policy.prompter.completion(c.text))
            print(f"\n--- a {name} completion\n{text}\n    "
                  f"answer: {c.answer.status} {', '.join(map(str, c.answer.value))}"
                  f"\n    reward: {shown}")
    print(f"\n{plan.outlook()}\n\nmeasuring one step (nothing is trained) ...", flush=True)
    seconds = dict(plan.seconds)
    groups, _ = take_step(stage, stage.config.train.steps, {}, plan, optimizer=None)
    sampling, learning = (plan.seconds[phase] - seconds.get(phase, 0.0) for phase in ("sampling", "learning"))
    done, asks = len(credit.completions(groups)), sum(ranker.calls(len(q.ids)) for q in validation)
    validations = 1 + math.ceil(config.train.steps / config.eval.every)
    # A validation ask has a prompt of its own, so it costs more than a sampled completion: this is a lower bound.
    # Scoring is a forward pass, about a third of learning.
    one = learning / len(groups) / 3 if scored else sampling / done
    whole = config.train.steps * (sampling + learning) + validations * asks * one
    print(f"steps      {config.train.steps}, the first one of {len(groups)} prompts with {done} completions in all\n"
          f"validation {validations} times, {len(validation)} queries, {asks} asks each\n"
          f"time       about {whole / 60:.0f} min on {policy.device}: {sampling:.1f} s sampling and at most"
          f" {learning:.1f} s learning a step (before training completions can be longer)\n\n{plan.table()}")
