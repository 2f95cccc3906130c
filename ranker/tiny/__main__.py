"""Build the built-in policy: `python -m ranker.tiny [--out DIR] [--steps N] [--seed S] [--compile] [--init DIR]`.

A Qwen3 of about a million parameters learns the teacher's completions (`tutor.py`) on the built-in world's training
split, all nine tasks and all five decisions mixed, with some examples of text from outside that world (`plain.py`).
Prompt tokens carry no loss. The result is the same for the same seed, machine and number of threads; every example is
made from its own seed.

Four things, each measured, made it learn within the hour:
- Weights are drawn at 1/sqrt(width) instead of 0.02, so that attention is not flat at the start.
- Qwen3 has norms on queries and keys, which Qwen2 lacks.
- Pools and batches grow, since copying and comparing are learned by many small steps.
- The sign of fit stands right before the identifier.
"""

import logging
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from ranker import world
from ranker.data import Ask
from ranker.errors import Parser, exit_status
from ranker.prompting import Prompter, messages
from ranker.tiny import plain, tutor, tokenizer as tiny_tokenizer

VOCAB, HIDDEN, LAYERS, HEADS = 1536, 128, 4, 4
TOKENS_FIRST, TOKENS_LAST = 2048, 6144  # tokens of the first and the last batch, with padding; growing evenly between
BUCKET = 200  # examples sorted by length before they are cut into batches
PEAK_LR, WARMUP = 2e-3, 100
PLAIN_SHARE = 0.08  # share of the examples whose text is from outside the built-in world
# Recommendation is drawn more often, since it has the most words to learn.
TASK_WEIGHTS = [3 if task.startswith("rec") else 1 for task in world.TASKS]
FOLDER = Path(__file__).parent / "model"
log = logging.getLogger(__name__)


def draw_example(index: int, seed: int, size: int) -> tuple[Ask, str]:
    """Draw the `index`-th training example, (ask, completion), with a pool of at most `size` candidates."""
    rng = random.Random(f"{seed}/tiny/{index}")
    decision = rng.choices(list(tutor.SHARES), weights=list(tutor.SHARES.values()))[0]
    if rng.random() < PLAIN_SHARE:
        query, reading = plain.draw(rng, size)
    else:
        query, reading = world.draw(rng.choices(list(world.TASKS), TASK_WEIGHTS)[0], "train",
                                    rng.randrange(10**9), seed)
    return tutor.example(query, reading, decision, min(size, len(query.ids)), rng)


def pool_size(progress: float, rng: random.Random) -> int:
    """Draw the size of a pool, when the share `progress` (0 to 1) of training is over.

    Pools have up to 3 candidates in the first eighth of training, up to 6 in the second, up to 10 in the third, then up
    to 20. Small pools stay in the mix, since they give more answers per token.
    """
    return rng.randint(2, rng.choice((3, 6, 10, 20)[:1 + min(int(8 * progress), 3)]))


def build_tokenizer(seed: int):
    """Train the tokenizer on the prompts and completions of 4000 training examples."""
    texts = []
    for index in range(4000):
        ask, completion = draw_example(index, seed, 2 + index % 19)
        texts.append("\n".join(f"{m['role']}\n{m['content']}" for m in messages(ask)) + f"\nassistant\n{completion}")
    return tiny_tokenizer.build(texts, VOCAB)


def batches(prompter: Prompter, steps: int, seed: int, grown: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `steps` batches of examples of similar length: ids and labels, [B, T] each, -100 where there is no loss.

    Pools and batches grow over `steps` batches, as if `grown` batches had come before the first. With `grown` above 0
    the examples are others than with 0.
    """
    tokenizer, rng, index, made = prompter.tokenizer, random.Random(seed), 10**7 * bool(grown), 0
    while made < steps:
        rows = []
        for index in range(index, index + BUCKET):
            ask, completion = draw_example(index, seed, pool_size((made + grown) / steps, rng))
            target = tokenizer(completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            rows.append((prompter.encode(ask), target))
        index += 1
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        budget = TOKENS_FIRST + (TOKENS_LAST - TOKENS_FIRST) * min(made + grown, steps) // steps
        cut = [[]]
        for row in rows:
            if (len(cut[-1]) + 1) * (len(row[0]) + len(row[1])) > budget:
                cut.append([])
            cut[-1].append(row)
        rng.shuffle(cut)
        for batch in cut[:steps - made]:
            width = max(len(p) + len(t) for p, t in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            labels = torch.full_like(ids, -100)
            for i, (p, t) in enumerate(batch):
                ids[i, :len(p) + len(t)] = torch.tensor(p + t)
                labels[i, len(p):len(p) + len(t)] = torch.tensor(t)
            made += 1
            yield ids, labels


def main():
    parser = Parser(prog="python -m ranker.tiny", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=PEAK_LR, help="at its peak")
    parser.add_argument("--answer_weight", type=float, default=4.0,
                        help="of answer tokens in the loss; those of the trace weigh 1")
    parser.add_argument("--init", type=Path,
                        help="go on from these weights, with pools and batches of full size from the start")
    parser.add_argument("--compile", action="store_true", help="a quarter faster; needs a C++ compiler")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(args.seed)
    if args.init:
        tokenizer = AutoTokenizer.from_pretrained(args.init)
        model = Qwen3ForCausalLM.from_pretrained(args.init, dtype=torch.float32)
    else:
        tokenizer = build_tokenizer(args.seed)
        model = Qwen3ForCausalLM(Qwen3Config(
            vocab_size=VOCAB, hidden_size=HIDDEN, head_dim=HIDDEN // HEADS, intermediate_size=3 * HIDDEN,
            num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS, tie_word_embeddings=True,
            max_position_embeddings=4096, initializer_range=HIDDEN**-0.5, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    prompter = Prompter(tokenizer, max_tokens=4096)
    log.info("%.2f million parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    trunk = torch.compile(model.model, dynamic=True) if args.compile else model.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / WARMUP)
                                                 * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * s / args.steps))))
    answer_token = tokenizer.convert_tokens_to_ids("<answer>")
    grown = args.steps if args.init else 0  # with --init pools and batches have their full size from the start
    bar = tqdm(batches(prompter, args.steps, args.seed, grown), total=args.steps, unit="step", mininterval=5)
    # Since the last report: tokens right, all tokens, first answer tokens right, all first answer tokens.
    right = torch.zeros(4)
    for step, (ids, labels) in enumerate(bar):
        hidden = trunk(input_ids=ids).last_hidden_state[:, :-1]  # [B, T-1, H]
        target = labels[:, 1:]
        kept = target != -100
        logits = model.lm_head(hidden[kept])  # [completion tokens, V]
        answer = (ids[:, :-1] == answer_token).cumsum(-1).bool()[kept]  # true from the answer's first token on
        weight = 1.0 + (args.answer_weight - 1.0) * answer
        loss = (F.cross_entropy(logits, target[kept], reduction="none") * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad(set_to_none=True)
        hit, first = logits.argmax(-1) == target[kept], (ids[:, :-1] == answer_token)[kept]
        right += torch.tensor([hit.sum(), hit.numel(), hit[first].sum(), first.sum()])
        if step % 50 == 49:
            bar.set_postfix(loss=f"{loss.item():.3f}", right=f"{right[0] / right[1]:.3f}",
                            answer=f"{right[2] / right[3]:.3f}")
            right.zero_()
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    sys.exit(exit_status(main))
