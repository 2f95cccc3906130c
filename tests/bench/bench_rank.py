"""Ranking by elimination: prompts kept between asks against `transformers.generate`, called once a round as is usual.

    python tests/bench/bench_rank.py [--queries 16] [--candidates 20] [--words 75] [--repeats 3]

A random Qwen2 (256 wide, 6 layers) in fp32 with the built-in tokenizer ranks queries of passages of --words words (75:
about 100 tokens, the length that listwise rerankers cut passages to); every ask writes exactly --new tokens, so that
all do the same work: `append` (the list stays, what is out is stated at the end), `rewrite` (the list is written anew,
the paper's way), `generate` (the prompts of `rewrite`, one call of transformers' own an ask) and `generate, batched`
(one call a round for all queries, padded on the left). They run in turn in one process; medians of seconds, and of the
ratios of a turn. Ends with a line of JSON.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from ranker import config as settings  # noqa: E402
from ranker.asking import complete, local_model  # noqa: E402
from ranker.data import Candidate, Query  # noqa: E402
from ranker.drive import load_ranker, run  # noqa: E402
from ranker.engine import policy as policies, pretrained  # noqa: E402
from ranker.engine.sampler import Sampler  # noqa: E402
from ranker.evaluation import report  # noqa: E402


def make_policy(folder: str, limit: int) -> policies.Policy:
    tokenizer = AutoTokenizer.from_pretrained(pretrained.TINY)
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    policy = policies.load(settings.Model(name=folder, quantize="none", device="cpu", max_prompt=limit))
    policy.stop_ids = frozenset()  # every ask writes all its tokens
    return policy


def make_queries(policy: policies.Policy, count: int, candidates: int, length: int) -> list[Query]:
    """Passages of words that the tokenizer knows."""
    rng = random.Random(0)
    words = [w for w in (policy.tokenizer.decode([i]).strip() for i in range(len(policy.tokenizer)))
             if w.isalpha() and len(w) > 2]
    text = lambda n: " ".join(rng.choices(words, k=n))  # noqa: E731
    return [Query(f"q{i}", "rank", text(12), tuple(Candidate(f"c{k}", text(length)) for k in range(candidates)),
                  (1.0,) * candidates) for i in range(count)]


def generate_model(policy: policies.Policy, new: int, together: bool):
    """transformers' `generate`, once an ask or once for all asks of a round."""
    pad = policy.tokenizer.pad_token_id

    @torch.no_grad()
    def model(asks):
        found = []
        for batch in [asks] if together else [[ask] for ask in asks]:
            prompts = [policy.prompter.encode(ask) for ask in batch]
            width = max(map(len, prompts))
            ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
            real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
            with policy.attend("sdpa"):  # its fastest here
                written = policy.causal_lm.generate(ids, attention_mask=real, do_sample=False, min_new_tokens=new,
                                                    max_new_tokens=new, pad_token_id=pad)
            found += [(len(p), complete(policy, ask, row, [0.0] * new, False))
                      for p, ask, row in zip(prompts, batch, written[:, width:].tolist())]
        return found
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--words", type=int, default=75, help="of a passage")
    parser.add_argument("--new", type=int, default=24, help="tokens of an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy(folder, 6000)
    queries = make_queries(policy, args.queries, args.candidates, args.words)
    sampler = Sampler(policy, settings.Rollout(max_new_tokens=args.new, weights="dense"))
    ways = {"append": (load_ranker({"name": "elimination", "pool": "append"}), lambda: local_model(sampler)),
            "rewrite": (load_ranker({"name": "elimination"}), lambda: local_model(sampler)),
            "generate": (load_ranker({"name": "elimination"}), lambda: generate_model(policy, args.new, False)),
            "generate, batched": (load_ranker({"name": "elimination"}), lambda: generate_model(policy, args.new, True))}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rankings, written = {}, {}
    with tqdm(total=args.repeats * len(ways), desc="rank", unit="run") as bar:
        for _ in range(args.repeats):
            for name, (ranker, model) in ways.items():
                written[name] = []
                started = time.perf_counter()
                rankings[name] = run(
                    ranker, queries, model(),
                    on_ask=lambda ask, turn, completion, name=name: written[name].append(completion.ids))
                seconds[name].append(time.perf_counter() - started)
                bar.update()
    if written["rewrite"] != written["generate"]:
        raise AssertionError("rewrite and generate must write the same tokens")
    faster = {name: statistics.median(g / s for s, g in zip(seconds[name], seconds["generate"])) for name in ways}
    tokens = {name: sum(r.prompt_tokens for r in rankings[name]) // len(queries) for name in ways}
    lines = [[name, f"{statistics.median(seconds[name]) / len(queries):.2f}", f"{tokens[name]}", f"{faster[name]:.1f}"]
             for name in ways]
    print(report.markdown([f"{args.candidates} candidates, {args.new} tokens an answer", "seconds a query",
                           "prompt tokens a query", "times generate"], lines))
    print(json.dumps({"seconds": seconds, "faster": faster, "queries": args.queries, "candidates": args.candidates,
                      "words": args.words, "new": args.new, "threads": args.threads, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
