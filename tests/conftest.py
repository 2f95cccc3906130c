"""A small random Qwen2 with LoRA, its tokenizer, and a few groups of completions, shared by the tests."""

import argparse
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that asks a hub should fail at once

from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from ranker import config as settings, plugins, world  # noqa: E402
from ranker.engine import policy as policies  # noqa: E402
from ranker.prompting import messages  # noqa: E402
from ranker.tiny import tokenizer as tiny_tokenizer  # noqa: E402


def prepared(module, source, *words, seed=0, **options):
    """(queries, reason -> what was dropped) of a preparation; options as on its command line, True for a flag."""
    parser = argparse.ArgumentParser()
    module.arguments(parser)
    dropped = Counter()
    for name, value in options.items():
        words += (f"--{name}",) if value is True else (f"--{name}", value)
    args = argparse.Namespace(**vars(parser.parse_args([str(source), *map(str, words)])), seed=seed)
    return list(module.prepare(args, dropped)), dropped


@pytest.fixture(scope="session")
def asks():
    """Twelve elimination asks of all kinds of tasks."""
    queries = [world.query(task, "train", i) for i in range(2)
               for task in list(world.TASKS)[1::2] + ["passage-5", "rec-movie"]]
    ranker = plugins.load("ranker", {"name": "elimination"})
    return [ranker.sampled_asks(q, random.Random(i), None)[0] for i, q in enumerate(queries)]


@pytest.fixture(scope="session")
def tokenizer(asks):
    texts = [m["content"] for ask in asks for m in messages(ask)]
    return tiny_tokenizer.build([*texts, "<think> a [1]</think>\n<answer>[1]</answer>"] * 3, 600)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory, tokenizer):
    """A checkpoint folder as a user would point `model.name` at: Qwen2 of random weights with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.15, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_policy(base_folder):
    """A policy on the small base with a LoRA adapter whose B is not zero, so that it differs from its reference."""
    def make(quantize="none", moved=True, lora=plugins.load("lora", {"name": "lora", "rank": 4}), **options):
        torch.manual_seed(1)
        policy = policies.load(settings.Model(name=str(base_folder), quantize=quantize, device="cpu", **options), lora)
        if moved:
            with torch.no_grad():
                for name, parameter in policy.adapter_parameters().items():
                    if "lora_B" in name:
                        parameter.normal_(std=0.1)
        return policy
    return make
