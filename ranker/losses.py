"""Rewards -> advantages -> loss, as pure functions of tensors. Nothing here knows a model.

Shapes: a number per completion [N]; everything per token [N, T], with a 0/1 mask of the same shape. `cohorts` [N] is
the number of each completion's cohort, whose completions are compared with one another: the group of an ask, or the
episodes of a query at one pool size. A reward that is NaN means that its completion could not be scored.

Decisions a reader could doubt:
- Advantages are by default only centred on the mean. nDCG-like rewards can have a tiny spread, and dividing by it turns
  noise into +-1 (Dr. GRPO, arXiv 2503.20783).
- The denominator counts the tokens of the whole optimizer step, not of a micro-batch (DAPO, arXiv 2503.14476): 1x8 and
  8x1 micro-batches give the same gradient.
- The KL is added to the loss that is minimised. As a loss on the policy's own samples, k2 = D^2/2 has the gradient of
  KL(policy, reference), but raw k3 that of KL(reference, policy); `k3` here is ratio-corrected, which mends it.
- Advantages of PPO are whitened over the tokens of the whole rollout, so that their scale needs no tuning per reward.
"""

import math

import torch

Tensor = torch.Tensor
MAX_LOG_RATIO = 20.0  # log-ratios are clamped to this, so that no token dominates by exp()


def returns_to_go(rewards: Tensor, following: list[int], discount: float = 1.0) -> Tensor:
    """Return [N]: the reward of each completion plus the discounted rewards of those that follow it in its episode.

    `following[i]` > i is the number of the completion that follows i, or -1 at the episode's end. NaN rewards stay NaN.
    """
    returns = rewards.nan_to_num(nan=0.0)
    for i in reversed(range(len(following))):
        if following[i] >= 0:
            returns[i] += discount * returns[following[i]]
    return torch.where(rewards.isnan(), rewards, returns)


def live(rewards: Tensor, cohorts: Tensor, min_spread: float) -> Tensor:
    """Return [N] bool: the completions that are not dead, since their cohort's rewards spread by over `min_spread`.

    A completion with a NaN reward is left out.
    """
    count = int(cohorts.max()) + 1
    fill = lambda value, how: rewards.new_full((count,), value).scatter_reduce(  # noqa: E731
        0, cohorts, rewards.nan_to_num(nan=value), how)
    spread = fill(-torch.inf, "amax") - fill(torch.inf, "amin")  # [cohorts]
    return (spread > min_spread)[cohorts] & ~rewards.isnan()


def cohort_advantages(rewards: Tensor, cohorts: Tensor, kind: str = "mean") -> Tensor:
    """Return advantages [N]: reward minus the cohort's mean; with `std` divided by the population deviation + 1e-4,
    with `rare` by the mean.

    `rare` (MaxRL, arXiv 2602.02710) is for rewards that are not negative: the rarer success is, the more a success
    weighs. NaN rewards are left out of mean and deviation and get advantage 0.
    """
    scored = ~rewards.isnan()
    total = lambda values: values.new_zeros(int(cohorts.max()) + 1).index_add(0, cohorts, values)  # noqa: E731
    count = total(scored.to(rewards.dtype)).clamp(min=1)
    mean = total(rewards.nan_to_num(nan=0.0)) / count  # [cohorts]
    centred = torch.where(scored, rewards - mean[cohorts], 0.0)
    if kind == "mean":
        return centred
    if kind == "rare":
        return torch.where(mean[cohorts] > 0, centred / mean[cohorts].clamp(min=1e-12), 0.0)
    return centred / ((total(centred.square()) / count).sqrt()[cohorts] + 1e-4)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return generalised advantage estimates and returns, [N, T] each (arXiv 1506.02438, eq. 16).

    Behind the mask rewards and values count as 0.
    """
    advantages, following, value_after = (torch.zeros_like(values), values.new_zeros(len(values)),
                                          values.new_zeros(len(values)))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * value_after - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        value_after = values[:, t] * mask[:, t]
        advantages[:, t] = following
    return advantages, (advantages + values) * mask


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Return `values` scaled to mean 0 and deviation 1 over the mask, and 0 outside it."""
    kept = values[mask.bool()]
    return (values - kept.mean()) / (kept.std(unbiased=False) + 1e-6) * mask


def value_loss(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, denominator: float = 1.0, *,
               clip: float) -> tuple[Tensor, dict[str, float]]:
    """Return PPO's value loss, summed over the mask and divided by `denominator`; and sums to log.

    The loss of a token is half the squared error of `values`, or of `values` held within `clip` of `old`, whichever is
    larger.
    """
    held = old + (values - old).clamp(-clip, clip)
    error, held_error = (values - returns).square(), (held - returns).square()
    loss = torch.maximum(error, held_error) / 2
    return (loss * mask).sum() / denominator, {"value_loss": (loss.detach() * mask).sum().item(),
                                               "clip_value": ((held_error > error) * mask).sum().item()}


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """Return 1 - Var(returns - values) / Var(returns), of tokens [n].

    A perfect critic has 1, a critic that only knows the mean has 0, and a critic that misleads has less than 0.
    """
    return 1 - ((returns - values).var() / returns.var().clamp(min=1e-12)).item()


def kl_terms(logprobs: Tensor, reference: Tensor, ratio: Tensor, kind: str) -> Tensor:
    """Return the KL loss per token, [N, T]: `k2`, or `k3` corrected by the (differentiable) ratio policy / sampler."""
    difference = (logprobs - reference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if kind == "k2":
        return difference.square() / 2
    return ratio * ((-difference).exp() + difference - 1)


def segment_means(values: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
    """Return [N, T]: the mean of `values` over the tokens of a completion that share its number in `segments`."""
    kept = mask.bool()
    width = int(segments.max()) + 1
    number = segments.long() + width * torch.arange(len(values), device=values.device)[:, None]  # [N, T]
    total, count = (values.new_zeros(len(values) * width).index_add(0, number[kept], part[kept])
                    for part in (values, torch.ones_like(values)))
    return (total / count.clamp(min=1))[number]


def policy_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, denominator: float = 1.0, *,
                clip_low: float = 0.2, clip_high: float = 0.2, reference: Tensor | None = None, beta: float = 0.0,
                kl: str = "k2", segments: Tensor | None = None,
                surrogate: str = "ppo") -> tuple[Tensor, dict[str, float]]:
    """Return the clipped surrogate with its KL term, summed over the mask, divided by `denominator`; and sums to log.

    `old` are the log-probabilities of the policy that sampled the completions, scored in the training graph;
    `advantages` is [N, 1] or [N, T]; `denominator` is the number of loss tokens of the whole optimizer step. Numbers to
    log are sums over the mask, not means, so that micro-batches can be added up.

    With `segments` [N, T] the ratio of a token is the geometric mean over the tokens of its segment: one segment a
    completion is GSPO (arXiv 2507.18071), one for each candidate of a list is Rank-GRPO (arXiv 2510.20150).
    `surrogate: cispo` (MiniMax-M1, arXiv 2506.13585) clips the ratio as a weight and lets every token learn.
    """
    log_ratio = (logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)  # [N, T]
    ratio = (log_ratio if segments is None else segment_means(log_ratio, segments, mask)).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = (-torch.minimum(ratio * advantages, clipped * advantages) if surrogate == "ppo"
            else -clipped.detach() * advantages * logprobs)
    sums = {
        "clip_low": ((ratio < 1 - clip_low) & (advantages < 0)),
        "clip_high": ((ratio > 1 + clip_high) & (advantages > 0)),
        "drift": ratio - 1 - ratio.log(),  # k3 of KL(sampler, policy)
    }
    if reference is not None:
        loss = loss + beta * kl_terms(logprobs, reference, ratio, kl)
        difference = (logprobs - reference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        sums["kl"] = (-difference).exp() + difference - 1  # k3, the best estimate to log: unbiased and never negative
    return (loss * mask).sum() / denominator, {k: (v.detach() * mask).sum().item() for k, v in sums.items()}


def leave_one_out(rewards: Tensor, cohorts: Tensor) -> Tensor:
    """Return [N]: each reward minus the mean of the others in its cohort (RLOO); NaN rewards are left out and get 0."""
    scored = ~rewards.isnan()
    count = (torch.zeros(int(cohorts.max()) + 1, dtype=rewards.dtype, device=rewards.device)
             .index_add(0, cohorts, scored.to(rewards.dtype))[cohorts])  # [N], scored completions of the cohort
    return cohort_advantages(rewards, cohorts) * count / (count - 1).clamp(min=1)


def dpo_loss(margins: Tensor, beta: float) -> Tensor:
    """Return -log sigmoid(beta * margin) of each pair (arXiv 2305.18290, eq. 7).

    A margin is (lw - ll) - (lw_ref - ll_ref), of the log-probabilities of the better (w) and the worse (l) completion:
    how much more than the reference the policy prefers the better completion.
    """
    return -torch.nn.functional.logsigmoid(beta * margins)


def draw_permutations(scores: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw orders [count, n] of n scored items from Plackett-Luce: the order of scores + Gumbel noise."""
    uniform = torch.rand(count, len(scores), generator=generator, dtype=torch.float64).clamp(1e-300).to(scores.device)
    return (scores.double() - (-uniform.log()).log()).argsort(-1, descending=True)


def plackett_luce(scores: Tensor, orders: Tensor) -> Tensor:
    """Return the log-probability [M] of orders [M, n] under the Plackett-Luce model of scores [n]."""
    chosen = scores[orders]  # [M, n]
    return (chosen - chosen.flip(-1).logcumsumexp(-1).flip(-1)).sum(-1)


def ndcg_of(orders: Tensor, relevance: Tensor, k: int) -> Tensor:
    """Return nDCG@k [M] of orders [M, n] of items with `relevance` [n]: linear gain, the ideal is over the n items."""
    discounts = 1 / torch.arange(2, len(relevance) + 2, device=relevance.device, dtype=relevance.dtype).log2()
    discounts[k:] = 0
    ideal = (relevance.sort(descending=True)[0] * discounts).sum()
    return (relevance[orders] * discounts).sum(-1) / ideal


class Scale(torch.nn.Module):
    """A learned positive factor of scores, 1 / temperature: mean log-probabilities of texts differ by little."""

    def __init__(self, start: float):
        super().__init__()
        self.log = torch.nn.Parameter(torch.tensor([math.log(start)]))

    def forward(self, scores: Tensor) -> Tensor:
        return scores * self.log.exp()


RANK_LOSSES = ("ranknet", "weighted_ranknet", "lambdarank", "ndcg2", "listnet", "top1", "pointwise")


def ranks(values: Tensor, cohorts: Tensor) -> Tensor:
    """Return [N]: the place of each value in its cohort, 1 for the largest value and 0 for NaN.

    Equal values share the first of their places.
    """
    above = (cohorts[:, None] == cohorts) & (values[:, None] < values)  # [N, N]; false for NaN
    return torch.where(values.isnan(), 0.0, 1.0 + above.sum(1))


def rank_loss(scores: Tensor, ranks: Tensor, kind: str) -> Tensor:
    """Return the loss of a list in fp32: scores [n] against integer ranks [n] (1 is best); 0 where all ranks are equal.

    A pair is two items i, j with i ranked above j. The kinds are:
    - `ranknet`: softplus(s_j - s_i), mean over the pairs (RankGPT, arXiv 2304.09542, whose text prints the other sign).
    - `weighted_ranknet`: each pair divided by r_i + r_j, the sum by n (n - 1) / 2 (FIRST, arXiv 2406.15657).
    - `lambdarank`, `ndcg2`: pairs in bits, weighted by the difference of the gains of the labels 1 / rank and by the
      discounts of the predicted places (LambdaLoss).
    - `listnet`: cross-entropy to the softmax of the reversed ranks; `top1`: cross-entropy to the best item.
    - `pointwise`: binary cross-entropy of exp(score) to 1 / rank (ours: scores are log-probabilities).
    """
    scores = scores.float()
    above = ranks[:, None] < ranks  # [n, n]: i before j
    if not above.any():
        return scores.sum() * 0.0
    if kind == "listnet":
        return -((ranks.max() - ranks).softmax(0) * scores.log_softmax(0)).sum()
    if kind == "top1":
        return -scores.log_softmax(0)[ranks == ranks.min()].mean()
    if kind == "pointwise":
        return torch.nn.functional.binary_cross_entropy(scores.exp().clamp(1e-6, 1 - 1e-6), 1 / ranks)
    terms = torch.nn.functional.softplus(scores - scores[:, None])  # [n, n]: softplus(s_j - s_i)
    if kind == "ranknet":
        return terms[above].mean()
    if kind == "weighted_ranknet":
        return (terms / (ranks[:, None] + ranks))[above].sum() * 2 / (len(ranks) * (len(ranks) - 1))
    place = 1.0 + scores.detach().argsort(descending=True, stable=True).argsort()  # [n], predicted places from 1 on
    discount = lambda places: 1 / (1 + places).log2()  # noqa: E731
    gains = (2 ** (1 / ranks) - 1)
    gains = gains / (gains.sort(descending=True)[0]
                     * discount(torch.arange(1.0, len(ranks) + 1, device=ranks.device))).sum()
    if kind == "lambdarank":
        weights = (discount(place[:, None]) - discount(place)).abs()
    else:  # ndcg2
        apart = (place[:, None] - place).abs().clamp(min=1)  # at least 1: an item and itself are no pair
        weights = (discount(apart) - discount(apart + 1)).abs()
    weights = weights * (gains[:, None] - gains).abs()
    return (weights * terms)[above].mean() / math.log(2)
