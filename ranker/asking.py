"""Ask the local policy: asks -> prompts -> groups of completions, their words read by the one parser.

The sampler below knows tokens alone; here they become texts and answers. `local_model` is the policy behind the driver.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ranker import api, checkpoint, config as settings, plugins
from ranker.answers import alternatives, parse, place, written as named
from ranker.data import Answer, Ask, Completion, Cut, Group
from ranker.drive import Model
from ranker.engine import policy as policies
from ranker.engine.policy import STOP, Policy
from ranker.engine.sampler import Known, Sampler, batches_of
from ranker.engine.scoring import pack, score_all
from ranker.prompting import Chat, scored_texts

LIKELIHOOD_TOKENS = 1024  # of texts that are scored together; larger batches are slower on a CPU
KEPT_TEXTS = 20_000  # whose log-probabilities are kept for the next asks


@dataclass
class Sample:
    """What a draw samples with: called with asks, it gives a group of completions for each."""

    sampler: Sampler
    ranker: plugins.Plugin
    rollout: settings.Rollout
    run_seed: int

    @property
    def policy(self) -> Policy:
        return self.sampler.policy

    def seed(self, state: dict) -> int:
        """Begin one more draw: return its seed, which no other draw of the run has."""
        state["draws"] = state.get("draws", 0) + 1
        return random.Random(f"{self.run_seed}/sample/{state['draws']}").getrandbits(60)

    def __call__(self, asks: Sequence[Ask], counts: int | Sequence[int], seeds: Sequence[int]) -> list[Group]:
        """Return a group for each ask; its completions are a cohort."""
        groups = sample_groups(self.sampler, asks, counts, self.rollout.temperature, seeds)
        for number, group in enumerate(groups):
            for c in group.completions:
                c.cohort = number
        return groups


def load_models(config: settings.Config, sampler: Sampler | None, folder: Path) -> dict[str, Model]:
    """Return who plays each role of a config, `base` and `previous` included; the policy is not among them.

    Adapters are added to the policy's base; answers of servers are kept in `folder`. Raise UserError.
    """
    models = {role: local_model(sampler, role=role) for role in ("base", "previous")} if sampler else {}
    for name, role in config.roles.items():
        if role["llm"]:
            llm = settings.Llm(**role["llm"])
            path = Path(llm.cache).expanduser() if llm.cache else folder / f"answers-{name}.jsonl"
            models[name] = api.server_model(llm, Chat(llm.words, llm.multi_turn), config.rollout.max_new_tokens, path)
        elif sampler:
            sampler.policy.add_role(name, checkpoint.find(role["adapter"]))
            models[name] = local_model(sampler, role=name)
    return models


def load_roles(config: settings.Config, folder: Path | None, out: Path,
               progress: Callable[[int], None] = lambda asks: None) -> dict[str, Model]:
    """Return who plays each role, `policy` included: the server's model, or the policy with the adapter in `folder`.

    Answers of servers are kept in `out`, unless the config names a file. Raise UserError.
    """
    limit = config.rollout.max_new_tokens
    if config.llm.api:
        path = Path(config.llm.cache).expanduser() if config.llm.cache else out / "answers.jsonl"
        chat = Chat(config.llm.words, config.llm.multi_turn)
        server = api.server_model(config.llm, chat, limit, path, progress)
        return {"base": server} | load_models(config, None, out) | {"policy": server}
    # Adapters that play roles need one beside them.
    adapter = plugins.load("lora", config.lora) if config.roles and folder is None else None
    policy = policies.load(config.model, adapter, folder, max_new_tokens=limit)
    sampler = Sampler(policy, config.rollout)
    return load_models(config, sampler, out) | {"policy": local_model(sampler, progress, seed=config.run.seed)}


def sample_groups(sampler: Sampler, asks: Sequence[Ask], counts: int | Sequence[int], temperature: float,
                  seed: int | Sequence[int] = 0, progress: Callable[[int], None] = lambda asks: None,
                  known: Sequence[Known] = ()) -> list[Group]:
    """A group of parsed completions for every ask, in the order of the asks; `counts` says how many, for all or for
    each.

    `seed` is that of each ask, or of the first one, from which the others count on.
    Asks of like length are sampled together, as many as `rollout.tokens_per_batch` allows; `progress` hears of each
    batch.
    """
    counts = [counts] * len(asks) if isinstance(counts, int) else counts
    seeds = range(seed, seed + len(asks)) if isinstance(seed, int) else seed
    fitted = [sampler.policy.prompter.fitted(ask) for ask in asks]
    prompts = [ids for ids, _ in fitted]
    groups: list[Group | None] = [None] * len(asks)
    for chosen in batches_of([len(p) + sampler.settings.max_new_tokens for p in prompts], counts,
                             sampler.settings.tokens_per_batch):
        started = time.perf_counter()
        samples = sampler([prompts[i] for i in chosen], [counts[i] for i in chosen], temperature,
                          [seeds[i] for i in chosen], [known[i] for i in chosen] if known else ())
        share = (time.perf_counter() - started) / sum(counts[i] for i in chosen)
        for i, results in zip(chosen, samples):
            completions = [complete(sampler.policy, asks[i], *result, share, fitted[i][1]) for result in results]
            groups[i] = Group(asks[i], prompts[i], completions)
        progress(sum(counts[i] for i in chosen))
    return groups


def by_logits(sampler: Sampler, asks: Sequence[Ask], progress: Callable[[int], None] = lambda asks: None,
              known: Sequence[Known] = ()) -> list[Group]:
    """Answers of a single forward pass: every candidate, in the order of the logits of their identifiers (FIRST, arXiv
    2406.15657)."""
    prompter, groups = sampler.policy.prompter, [None] * len(asks)
    fitted = [prompter.fitted(ask) for ask in asks]
    prompts = [ids for ids, _ in fitted]
    for chosen in batches_of([len(p) for p in prompts], [1] * len(asks), sampler.settings.tokens_per_batch):
        started = time.perf_counter()
        logits = sampler.next_logits([prompts[i] for i in chosen],
                                     [known[i] for i in chosen] if known else ()).log_softmax(-1)
        share = (time.perf_counter() - started) / len(chosen)
        for i, line in zip(chosen, logits):
            ask, tokens = asks[i], prompter.identifier_tokens(len(asks[i].pool))
            order = line[tokens].argsort(descending=True, stable=True).tolist()
            answer = Answer("ok", tuple(ask.pool[k] for k in order), len(order))
            text = f"<answer>{named(ask, answer.value)}</answer>"
            groups[i] = Group(ask, prompts[i], [Completion([tokens[order[0]]], [line[tokens[order[0]]].item()], text,
                                                           True, answer, share, fitted[i][1])])
        progress(len(chosen))
    return groups


def by_likelihood(sampler: Sampler, asks: Sequence[Ask], progress: Callable[[int], None] = lambda asks: None,
                  kept: dict | None = None) -> list[Group]:
    """Answers of which nothing is written: the log-probabilities of texts as completions, a packed row for each ask.

    What was scored before behind the same prompt is not scored again where it stands in `kept`: the unconditional
    score of a text is that for all queries.
    """
    prompter, kept = sampler.policy.prompter, {} if kept is None else kept
    fitted, endings = [], []
    for prompt, texts, cut in (prompter.scored(ask, sampler.settings.max_new_tokens) for ask in asks):
        fitted.append((prompt, cut))
        endings.append(texts)
    budget, groups = min(sampler.settings.tokens_per_prefill, LIKELIHOOD_TOKENS), [None] * len(asks)
    for chosen in batches_of([len(fitted[i][0]) + sum(map(len, endings[i])) for i in range(len(asks))], [1] * len(asks),
                             4 * budget):
        started = time.perf_counter()
        by_prompt: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for prompt, ids in dict.fromkeys((tuple(fitted[i][0]), tuple(ids)) for i in chosen for ids in endings[i]):
            if (prompt, ids) not in kept:
                by_prompt.setdefault(prompt, []).append(ids)
        rows = pack([list(prompt) for prompt in by_prompt], [list(map(list, texts)) for texts in by_prompt.values()],
                    budget)
        found, _ = score_all(sampler.policy, rows, 1.0, budget)
        flat = [(prompt, ids) for prompt, texts in by_prompt.items() for ids in texts]
        kept |= {key: found[i].sum().item() for i, key in enumerate(flat)}
        share = (time.perf_counter() - started) / len(chosen)
        for i in chosen:
            ask, (prompt, cut) = asks[i], fitted[i]
            scores = [kept[tuple(prompt), tuple(ids)] for ids in endings[i]]
            order = sorted(range(len(scores)), key=lambda k: -scores[k]) if len(scores) == len(ask.pool) else []
            answer = Answer("ok", tuple(ask.pool[k] for k in order), len(order), tuple(scores),
                            tuple(map(len, endings[i])))
            text = f"<answer>{named(ask, answer.value)}</answer>"
            groups[i] = Group(ask, prompt, [Completion([], [], text, True, answer, share, cut)])
        progress(len(chosen))
    return groups


def local_model(sampler: Sampler, progress: Callable[[int], None] = lambda asks: None, role: str = "policy",
                seed: int = 0) -> Model:
    """Return the policy behind the driver, as it plays a role: the completions of asks, sampled where they want that.

    What the prompts of two asks about a query share at their beginning is computed once, as long as every call asks
    about the query again and `rollout.tokens_kept` has room for it. What is sampled depends on `seed` and the ask.
    """
    shelf: dict[str, Known] = {}  # by query
    kept: dict = {}  # log-probabilities of texts behind prompts
    freezes = sampler.policy.freezes

    def model(asks: Sequence[Ask]) -> list[tuple[int, Completion]]:
        nonlocal freezes
        if freezes != sampler.policy.freezes:  # the previous iterate is another one now
            freezes = sampler.policy.freezes
            shelf.clear()
            kept.clear()
        for query in shelf.keys() - {ask.query.id for ask in asks}:
            del shelf[query]
        if len(kept) > KEPT_TEXTS:  # a server runs for long
            kept.clear()
        alike: dict[object, list[int]] = {}  # asks that are samples of one another are one group
        for i, ask in enumerate(asks):
            alike.setdefault(replace(ask, sample=0) if ask.temperature else i, []).append(i)
        batches: dict[tuple[str, float], list[list[int]]] = {}
        for places in alike.values():
            first = asks[places[0]]
            way = "logits" if first.by_logits else "likelihood" if scored_texts(first) else "words"
            batches.setdefault((way, first.temperature), []).append(places)
        answered: list[tuple[int, Completion] | None] = [None] * len(asks)
        with sampler.policy.playing(role):
            for (way, temperature), found in batches.items():
                wanted = [asks[places[0]] for places in found]
                known = [shelf.setdefault(ask.query.id, Known(shelf, sampler.settings.tokens_kept)) for ask in wanted]
                if way == "logits":
                    groups = by_logits(sampler, wanted, progress, known)
                elif way == "likelihood":
                    groups = by_likelihood(sampler, wanted, progress, kept)
                else:
                    seeds = [random.Random(f"{seed}/{ask.query.id}/{ask.described()}").getrandbits(60)
                             for ask in wanted]
                    groups = sample_groups(sampler, wanted, list(map(len, found)), temperature, seeds, progress, known)
                add_scores(sampler.policy, groups, sampler.settings.tokens_per_prefill)
                for places, group in zip(found, groups):
                    for i, completion in zip(places, group.completions):
                        answered[i] = len(group.prompt), completion
        return answered

    return model


def answer_mask(policy: Policy, ids: list[int]) -> torch.Tensor:
    """[tokens]: 1 from the token on in which the last opening answer tag begins, else 0; all 0 without one."""
    start = written(policy, ids).rfind("<answer>")
    before = tokens_within(policy, ids, start) if start >= 0 else len(ids)
    return (torch.arange(len(ids), device=policy.device) >= before).float()


def add_scores(policy: Policy, groups: Sequence[Group], budget: int) -> None:
    """Give readable answers the probabilities of their decision's ALTERNATIVES at their place, in shares of all of
    them.

    Every alternative, the end tag behind it, is scored as a completion of its own after the prompt and all that was
    written up to the answer; so `10` may be several tokens. That is one more forward pass over prompts and thoughts.
    """
    started, behind = time.perf_counter(), policy.prompter.behind
    scored = [(g.prompt, c, alternatives(g.ask)) for g in groups if alternatives(g.ask) for c in g.completions
              if c.answer.ok]
    prompts, endings = [], []
    for prompt, c, texts in scored:
        start = place(c.text).start
        kept = tokens_within(policy, c.ids, start)
        before = written(policy, c.ids[:kept])
        cut = c.text[len(before):start]  # of a token that goes on behind the tag
        prompts.append(prompt + c.ids[:kept])
        endings.append([behind(before, f"{cut}{text}{STOP}") for text in texts])
    found, _ = score_all(policy, pack(prompts, endings, budget), 1.0, budget)
    logprobs = (found[k] for k in range(len(found)))
    seconds = time.perf_counter() - started
    for _, c, texts in scored:
        share = torch.stack([next(logprobs).sum() for _ in texts]).softmax(-1).tolist()
        c.answer = replace(c.answer, scores=tuple(share))
        c.seconds += seconds / len(scored)


def tokens_within(policy: Policy, ids: list[int], characters: int) -> int:
    """How many tokens a completion may begin with for a text of at most so many characters; what the prompt has
    begun counts as none."""
    return next((k for k in range(len(ids), 0, -1) if len(written(policy, ids[:k])) <= characters), 0)


def written(policy: Policy, ids: list[int]) -> str:
    """The text of a completion's tokens, with what the prompt had begun of it."""
    return policy.prompter.prefill + policy.tokenizer.decode([i for i in ids if i not in policy.stop_ids])


def imitated(policy: Policy, ask: Ask, text: str, cohort: object) -> Group:
    """Return the group of one completion that somebody else wrote; nobody sampled it, so its log-probabilities are
    NaN."""
    ids = policy.prompter.completion(text)
    prompt, cut = policy.prompter.fitted(ask)
    trace = complete(policy, ask, ids, [math.nan] * len(ids), True, cut=cut)
    trace.cohort = cohort
    return Group(ask, prompt, [trace])


def complete(policy: Policy, ask: Ask, ids: list[int], logprobs: list[float], finished: bool, seconds: float = 0.0,
             cut: Cut = None) -> Completion:
    text = written(policy, ids)
    return Completion(ids, logprobs, text, finished, parse(text, ask, finished), seconds, cut)
