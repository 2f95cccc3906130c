"""A check that a loaded model is sampled and scored exactly: the engine against the model's own code, on a few tokens.

Two prompts of different length with two completions each are sampled, scored in one packed row, and computed row by row
with the attention that the model's authors wrote down (`eager`). Differences are relative: the root mean square of the
difference over that of the logits, whose mean is taken off each row. Rounding alone gives 1e-6 in fp32 and up to 0.03
in bf16 (measured, random models of 2 to 36 layers); a comparison element by element would refuse sound models of 36
layers. A model that amplifies rounding is measured by its own standard: how far its logits move when its embeddings are
rounded to other neighbours.
"""

import dataclasses

import torch

from ranker import config as settings
from ranker.engine.attention import PACKED, layout
from ranker.engine.policy import Policy
from ranker.engine.pretrained import refusal
from ranker.engine.sampler import Sampler
from ranker.engine.scoring import pack, predicting

TEXT = ("Rank these hats from the best to the worst: a wool hat, a rain hat with fleece, a straw hat for the summer,"
        " a felt hat, and a cap that keeps the sun out of the eyes of anybody who reads outside on a bright day.")
NEW = 4  # tokens decoded
LIMIT = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # the largest relative difference allowed
NOISES = 5  # a model may differ by this many times the move that other rounding causes


@torch.no_grad()
def check(policy: Policy, name: str, tokens: int) -> None:
    """Raise UserError for a model whose samples or scores differ from its own, in rows of at most `tokens` tokens."""
    try:
        check_windows(policy, tokens)
        limit, found = LIMIT.get(policy.head.weight.dtype, LIMIT[torch.bfloat16]), differences(policy)
        if max(found.values()) > limit:  # a model that amplifies rounding may differ by more
            limit = max(limit, NOISES * rounding_noise(policy))
    except Exception as error:  # any, since the model's own code meets arguments that it does not know
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:90]
        if not policy.causal_lm._supports_attention_backend:
            reason = "its attention is code of its own"
        raise refusal(name, f"cannot be computed by shared prompts ({reason})") from None
    for what, difference in found.items():
        if not difference <= limit:  # written so that NaN is refused too
            raise refusal(name, f"gives other logits {what} than its own code does "
                                f"(by {difference:.1g} of their spread)")


def check_windows(policy: Policy, tokens: int) -> None:
    """Raise ValueError where layers that have a window by the model's config do not pass it on to their attention."""
    text, place = policy.causal_lm.config.get_text_config(), layout([(0, 2)], [(2, 2)], [0], policy.device)
    window = getattr(text, "sliding_window", None)
    if not window or window >= tokens:  # no row is longer than the window, so that it makes no difference
        return
    ids = torch.tensor([policy.tokenizer(TEXT, add_special_tokens=False)["input_ids"][:4]], device=policy.device)
    with policy.attend(PACKED):
        policy.trunk(input_ids=ids, use_cache=False, layout=place)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    said = [window if kind == "sliding_attention" else None for kind in kinds]
    if said != [w if w is not None and w < tokens else None for w in place.windows]:
        raise ValueError(f"its windows of {window} tokens are not those that its layers ask for")


@torch.no_grad()
def differences(policy: Policy) -> dict[str, float]:
    """Return the relative difference between each way to compute logits here and the model's own code."""
    tokens = policy.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    prompts = [tokens[:len(tokens) // 2], tokens[len(tokens) // 2:][:max(len(tokens) // 3, 1)]]
    endless = dataclasses.replace(policy, stop_ids=frozenset())
    samples = Sampler(endless, settings.Rollout(max_new_tokens=NEW, graph=False))(prompts, [2, 2], 1.0, [0, 1])
    states, targets, _ = predicting(policy, pack(prompts, [[ids for ids, _, _ in group] for group in samples], 10**9))
    packed = policy.logits(states)  # [tokens, V]
    own = torch.cat([own_logits(policy, prompt, ids)
                     for prompt, group in zip(prompts, samples) for ids, _, _ in group])  # [tokens, V]
    sampled = [value for group in samples for _, values, _ in group for value in values]
    sampled = torch.tensor(sampled, device=own.device)  # [tokens]
    gap = sampled - own.log_softmax(-1)[torch.arange(len(targets)), targets]
    return {"scored in packed rows": relative(packed - own, own), "decoded token by token": relative(gap, own)}


@torch.no_grad()
def rounding_noise(policy: Policy) -> float:
    """Return how far, relatively, the model's own logits move when its embeddings are rounded to other neighbours."""
    tokens = policy.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    own, step = own_logits(policy, tokens[:4], tokens[4:]), torch.finfo(policy.head.weight.dtype).eps / 2
    hook = policy.causal_lm.get_input_embeddings().register_forward_hook(
        lambda module, args, out: out + step * out * torch.ones_like(out).cumsum(-1).cos().sign())  # no pattern
    try:
        return relative(own_logits(policy, tokens[:4], tokens[4:]) - own, own)
    finally:
        hook.remove()


def relative(difference: torch.Tensor, logits: torch.Tensor) -> float:
    """Return the root mean square of a difference over that of `logits` [tokens, V] minus each row's mean."""
    spread = (logits - logits.mean(-1, keepdim=True)).square().mean().sqrt()
    return (difference.square().mean().sqrt() / spread).item()


def own_logits(policy: Policy, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Return the logits [tokens, V] that predict a completion, computed by the model's own code on this row alone."""
    with policy.attend("eager"):
        ids = torch.tensor([prompt + completion], device=policy.device)
        return policy.causal_lm(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1:-1].float()
