"""The configs of the second shelf train and rank, each with few steps of its own; RouterBench's rows by their tags."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

import evaluate
import train
from conftest import prepared
from ranker.data import Answer, Ask, Completion, Group
from ranker.lessons import soft_labels
from ranker.objectives import zooter
from ranker.prepare import routing
from ranker.sources import Source, split_of
from ranker.tiny import traces
from test_train import ROOT, call, records  # noqa: F401  a fixture

ROUTERBENCH = ROOT.parent / "shared/data/routerbench_11llm/routerbench_wide.csv.gz"
SHORT = ["--train.steps=2", "--train.warmup=0", "--rollout.prompts_per_step=4", "--rollout.completions_per_prompt=4",
         "--eval.every=2", "--eval.queries=1", "--model.device=cpu", "--data.tasks=passage-5"]
FINITE = {"dranker_rank": "loss", "iranker_sized": "loss", "gspo": "drift", "cispo": "loss", "maxrl": "loss",
          "iranker_entropy": "entropy_bonus", "latro": "gold_logprob", "coranking": "pairs", "rarl": "loss",
          "orderchain": "loss", "halving": "loss"}

TAUGHT = {"rarl": ("valued", "runs/valued.jsonl"), "orderchain": ("orderchain", "runs/ranges.jsonl")}


@pytest.mark.slow
@pytest.mark.parametrize("config", FINITE)
def test_a_config_trains_ranks_and_goes_on(call, config):  # noqa: F811
    path = ROOT / f"configs/{config}.yaml"
    if config in TAUGHT:  # their cold start imitates the teacher of the built-in policy
        ranker, traced = TAUGHT[config]
        assert call(traces, "--out", traced, "--count", 20, f"--ranker.name={ranker}")[0] == 0
        text = path.read_text()
        for long, short in ((r"- steps: \d+", "- steps: 1"), ("prompts_per_step: 48", "prompts_per_step: 4"),
                            ("warmup: 5", "warmup: 0")):
            text = re.sub(long, short, text)
        path = Path(f"{config}.yaml")
        path.write_text(text)
    status, _, err = call(train, path, *SHORT)
    assert status == 0, err
    lines = records(f"runs/{config}/metrics.jsonl")
    found = [line[FINITE[config]] for line in lines if FINITE[config] in line]  # a step of dead groups alone has none
    assert found and all(map(math.isfinite, found)) and lines[-1]["step"] == 2
    status, out, err = call(evaluate, "--ckpt", f"runs/{config}/last", "--limit", 1, "--tasks", "passage-5")
    assert status == 0 and "untrained base" in out, err


@pytest.mark.slow
def test_sizes_that_were_seen_go_on_with_the_run(call):  # noqa: F811
    status, _, err = call(train, ROOT / "configs/iranker_sized.yaml", *SHORT, "--run.save_every=1")
    assert status == 0, err
    state = json.loads(Path("runs/iranker_sized/last/checkpoint.json").read_text())["state"]
    assert sum(groups for groups, _ in state["sizes"].values()) == pytest.approx(4 * 0.9 + 4)


@pytest.mark.slow
def test_zooter_learns_from_a_file_of_routes(call):  # noqa: F811
    from ranker.prepare import __main__ as prepare
    status, _, err = call(prepare, "world", "--tasks", "router-balance", "--queries", 40, "--out", "routing.jsonl")
    assert status == 0, err
    short = [s for s in SHORT if "tasks" not in s and "prompts" not in s]
    status, _, err = call(train, ROOT / "configs/zooter.yaml", *short, "--data.train=routing.jsonl",
                          "--data.tasks=router-balance", "--rollout.prompts_per_step=8")
    assert status == 0, err
    last = records("runs/zooter/metrics.jsonl")[-1]
    assert last["kl_label"] > 0 and 0 <= last["right"] <= 1


@pytest.mark.skipif(not ROUTERBENCH.is_file(), reason="RouterBench's rows are not here")
def test_routerbench_is_smoothed_by_its_benchmarks():
    found, _ = prepared(routing, ROUTERBENCH, objectives="balance")
    tags = {tag for query in found for tag in query.tags}
    assert len(tags) == 3 and all(len(query.tags) == 1 for query in found)
    fit = [query for query in found if split_of(query.group, 0) == "train"]
    options = soft_labels.Options(tau=0.2, beta=0.3)
    items = soft_labels.lesson(Source("queries", fit), fit, options).items
    assert all(sum(query.relevance) == pytest.approx(1) for query in items)
    sums = soft_labels.tag_sums(fit, options)
    assert sum(count for count, _ in sums.values()) == len(fit)  # of training queries alone
    group = Group(Ask(items[0], items[0].ids, "order", by_logits=True), [], [
        Completion([k], [math.nan], "", True, Answer("ok", (c,), 1)) for k, c in enumerate(items[0].ids)])
    for c, share in zip(group.completions, items[0].relevance):
        c.returns = {"task": share, "total": share}
    zooter.alive([group], zooter.Options())
    zooter.targets([group], zooter.Options())
    label = torch.stack([c.signals["label"][0] for c in group.completions])
    assert label.tolist() == pytest.approx(items[0].relevance)
    assert zooter.divergence(label.log(), label, "target_first").abs() < 1e-6
    # Smoothing pulls a query towards what its benchmark likes: less spread than its own label.
    spread = lambda label: max(label) - min(label)  # noqa: E731
    own = [spread(soft_labels.own(query, options)) for query in fit]
    assert sum(map(spread, (query.relevance for query in items))) < sum(own)
