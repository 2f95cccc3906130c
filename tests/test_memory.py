"""The memory plan: bytes predicted from a few short probes against those of whole batches, and what to lower where they
are too many."""

import copy
import random
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import train
from ranker import config as settings, credit, rewarding
from ranker.asking import Sample
from ranker.drive import load_ranker
from ranker.engine import memory, policy as policies
from ranker.engine.sampler import Sampler
from ranker.engine.scoring import pack, score
from ranker.errors import LONGEST, UserError
from ranker.plugins import load
from ranker.sources import Source
from ranker.stages import Stage
from ranker.world import queries

ADAM = torch.optim.AdamW


def costs_of(policy, weights="nf4", longest=200):
    rollout = settings.Rollout(weights=weights)
    return memory.measure(policy, Sampler(policy, rollout), ADAM(policy.adapter_parameters().values()), longest)


def tensors_of(function):
    with memory.Meter() as meter:
        function()
    return meter.peak


def learn(policy, prompts, prompt, completions, new):
    """The backward pass of a packed row, gradients there already."""
    for parameter in policy.adapter_parameters().values():
        parameter.grad = torch.zeros_like(parameter)
    rows = pack([[5] * prompt] * prompts, [[[6] * new] * completions] * prompts, 10**6)
    with policy.training_graph():
        return tensors_of(lambda: score(policy, rows, 1.0)[0].sum().backward())


def test_the_meter_counts_every_tensor_once_and_forgets_it_when_it_is_gone():
    with memory.Meter() as meter:
        kept = torch.zeros(1000)
        view = kept[::2].view(-1, 2).t()
        kept.add_(1)
        assert meter.now == 4000
        del kept
        assert meter.now == 4000 and view.shape == (2, 250)  # a view holds all of it
        other = view + 1
        assert meter.now == 6000
        del view, other
        assert (meter.now, meter.peak) == (0, 6000)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("shape", [(4, 150, 8, 20), (1, 300, 6, 90), (3, 30, 2, 200)])
def test_five_probes_tell_what_the_backward_pass_of_a_whole_batch_saves(make_policy, quantize, shape):
    policy = make_policy(quantize)
    costs = costs_of(policy)
    prompts, prompt, completions, new = shape
    terms = memory.batch_terms(prompts, prompt, prompts * completions, new)
    head = costs.head * min(costs.chunk, prompts * completions * new)
    planned = max(memory.total(costs.saved, terms) + head, memory.total(costs.step, terms))
    assert planned == pytest.approx(learn(policy, *shape), rel=0.05)


@pytest.fixture
def deep_policy(base_folder, tmp_path):
    """Return a policy of six layers, and the set of those that have computed since."""
    def make(**options):
        torch.manual_seed(1)
        config = AutoConfig.from_pretrained(base_folder, num_hidden_layers=6, layer_types=["full_attention"] * 6)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(base_folder).save_pretrained(tmp_path)
        model, ran = settings.Model(name=str(tmp_path), device="cpu", **options), set()
        policy = policies.load(model, load("lora", {"name": "lora", "rank": 4}))
        for i, layer in enumerate(policy.trunk.layers):
            layer.register_forward_pre_hook(lambda *_, i=i: ran.add(i))
        return policy, ran
    return make


@pytest.mark.parametrize("quantize, checkpointing, weights", [
    ("none", False, "nf4"), ("nf4", True, "nf4"),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (("none", True, "dense"), ("nf4", False, "dense")))])
def test_three_layers_tell_what_six_take(deep_policy, monkeypatch, quantize, checkpointing, weights):
    policy, ran = deep_policy(quantize=quantize, gradient_checkpointing=checkpointing)
    layers, config = list(policy.trunk.layers), settings.Config(rollout=settings.Rollout(weights=weights))
    few = costs_of(policy, weights)
    assert ran == {0, 1, 2} and list(policy.trunk.layers) == layers and not policy.model.training
    monkeypatch.setattr(memory, "of_all_layers", lambda policy, probe: probe())
    whole = costs_of(policy, weights)
    assert ran == set(range(6)) and few.layers == 6
    few.held = whole.held  # resident memory is not counted by probes
    for name, value in vars(whole).items():
        assert getattr(few, name) == pytest.approx(value, rel=1e-6, abs=1e-3), name
    expected = plan_of(whole, config, 1400).peaks(config)
    assert plan_of(few, config, 1400).peaks(config) == pytest.approx(expected, rel=1e-6)


def windowed(policy, monkeypatch):
    policy.trunk.layers[4].self_attn.sliding_window = 100


def indivisible(policy, monkeypatch):
    real = type(policy.trunk).forward

    def forward(self, *args, **kwargs):
        assert len(self.layers) != 2, "it needs more layers"
        return real(self, *args, **kwargs)
    monkeypatch.setattr(type(policy.trunk), "forward", forward)


@pytest.mark.parametrize("family", [windowed, indivisible])
def test_layers_that_differ_or_cannot_be_left_out_are_all_measured(deep_policy, monkeypatch, family):
    policy, ran = deep_policy()
    layers = list(policy.trunk.layers)
    family(policy, monkeypatch)
    assert costs_of(policy).layers == 6 and ran == set(range(6))
    assert list(policy.trunk.layers) == layers and not policy.model.training


def test_checkpointing_is_planned_with_it_on_and_foreseen_with_it_off(make_policy):
    shape = (3, 200, 4, 40)
    off, on = (costs_of(make_policy(gradient_checkpointing=checkpointing)) for checkpointing in (False, True))
    found = learn(make_policy(gradient_checkpointing=True), *shape)
    config = settings.Config(rollout=settings.Rollout(prompts_per_step=3, completions_per_prompt=4, max_new_tokens=40),
                             train=settings.Train(tokens_per_batch=1080),
                             model=settings.Model(gradient_checkpointing=True))
    for costs, error in ((on, 0.1), (off, 0.25)):
        items = plan_of(costs, config, longest=200).items(config)["learning"]
        assert items["activations"] + items.get("logits", 0) == pytest.approx(found, rel=error)
    assert found < learn(make_policy(), *shape) / 2


@pytest.mark.parametrize("weights", ["nf4", "dense"])
def test_prompts_are_planned_by_tokens_and_masks_and_the_dense_copy_by_the_weights(make_policy, weights):
    policy = make_policy("nf4")
    costs = costs_of(policy, weights)
    sampler = Sampler(policy, settings.Rollout(weights=weights))
    found = tensors_of(lambda: sampler.next_logits([[5] * 120] * 9))
    assert costs.dense + memory.total(costs.prefill, memory.prompt_terms(9, 120)) == pytest.approx(found, rel=0.05)
    layers = [module for name, module in policy.causal_lm.named_modules() if name.endswith("_proj")]
    assert costs.dense == (4 * sum(layer.in_features * layer.out_features for layer in layers) if weights == "dense"
                           else 0)


def test_measuring_leaves_weights_gradients_and_random_numbers_as_they_were(make_policy):
    policy = make_policy("nf4")
    before, state = {name: p.clone() for name, p in policy.model.named_parameters()}, torch.get_rng_state()
    costs_of(policy, "dense")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in policy.model.named_parameters())


def plan_of(costs, config, longest=200, count=4, asks=3):
    return memory.Plan(costs, config, torch.device("cpu"), longest, count, asks, 1)


@pytest.mark.parametrize("new, prefill", [(20, 16384), (40, 800)])
def test_the_plan_meets_what_the_phases_of_a_step_take(make_policy, new, prefill):
    """In bytes of tensors, which every machine counts alike. Random weights seldom end before they must."""
    policy = make_policy()
    config = settings.Config(rollout=settings.Rollout(prompts_per_step=6, completions_per_prompt=6, max_new_tokens=new,
                                                      tokens_per_prefill=prefill),
                             train=settings.Train(tokens_per_batch=2000))
    ranker, sampler = load_ranker(config.ranker), Sampler(policy, config.rollout)
    training, validation = queries("passage-5", "train", 6), queries("passage-5", "validation", 8)
    optimizer = ADAM(policy.adapter_parameters().values())
    ask = max((ranker.sampled_asks(q, random.Random(0), 5)[0] for q in [*training, *validation]),
              key=lambda a: len(policy.prompter.encode(a)))
    plan = memory.plan(config, policy, sampler, optimizer, ask, len(validation), ranker)
    found = {"validation": tensors_of(lambda: train.validate(config, sampler, ranker, {}, validation, 0))}
    stage = Stage(1, config, rewarding.load(config.reward), load("objective", config.objective),
                  load("draw", config.draw), Source("queries", item=training.__getitem__))
    with memory.Meter() as meter:
        groups = stage.draw.draw(stage.source, Sample(sampler, ranker, config.rollout, 0),
                                 partial(train.judge, stage, {}), {})
    found["sampling"] = meter.peak
    credit.mark(credit.completions(groups), torch.ones(36) > 0)  # as much as there can be
    found["learning"] = tensors_of(lambda: train.update(stage, policy, None, groups, 1))
    for phase, items in plan.items(config).items():
        # resident before, and what no tensor fills
        held = sum(items[item] for item in (*plan.costs.held, "heap") if item in items)
        assert sum(items.values()) - held == pytest.approx(found[phase], rel=0.2), phase


def test_a_group_that_cannot_be_split_is_planned_whole(make_policy):
    costs, planned = costs_of(make_policy()), {}
    for name in "grpo", "dpo":  # dpo needs its pair in one row
        config = settings.Config(objective={"name": name}, train=settings.Train(tokens_per_batch=300),
                                 rollout=settings.Rollout(completions_per_prompt=8, max_new_tokens=90))
        planned[name] = plan_of(costs, config).items(config)["learning"]["activations"]
    assert planned["dpo"] > 2 * planned["grpo"]  # 920 tokens in a row, not 290


def test_a_phase_is_measured_by_its_own_peak(make_policy):
    plan = plan_of(costs_of(make_policy()), settings.Config())
    try:
        memory.forget_peak(plan.device)
        open("/proc/self/clear_refs", "w").close()
    except OSError:
        pytest.skip("this system does not forget the peak of a process")
    size = 300_000_000
    for name, count in (("learning", size), ("sampling", 1000), ("learning", 1000)):
        before = memory.resident(plan.device)
        with plan.phase(name):
            torch.ones(count, dtype=torch.uint8)
        if name == "sampling":
            assert plan.measured[name] < before + size / 10
    assert plan.measured["learning"] - before == pytest.approx(size, rel=0.2)  # the highest so far


# about what 3 billion parameters take
BIG = memory.Costs({"weights": 2e9, "adapter": 1e8, "optimizer": 2e8, "other": 0}, 6e9, 36864, 36, [5e7, 1e5, 5.0],
                   [5e7, 4e6], [0.0, 4.5e6, 4.6e6, 3e4, 72.0], [1e8, 4.6e6, 4.7e6, 3e4, 72.0], 2.4e6, 441, 147456,
                   False)


@pytest.mark.parametrize("phase, first",
                         [("validation", "rollout.tokens_per_batch"), ("sampling", "rollout.tokens_per_batch"),
                          ("learning", "train.tokens_per_batch")])
@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to")])
def test_out_of_memory_names_three_settings_with_values_that_would_fit(monkeypatch, phase, first, error):
    config = settings.Config(rollout=settings.Rollout(weights="dense"))
    plan = plan_of(BIG, config, 1400, 90, 19)
    monkeypatch.setattr(memory, "available", lambda device: 30e9 if phase == "learning" else 14e9)
    with pytest.raises(UserError) as caught, plan.phase(phase):
        raise error
    text = str(caught.value)
    assert text.startswith(f"out of memory in {phase}:") and len(text) < LONGEST - 10 and phase not in plan.measured
    named = re.findall(r"--(\S+)=(\S+) \((\S+) GB\)", text)
    order = [memory.SETTINGS.index(name) for name, _, _ in named]
    assert len(named) == 3 and named[0][0] == first and order == sorted(order)
    lower = copy.deepcopy(config)
    for name, value, peak in named:
        settings.override(lower, f"{name}={value}")
        assert plan.peaks(lower)[phase] == pytest.approx(float(peak) * 1e9, abs=1e6)
    assert plan.peaks(lower)[phase] <= 0.9 * memory.available(None)


def test_the_first_setting_is_lowered_no_further_than_needed(monkeypatch):
    plan = plan_of(BIG, settings.Config(), 1400)
    monkeypatch.setattr(memory, "available", lambda device: 60e9)
    [(value, peak)] = re.findall(r"--train.tokens_per_batch=(\d+) \((\S+) GB\)", plan.advice("learning"))
    higher = copy.deepcopy(plan.config)
    higher.train.tokens_per_batch = 2 * int(value)
    assert float(peak) <= 54 < plan.peaks(higher)["learning"] / 1e9


def test_a_plan_that_was_too_low_is_lowered_all_the_same(monkeypatch):
    plan = plan_of(BIG, settings.Config(), 1400)
    monkeypatch.setattr(memory, "available", lambda device: 1e12)
    peaks = [float(peak) for peak in re.findall(r"\((\S+) GB\)", plan.advice("learning"))]
    assert (len(peaks) == 3 and peaks == sorted(peaks, reverse=True)
            and peaks[0] * 1e9 <= 0.9 * plan.peaks(plan.config)["learning"])


def test_other_errors_stay_bugs():
    with pytest.raises(RuntimeError, match="shapes"), plan_of(BIG, settings.Config()).phase("learning"):
        raise RuntimeError("shapes do not match")


def test_the_plan_is_an_aligned_table_and_says_whether_it_fits(monkeypatch):
    plan = plan_of(BIG, settings.Config(), 1400)
    table = plan.table()
    assert len({len(line) for line in table.splitlines()}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert cells[0] == ["memory in GB", "validation", "sampling", "learning"] and cells[-1][0] == "planned peak"
    for column in (1, 2, 3):
        assert sum(float(line[column]) for line in cells[2:-1]) == pytest.approx(float(cells[-1][column]), abs=0.01)
    for has, said in ((500e9, "500.000 GB there are"), (20e9, "learning will hardly fit: ")):
        monkeypatch.setattr(memory, "available", lambda device, has=has: has)
        assert plan.outlook().splitlines()[-1].startswith(said)
    plan.measured = {"learning": int(plan.peaks(plan.config)["learning"] * 0.9)}
    after = plan.table()
    assert "90%" in after and "weights" not in after and len({len(line) for line in after.splitlines()}) == 1


def test_a_run_that_goes_on_does_not_count_its_optimizer_twice(make_policy):
    policy = make_policy()
    optimizer = ADAM(policy.adapter_parameters().values())
    for parameter in policy.adapter_parameters().values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    fixed = SimpleNamespace(size=10**9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "resident", lambda device: fixed.size)
        held = memory.measure(policy, Sampler(policy, settings.Rollout()), optimizer, 100).held
    assert sum(held.values()) == pytest.approx(fixed.size, abs=1000)
