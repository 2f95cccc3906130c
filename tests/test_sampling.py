"""Sampling: a prompt computed once for its group gives what separate decoding gives; stops, log-probabilities,
seeds."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ranker import log, world
from ranker.asking import by_logits, complete, local_model, sample_groups
from ranker.config import Rollout
from ranker.drive import load_ranker, run
from ranker.engine import attention, sampler as sampling
from ranker.engine.attention import PromptCache, decoding
from ranker.engine.sampler import Known, Sampler
from ranker.engine.scoring import pack, score_all
from ranker.errors import UserError
from ranker.evaluation import ask_log


def sampler_of(policy, max_new_tokens, batch=10**6, prefill=10**6, weights="nf4"):
    return Sampler(policy, Rollout(max_new_tokens=max_new_tokens, tokens_per_batch=batch, tokens_per_prefill=prefill,
                                   weights=weights))


def sampled(sampler, prompts, count, temperature=0.0, seed=0):
    """`count` samples of each prompt."""
    return sampler(prompts, [count] * len(prompts), temperature, range(seed, seed + len(prompts)))


def prompts_of(policy, asks, count=4):
    return [policy.prompter.encode(ask) for ask in asks[:count]]


def greedy_from_scratch(policy, prompt, limit):
    """Token by token, the whole row through the model each time, no cache."""
    ids, stop = list(prompt), policy.stop_ids
    for _ in range(limit):
        with torch.no_grad():
            ids.append(policy.causal_lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
        text = policy.tokenizer.decode(ids[len(prompt):])
        if ids[-1] in stop or "</answer>" in text:
            break
    return ids[len(prompt):]


@pytest.mark.parametrize("quantize, weights", [("none", "nf4"), ("nf4", "nf4"), ("nf4", "dense")])
def test_prompts_of_unlike_length_computed_once_decode_like_separate_rows(make_policy, asks, quantize, weights):
    policy = make_policy(quantize)
    prompts = prompts_of(policy, asks)
    assert len(set(map(len, prompts))) > 1
    results = sampled(sampler_of(policy, 24, weights=weights), prompts, 3)
    for prompt, group in zip(prompts, results):
        expected = greedy_from_scratch(policy, prompt, 24)
        assert [ids for ids, _, _ in group] == [expected] * 3


def test_the_prompt_goes_through_the_model_once_for_its_group(make_policy, asks, monkeypatch):
    policy = make_policy()
    sampler, shapes = sampler_of(policy, 5, prefill=200), []
    forward = sampler._forward
    monkeypatch.setattr(sampler, "_forward",
                        lambda ids, **rest: shapes.append(tuple(ids.shape)) or forward(ids, **rest))
    prompts = prompts_of(policy, asks)
    sampled(sampler, prompts, 8, 1.0)
    prefills = [shape for shape in shapes if shape[1] > 1]
    assert (sum(rows for rows, _ in prefills) == 4 and len(prefills) > 1
            and {width for _, width in prefills} <= set(map(len, prompts)))
    assert all(length == 1 and rows <= 32 for rows, length in shapes[len(prefills):])


def stop_early(policy):
    """Make a third of the vocabulary end tokens, so that rows of a batch end at many different lengths."""
    policy.stop_ids = frozenset(range(0, len(policy.tokenizer), 3))


def test_finished_rows_leave_the_batch_and_change_no_other_row(make_policy, asks, monkeypatch):
    policy = make_policy()
    stop_early(policy)
    prompts = prompts_of(policy, asks, 12)
    compacted = sampled(sampler_of(policy, 20), prompts, 1)
    monkeypatch.setattr(sampling, "COMPACT_AT", 2.0)  # never
    whole = sampled(sampler_of(policy, 20), prompts, 1)
    assert [g[0][0] for g in compacted] == [g[0][0] for g in whole]
    assert len({len(g[0][0]) for g in whole}) > 1
    for (ids, logprobs, finished), in whole:
        assert len(ids) == len(logprobs) and finished == (ids[-1] in policy.stop_ids)
        assert not any(i in policy.stop_ids for i in ids[:-1])


def test_an_answer_tag_ends_the_completion_whatever_tokens_it_is_made_of(make_policy, asks):
    policy = make_policy()
    for text in ("<think> a</think>\n<answer>[1]</answer>", "x</answer>\n"):
        ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        ends = [k for k in range(1, len(ids) + 1) if ids[k - 1] in policy.closing and policy.ends(ids[:k])]
        first = min(ends)
        assert ("</answer>" in policy.tokenizer.decode(ids[:first])
                and "</answer>" not in policy.tokenizer.decode(ids[:first - 1]))


@pytest.mark.parametrize("temperature, quantize, weights", [(1.0, "none", "nf4"), (0.6, "none", "dense"),
                                                            (1.0, "nf4", "dense")])
def test_sampler_and_scorer_give_the_same_log_probabilities(make_policy, asks, temperature, quantize, weights):
    policy = make_policy(quantize)
    stop_early(policy)
    results = sampled(sampler_of(policy, 16, weights=weights), prompts_of(policy, asks), 4, temperature, seed=3)
    rows = pack(prompts_of(policy, asks), [[ids for ids, _, _ in group] for group in results], 4000)
    scored, _ = score_all(policy, rows, temperature, 4000)
    for k, (ids, logprobs, _) in enumerate(r for group in results for r in group):
        torch.testing.assert_close(scored[k], torch.tensor(logprobs), atol=2e-5, rtol=1e-5)


def test_samples_follow_the_distribution_at_their_temperature(make_policy, asks):
    policy = make_policy()
    prompt = prompts_of(policy, asks, 1)
    results = sampled(sampler_of(policy, 1), prompt, 20_000, 0.8)[0]
    counts = torch.bincount(torch.tensor([ids[0] for ids, _, _ in results]),
                            minlength=policy.head.weight.shape[0]) / 20_000
    with torch.no_grad():
        expected = (policy.causal_lm(input_ids=torch.tensor(prompt)).logits[0, -1] / 0.8).softmax(-1)
    assert (counts - expected).abs().max() < 0.015 and (counts - expected).abs().sum() < 0.15


def test_the_same_seed_gives_the_same_completions_and_another_seed_others(make_policy, asks):
    sampler = sampler_of(make_policy(), 8)
    draw = lambda seed: [c.ids for g in sample_groups(sampler, asks[:3], 4, 1.0, seed)  # noqa: E731
                         for c in g.completions]
    assert draw(1) == draw(1) != draw(2)


def test_groups_come_back_in_the_order_of_their_asks_whatever_the_batches(make_policy, asks):
    policy = make_policy()
    heard = []
    groups = sample_groups(sampler_of(policy, 6, batch=1200), asks, 1, 0.0, progress=heard.append)
    assert [g.ask for g in groups] == list(asks) and sum(heard) == len(asks) and len(heard) > 2
    assert [g.prompt for g in groups] == [policy.prompter.encode(ask) for ask in asks]
    one = local_model(sampler_of(policy, 6))(asks)
    assert [c.ids for _, c in one] == [g.completions[0].ids for g in groups]


def test_a_prompt_that_was_cut_says_so_in_traces_logs_and_counts(make_policy, asks):
    policy, asks = make_policy(), [ask for ask in asks if ask.query.task.startswith(("passage", "router"))]
    lengths = [len(policy.prompter.encode(ask)) for ask in asks]
    policy.prompter.max_tokens = sorted(lengths)[-2]
    cuts = [policy.prompter.fitted(ask)[1] for ask in asks]
    assert ([cut is not None for cut in cuts] == [length > policy.prompter.max_tokens for length in lengths]
            and {True, False} == {cut is None for cut in cuts})
    sampler = sampler_of(policy, 2)
    for groups in (sample_groups(sampler, asks, 2, 1.0), by_logits(sampler, asks)):
        assert [[c.cut for c in g.completions] for g in groups] == [[cut] * len(g.completions)
                                                                    for g, cut in zip(groups, cuts)]
        logged = log.completion_records(1, groups)
        assert [record.get("cut") for record in logged] == [c.cut for g in groups for c in g.completions]
    traced = [ask_log.record(("row", 0, ask.query.id, 0), ask, *answer)
              for ask, answer in zip(asks, local_model(sampler)(asks))]
    assert ([record.get("cut") for record in traced] == cuts
            and [("cut" in record) for record in traced] == [cut is not None for cut in cuts])


@pytest.mark.parametrize("thought", ["", "x</answer>", "<answer>[2]</answer>", "<answer></answer> <answer></answer>"])
def test_a_completion_ends_at_its_answer_whatever_closed_in_the_thought_just_before(make_policy, thought):
    policy = make_policy()
    text = f"<think> {thought}</think> <answer>[1]</answer> and on"
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    first = min(k for k in range(1, len(ids) + 1) if ids[k - 1] in policy.closing and policy.ends(ids[:k]))
    assert policy.tokenizer.decode(ids[:first]).endswith("</think> <answer>[1]</answer>")


def test_an_answer_tag_quoted_inside_the_thought_ends_nothing(make_policy):
    policy = make_policy()
    encode = lambda text: policy.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    ends = lambda ids: any(ids[k - 1] in policy.closing and policy.ends(ids[:k])  # noqa: E731
                           for k in range(1, len(ids) + 1))
    assert not ends(encode("<think> I will write <answer>[1]</answer> later"))
    assert not ends(encode("<think> <answer>[1]</answer></think>\n"))
    assert ends(encode("<think> <answer>[1]</answer></think>\n<answer>[2]</answer>"))


def test_a_template_that_opens_the_thought_gives_it_back_to_the_completion(make_policy, asks):
    policy = make_policy()
    policy.tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    policy.prompter = type(policy.prompter)(policy.tokenizer, 1400)
    assert policy.prompter.prefill == "<think>"
    written = policy.tokenizer("a</think>\n<answer>[1]</answer>", add_special_tokens=False)["input_ids"]
    completion = complete(policy, asks[0], written, [0.0] * len(written), True)
    assert completion.answer.ok and completion.text.startswith("<think>a</think>")


def test_a_completion_cut_by_the_limit_is_truncated_not_finished(make_policy, asks):
    policy = make_policy()
    policy.stop_ids = frozenset()
    group = sample_groups(sampler_of(policy, 3), asks[:1], 2, 1.0, seed=1)[0]
    assert all(not c.finished and c.answer.status == "truncated" and len(c.ids) == 3 for c in group.completions)


def test_what_is_drawn_for_a_prompt_depends_on_its_seed_not_on_its_batch(make_policy, asks, monkeypatch):
    policy = make_policy()
    stop_early(policy)
    prompts = prompts_of(policy, asks, 6)
    together = sampler_of(policy, 12)(prompts, [5, 1, 3, 4, 2, 5], 1.0, range(6))
    alone = [sampler_of(policy, 12)([prompt], [count], 1.0, [seed])[0]
             for seed, (prompt, count) in enumerate(zip(prompts, [5, 1, 3, 4, 2, 5]))]
    ids = lambda results: [[ids for ids, _, _ in group] for group in results]  # noqa: E731
    assert ids(together) == ids(alone)
    monkeypatch.setattr(sampling, "LOOK_EVERY", 1)
    monkeypatch.setattr(sampling, "COMPACT_AT", 0.01)
    assert ids(together) == ids(sampler_of(policy, 12)(prompts, [5, 1, 3, 4, 2, 5], 1.0, range(6)))


@pytest.mark.parametrize("heads", [2, 6])
def test_attention_over_a_shared_prompt_is_that_over_a_copy_of_it_a_row(heads):
    torch.manual_seed(0)
    # [keys and values][B or rows, kv, length, d]
    d, prompts, completions = 8, torch.randn(2, 3, 2, 5, 8), torch.randn(2, 6, 2, 4, 8)
    real = torch.tensor([[True] * 5, [False] * 2 + [True] * 3, [True] * 5])
    owner = torch.tensor([0, 0, 0, 1, 2, 2])
    cache = PromptCache([tuple(prompts)], real, owner, room=4)

    def check(rows, t):
        cache.window.width = int(cache.window.at.fill_(t)) + 1
        query, found = (torch.randn(len(rows), heads, 1, d),
                        cache.layers[0].update(completions[0, rows, :, t:t + 1], completions[1, rows, :, t:t + 1]))
        keys, values = (torch.cat([prompts[i][owner[rows]], completions[i, rows, :, :t + 1]], 2)
                        .repeat_interleave(heads // 2, 1) for i in (0, 1))
        mask = torch.cat([real[owner[rows]], torch.ones(len(rows), t + 1, dtype=torch.bool)], 1)[:, None, None]
        expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, mask, scale=0.3)
        got, _ = decoding(SimpleNamespace(layer_idx=0), query, *found, None, 0.3, prompt_cache=cache)
        torch.testing.assert_close(got, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)

    everyone, kept, last = torch.arange(6), torch.tensor([0, 2, 4, 5]), torch.tensor([4])
    check(everyone, 0), check(everyone, 1)
    cache.keep(kept)  # a whole group goes, and one of another
    assert cache.shape == (2, 2)
    check(kept, 2)
    cache.keep(torch.tensor([2]))
    check(last, 3)


def test_scores_of_decoding_are_fp32_whatever_a_model_computes_in(monkeypatch):
    """With Qwen2.5's large key biases, bf16 scores of hundreds are off by whole units; on CUDA products give fp32."""
    torch.manual_seed(0)
    keys, query = torch.randn(6, 2, 5, 8).bfloat16() + 30, torch.randn(6, 2, 3, 8).bfloat16() * 9
    exact = query.double() @ keys.double().transpose(-1, -2)
    found = attention.product(query, keys.transpose(-1, -2))
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1e-2 < (query @ keys.transpose(-1, -2) - exact).abs().max()
    seen = []

    def bmm(a, b, out_dtype):
        seen.append((a.shape, b.shape, out_dtype))
        return torch.einsum("bmd,bdn->bmn", a.float(), b.float())

    monkeypatch.setattr(torch, "bmm", bmm)
    on_cuda = SimpleNamespace(type="cuda")

    class Cuda(torch.Tensor):
        device = on_cuda
    on_card = attention.product(query.as_subclass(Cuda), keys.transpose(-1, -2))
    torch.testing.assert_close(on_card.as_subclass(torch.Tensor), found)
    assert seen == [((12, 3, 8), (12, 8, 5), torch.float32)]


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "lift_fresh_copy", "unique_dim", "_unique2",
           "repeat_interleave"}


@contextmanager
def failing():
    """As torch.cuda.graph ends a capture that failed."""
    try:
        yield
    except BaseException:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


class Recorded(TorchDispatchMode):
    """A CUDA graph on the CPU: the operations of a step, whose tensors stay where they are, done again by calling
    it."""

    def __init__(self, step):
        super().__init__()
        self.calls, self.before, self.replays = [], [], 0
        with self:
            step()
        for tensor, value in reversed(self.before):  # capturing computes nothing
            tensor.copy_(value)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert operation.overloadpacket.__name__ not in WAITING, "the host waits for the device, or the device for it"
        assert (not any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:]))
                or "index" not in str(operation))
        for argument, tensor in zip(operation._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before.append((tensor, tensor.clone()))
        made = operation(*args, **(kwargs or {}))
        self.calls.append((operation, args, kwargs or {}, made))
        return made

    def __call__(self):
        self.replays += 1
        for operation, args, kwargs, made in self.calls:
            for old, new in zip(tree_leaves(made), tree_leaves(operation(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():  # else a view, or changed in place
                    old.copy_(new)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("quantize, weights", [("none", "nf4"), ("nf4", "nf4"), ("nf4", "dense")])
def test_steps_that_are_replayed_draw_what_steps_that_are_computed_draw(
        make_policy, asks, monkeypatch, quantize, weights, temperature):
    policy, graphs = make_policy(quantize), []
    policy.stop_ids = frozenset(range(0, len(policy.tokenizer), 25))
    monkeypatch.setattr(sampling, "captured", lambda step: graphs.append(Recorded(step)) or graphs[-1])
    prompts, counts = prompts_of(policy, asks, 12), [1, 3, 2] * 4  # of unlike lengths
    sampler = sampler_of(policy, 30, weights=weights)
    expected = sampler(prompts, counts, temperature, range(12))
    assert graphs == [] and len({len(ids) for group in expected for ids, _, _ in group}) > 4
    sampler.block = 8
    found = sampler(prompts, counts, temperature, range(12))
    assert len(graphs) == 4 and sum(graph.replays for graph in graphs) > 20
    rows = {len(next(out for operation, _, _, out in graph.calls if operation is torch.ops.aten.embedding.default))
            for graph in graphs}
    assert len(rows) > 1  # some left between two blocks
    for group, other in zip(expected, found, strict=True):
        assert [(ids, finished) for ids, _, finished in group] == [(ids, finished) for ids, _, finished in other]
        for (_, logprobs, _), (_, values, _) in zip(group, other):
            assert values == pytest.approx(logprobs, abs=1e-5)


@pytest.fixture
def no_capture(monkeypatch):
    """Give a machine without CUDA its names; a capture ends as `ends` says. Returns the streams that were set."""
    streams = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "before")
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)

    def end(ends):
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, capture_error_mode: ends())
        return streams
    return end


@pytest.mark.parametrize("ends", [nullcontext, failing])
def test_a_model_that_cannot_be_captured_is_decoded_kernel_by_kernel(no_capture, caplog, ends):
    def refused(error):
        raise error
    streams = no_capture(ends)
    error = RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")
    assert sampling.captured(lambda: refused(error)) is None
    assert "not permitted when stream is capturing); it goes on kernel by kernel" in caplog.text
    assert streams == ["before"]
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):  # the plan says what to lower
        sampling.captured(lambda: refused(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")))


def test_after_a_failed_capture_the_same_tokens_are_drawn_and_none_is_tried_again(make_policy, asks, no_capture,
                                                                                  caplog):
    """The kernels of a step that is captured are not launched, so that nothing of it is done twice."""
    policy = make_policy()
    prompts, sampler = prompts_of(policy, asks, 3), sampler_of(policy, 20)
    expected = sampler(prompts, [2, 1, 2], 1.0, range(3))
    no_capture(lambda: (_ for _ in ()).throw(RuntimeError("CUDA error: no")))
    sampler.block = 8
    for _ in range(2):
        found = sampler(prompts, [2, 1, 2], 1.0, range(3))
        assert [[ids for ids, _, _ in group] for group in found] == [[ids for ids, _, _ in group] for group in expected]
    assert caplog.text.count("cannot be captured") == 1


def test_plain_weights_while_sampling_leave_the_policy_as_it_was(make_policy):
    policy = make_policy("nf4")
    for name, parameter in policy.adapter_parameters().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    ids, modules = torch.arange(10, 30)[None], [(name, id(m)) for name, m in policy.model.named_modules()]
    logits = lambda: policy.causal_lm(input_ids=ids).logits  # noqa: E731
    with torch.no_grad():
        trained = logits()
        with policy.sampling_weights("dense"):
            assert not any("4bit" in type(m).__name__ for m in policy.causal_lm.modules())
            torch.testing.assert_close(logits(), trained, atol=1e-4, rtol=1e-4)
        with policy.reference():
            base = logits()
            with policy.sampling_weights("dense"):
                torch.testing.assert_close(logits(), base, atol=1e-4, rtol=1e-4)
        assert (base - trained).abs().max() > 0.01
    assert [(name, id(m)) for name, m in policy.model.named_modules()] == modules


# asks about one query share the beginning of their prompts


def eliminated(policy, queries, shared, max_new_tokens=8, **options):
    """(rankings, prompt tokens that went through the model) of an elimination; `shared`: prompts are kept between
    asks."""
    ranker = load_ranker({"name": "elimination", **options})
    sampler = sampler_of(policy, max_new_tokens)
    sampler.settings.tokens_kept = 10**6 if shared else 0
    computed, forward = [], sampler._forward
    sampler._forward = lambda ids, **rest: (computed.append(ids.numel() if ids.shape[1] > 1 else 0),
                                            forward(ids, **rest))[1]
    asked = []
    rankings = run(ranker, queries, local_model(sampler),
                   on_ask=lambda ask, turn, completion: asked.append((ask, completion.ids, completion.logprobs)))
    return rankings, sum(computed), asked


@pytest.mark.parametrize("pool", ["rewrite", "append"])
def test_a_prompt_kept_between_asks_changes_no_token(make_policy, pool):
    policy = make_policy()
    policy.stop_ids = frozenset(range(0, len(policy.tokenizer), 5))
    queries = [world.query(task, "test", i)
               for i, task in enumerate(["rec-movie", "passage-5", "router-cost", "passage-9", "rec-game"])]
    kept, cost, asks_kept = eliminated(policy, queries, True, pool=pool)
    scratch, full, asks_scratch = eliminated(policy, queries, False, pool=pool)
    assert [r.order for r in kept] == [r.order for r in scratch]
    for (ask, ids, logprobs), (other, other_ids, other_logprobs) in zip(asks_kept, asks_scratch, strict=True):
        assert ask == other and ids == other_ids
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(other_logprobs), atol=2e-5, rtol=1e-5)
    assert cost < (0.3 if pool == "append" else 0.9) * full


def test_no_more_tokens_are_kept_than_there_is_room_for(make_policy):
    policy, shelf = make_policy(), {}
    prompts = [list(range(5, 25)), list(range(30, 50))]
    known = [shelf.setdefault(name, Known(shelf, 30)) for name in "ab"]
    sampler = sampler_of(policy, 2)
    first = sampler(prompts, [1, 1], 0.0, [0, 1], known)
    assert [len(k.ids) for k in known] == [20, 0]
    assert [k.shared(p) for k, p in zip(known, prompts)] == [19, 0]
    assert [g[0][0] for g in sampler(prompts, [1, 1], 0.0, [0, 1], known)] == [g[0][0] for g in first]


def test_logits_rank_the_last_ones_in_one_call_each(make_policy):
    policy = make_policy()
    queries = [world.query("rec-movie", "test", i) for i in range(3)]
    rankings, _, asks = eliminated(policy, queries, True, final=6)
    assert all(r.calls == 20 - 6 + 1 for r in rankings)
    for ask, ids, logprobs in asks:
        if ask.by_logits:
            prompt = policy.prompter.encode(ask)
            assert policy.tokenizer.decode(prompt).endswith("<answer>[")
            with torch.no_grad():
                expected = policy.causal_lm(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            named = [policy.prompter.identifier(k) for k in range(1, 7)]
            tokens = [policy.tokenizer(name, add_special_tokens=False)["input_ids"][-1] for name in named]
            order = sorted(range(6), key=lambda k: -expected[tokens[k]])
            ranking = next(r for r in rankings if r.query is ask.query)
            assert ranking.order[:6] == [ask.pool[k] for k in order[::-1]]
            assert ids == [tokens[order[0]]] and abs(logprobs[0] - expected[ids[0]].item()) < 1e-4


def test_identifiers_of_several_tokens_have_no_logit(make_policy):
    policy = make_policy()
    with pytest.raises(UserError, match=r"\[\d+\] is not one token"):
        policy.prompter.identifier_tokens(100)
