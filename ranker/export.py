"""Take a trained ranker elsewhere: its adapter merged into the base, as a folder or as one GGUF file.

    python -m ranker.export --ckpt runs/iranker/best --merged DIR      16-bit safetensors, tokenizer, chat template
    python -m ranker.export --ckpt runs/iranker/best --gguf FILE       16-bit GGUF, of the Llama and Qwen2 families

The adapter was trained beside a base that may have been in 4 bits; it is merged onto the unquantised one, in fp32, and
rounded once. What that costs is measured and printed: how far the log-probability of a token moves, against base and
adapter apart, computed as they were trained (`4 bits`) and unquantised. A merged model in 4 bits would be another one
again, so none is written.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ranker import chats, checkpoint, config as settings, drive, llms, world
from ranker.engine import policy as policies
from ranker.engine.policy import Policy
from ranker.engine.scoring import pack, score_all
from ranker.errors import Parser, UserError, exit_status
from ranker.files import write_text, writing

FAMILIES = {"llama": "LLAMA", "qwen2": "QWEN2"}  # model_type -> the architecture's name in the package gguf
# A tokenizer's splitter -> its name in a GGUF file. A tokenizer is known by how it splits this text.
PROBE = "It's 2024: 12 or 345,678?  Ça va?\n\n  naïve TEST東京 hats'll x=y"
SAMPLES = 6  # queries whose right answers are scored


def main() -> None:
    parser = Parser(prog="python -m ranker.export", description=__doc__)
    parser.add_argument("--ckpt", required=True, help="a checkpoint or a run folder")
    parser.add_argument("--merged", type=Path, help="the folder to write")
    parser.add_argument("--gguf", type=Path, help="the file to write")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16", help="of --merged")
    parser.add_argument("--base", help="the base model, where it is not where the checkpoint says")
    args = parser.parse_args()
    if not (args.merged or args.gguf):
        raise UserError("name what to write: --merged DIR or --gguf FILE")
    if args.merged and args.merged.exists():
        raise UserError(f"--merged {args.merged} is there already; name another folder")
    if args.gguf and (args.gguf.exists() or args.gguf.suffix != ".gguf"):
        raise UserError(f"--gguf {args.gguf} " + ("is there already" if args.gguf.exists() else "must end with .gguf"))
    folder = checkpoint.find(args.ckpt)
    config = settings.build(checkpoint.describe(folder)["config"], str(folder / "checkpoint.json"))
    settings.resolve(config, str(folder))
    config.model.name = args.base or config.model.name
    plain = replace(config.model, quantize="none", dtype="float32", device="cpu", attention="auto")
    wanted = completions(config)
    print(f"loading {plain.name} with the adapter {folder}")
    here = replace(config.model, device="auto")  # where it was trained there may have been a card
    trained = logprobs(policies.load(here, None, folder), wanted) if is_quantised(here) else None
    policy = policies.load(plain, None, folder)
    apart = logprobs(policy, wanted)
    merged = policy.model.merge_and_unload()
    policy.tokenizer.chat_template = chats.read(config.model.chat_template) or policy.tokenizer.chat_template
    if args.merged:
        dtype = getattr(torch, args.dtype)
        save(merged, policy.tokenizer, dtype, args.merged)
        compare(apart, trained, logprobs(policies.load(replace(plain, name=str(args.merged))), wanted))
        print(f"{args.merged}: base and adapter in one, {args.dtype}")
    if args.gguf:
        write_gguf(merged, policy.tokenizer, args.gguf)
        compare(apart, trained, logprobs(policies.load(replace(plain, name=str(args.gguf))), wanted))
        print(f"{args.gguf}: base and adapter in one, 16 bits")
    name = args.merged or args.gguf
    print(f"next: python evaluate.py --config CONFIG --model.name={name}")


def is_quantised(model: settings.Model) -> bool:
    return policies.pretrained.pick_quantize(model, policies.pick_device(model.device)) == "nf4"


def completions(config: settings.Config) -> list[tuple]:
    """Return asks of the checkpoint's ranker about queries of the built-in world, with their right answers."""
    ranker = drive.load_ranker(config.ranker)
    queries = [world.query(task, "test", 0, config.data.seed) for task in list(world.TASKS)[:SAMPLES]]
    return [(ask, llms.right_answer(ask)) for query in queries for ask in llms.rehearsal(ranker, query)[:1]]


@torch.no_grad()
def logprobs(policy: Policy, wanted: Sequence[tuple]) -> torch.Tensor:
    """Return the log-probabilities of all tokens of the completions, [tokens]."""
    prompter = policy.prompter
    prompts = [prompter.encode(ask) for ask, _ in wanted]
    rows = pack(prompts, [[prompter.completion(text)] for _, text in wanted], 4096)
    found, _ = score_all(policy, rows, 1.0, 4096)
    return torch.cat([found[k].float().cpu() for k in sorted(found)])


def compare(apart: torch.Tensor, trained: torch.Tensor | None, merged: torch.Tensor) -> None:
    """Print how far the log-probabilities of a merged model are from those of base and adapter apart."""
    for name, reference in (("base and adapter apart, fp32", apart), ("as trained, 4 bits", trained)):
        if reference is not None:
            gap = (merged - reference).abs()
            print(f"a token's log-probability against {name}: {gap.mean():.2g} nats on average, {gap.max():.2g} at most"
                  f" ({len(gap)} tokens)")


def save(model: torch.nn.Module, tokenizer, dtype: torch.dtype, folder: Path) -> None:
    """Write a model and its tokenizer into a new folder, which gets its name when it is whole."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with writing(folder):
            state = {name: value.to(dtype) for name, value in model.state_dict().items()}
            model.save_pretrained(working, state_dict=state)
            path = working / "config.json"  # it tells how the model was held, not how it is written
            config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": str(dtype).removeprefix("torch.")}
            write_text(path, json.dumps(config, indent=2))
            tokenizer.save_pretrained(working)
            working.chmod(0o755)
            working.rename(folder)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def write_gguf(model: torch.nn.Module, tokenizer, path: Path) -> None:
    """Write a model of the Llama or Qwen2 family and its tokenizer as a 16-bit GGUF file; UserError for others."""
    try:
        import gguf
    except ImportError:
        raise UserError("--gguf needs the package gguf; type: make smollm2") from None
    config = model.config
    if config.model_type not in FAMILIES:
        raise UserError(f"--gguf writes the families {', '.join(FAMILIES)}, and this model is a {config.model_type};"
                        " --merged DIR keeps it as it is")
    kind = getattr(gguf.MODEL_ARCH, FAMILIES[config.model_type])
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    working = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(working, gguf.MODEL_ARCH_NAMES[kind])
    try:
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        for add, value in (
                (writer.add_context_length, config.max_position_embeddings),
                (writer.add_embedding_length, config.hidden_size), (writer.add_block_count, config.num_hidden_layers),
                (writer.add_feed_forward_length, config.intermediate_size), (writer.add_head_count, heads),
                (writer.add_head_count_kv, config.num_key_value_heads), (writer.add_key_length, size),
                (writer.add_value_length, size), (writer.add_layer_norm_rms_eps, config.rms_norm_eps),
                (writer.add_rope_freq_base, rope_theta(config)), (writer.add_rope_dimension_count, size),
                (writer.add_vocab_size, config.vocab_size), (writer.add_file_type, gguf.LlamaFileType.MOSTLY_F16)):
            add(value)
        add_tokenizer(writer, tokenizer, config)
        for name, value in tqdm(model.state_dict().items(), desc="tensors", unit="tensor"):
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue  # the file has no output of its own
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise UserError(f"--gguf: the tensor {name} has no place in the family's files; --merged DIR keeps it")
            if config.model_type == "llama" and name.split(".")[-2] in ("q_proj", "k_proj"):
                count = heads if ".q_proj." in name else config.num_key_value_heads
                value = neighbours(value, count)
            value = value.float()
            writer.add_tensor(target, (value if value.dim() == 1 else value.half()).numpy())
        with writing(path):
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            working.rename(path)
    finally:
        working.unlink(missing_ok=True)


def neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return rows of q or k in the order of Llama's files: the pairs that rotate together, (i, i + d / 2), side by
    side."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def rope_theta(config) -> float:
    """Return the base of the rotary frequencies. Raise UserError for scaled ones, which these files tell otherwise."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"--gguf: rotary positions of the type {rope['rope_type']} are not written; --merged DIR keeps"
                        " them")
    return float(rope.get("rope_theta") or getattr(config, "rope_theta", 10000.0))


def add_tokenizer(writer, tokenizer, config) -> None:
    """Write a byte-level BPE tokenizer. Raise UserError for others, and for a splitter without a name."""
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    if made["model"]["type"] != "BPE" or not made["model"].get("merges"):
        raise UserError("--gguf writes tokenizers of byte-level BPE alone; --merged DIR keeps this one")
    vocabulary = tokenizer.get_vocab()
    size = max(config.vocab_size, max(vocabulary.values()) + 1)
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [5] * size  # 5: unused
    added = tokenizer.added_tokens_decoder
    for token, i in vocabulary.items():
        tokens[i], kinds[i] = token, (3 if added[i].special else 4) if i in added else 1
    merges = [m if isinstance(m, str) else " ".join(m) for m in made["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for add, value in ((writer.add_bos_token_id, tokenizer.bos_token_id),
                       (writer.add_eos_token_id, tokenizer.eos_token_id),
                       (writer.add_pad_token_id, tokenizer.pad_token_id)):
        if value is not None:
            add(value)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def splitter(tokenizer) -> str:
    """Return the name of the way in which a tokenizer splits texts. Raise UserError for one without a name."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as known
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ways = {"gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False), "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])}
    for name, pattern in known.items():
        if isinstance(pattern, str):
            ways[name] = pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), bytes_])
    own = tokenizer.backend_tokenizer.pre_tokenizer
    for name, way in ways.items():
        if own is not None and own.pre_tokenize_str(PROBE) == way.pre_tokenize_str(PROBE):
            return name
    raise UserError("--gguf: this tokenizer splits texts in a way without a name in GGUF files; --merged DIR keeps it")


if __name__ == "__main__":
    sys.exit(exit_status(main))
