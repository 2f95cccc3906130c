"""A pretrained causal LM and its tokenizer, loaded as they are meant, or refused with the reason and what would work.

Decisions a reader could doubt:
- A checkpoint that is quantised already keeps its own 4-bit weights (bitsandbytes) or is dequantised (FP8); any other
  is refused. Its quantisation config is never ignored: without their scales such weights load as meaningless numbers.
- No tensor is left as it was initialised: with a missing key the base would be another model at every load.
- The limits of a model (context, window, the length up to which longrope is one function) are read from its text
  configuration, also where the model reads images or sound besides.
- Router gates of a mixture of experts are not adapted, and no dropout is left (`without_dropout`).
"""

import ctypes
import importlib.util
import logging
import os.path
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from ranker import config as settings
from ranker.engine import gguf_file
from ranker.engine.attention import PREFILLING
from ranker.errors import UserError, nearest

TINY = Path(__file__).parents[1] / "tiny" / "model"
# The exceptions that reading a model's files can raise.
ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError, SafetensorError)
WORKS = ("Llama, Qwen2.5, Qwen3, Mistral, Gemma 2 and 3, Phi-3, SmolLM2, OLMo 2 and Granite 3 do; "
         "docs/robustness.md names all")
# Names of tensors that belong to quantised weights.
SCALES = re.compile(r"(scales?|scale_inv|qweight|qzeros|g_idx|absmax|SCB|quant_map|quant_state\.\w+)$")
ATTENDING = {"full_attention", "sliding_attention", "chunked_attention"}  # kinds of layers that can be computed
ROUTER = re.compile(r"(^|\.)(gate|router|\w*expert_gate)(\.|$)")  # modules that decide which expert a token goes to
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)
LARGE = 1e8  # bytes of a model's weights
BATCH_LENGTH = ("longrope", "dynamic")  # kinds of RoPE whose angles follow the longest position of a batch


def pick_device(wanted: str) -> torch.device:
    """Return the device of `model.device`. Raise UserError for CUDA where there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device is 'cuda', but no CUDA device is usable here; use 'auto' or 'cpu'")
    cuda = wanted != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def pick_dtype(model: settings.Model, device: torch.device) -> torch.dtype:
    """Return what the base computes in. Adapters and log-probabilities are fp32 in any case."""
    if model.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[model.dtype]
    pays = device.type == "cuda" or model.name != "tiny" and native_bf16()
    return torch.bfloat16 if pays else torch.float32


def native_bf16() -> bool:
    """Tell whether this CPU multiplies bf16 in hardware; others emulate it, slower than fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def pick_quantize(model: settings.Model, device: torch.device) -> str:
    """Return `none` or `nf4` for `model.quantize`: on a CPU 4 bits save memory and cost time."""
    if model.quantize != "auto":
        return model.quantize
    where = source(model)
    if where == TINY or device.type == "cuda" or not isinstance(where, Path):
        return "nf4"
    stored = sum(path.stat().st_size for path in where.glob("*.safetensors"))  # mostly 2 bytes a weight, fp32 takes 4
    return "none" if 2 * stored <= memory_bytes() / 3 else "nf4"


def memory_bytes() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def pick_attention(wanted: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the attention function for prompts while sampling. Raise UserError where the wanted one is unusable."""
    usable = importlib.util.find_spec("flash_attn") is not None and device.type == "cuda" and dtype == torch.bfloat16
    if wanted == "flash_attention_2" and not usable:
        raise UserError("model.attention is 'flash_attention_2', but that needs flash-attn installed, a CUDA device "
                        "and bfloat16; use 'auto' or 'sdpa'")
    return "flash_attention_2" if wanted != "sdpa" and usable else PREFILLING


def load_tokenizer(model: settings.Model):
    """Return the tokenizer of `model.name`. Raise UserError for a folder without one."""
    where = source(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except ERRORS as error:
        raise cannot_load(model, error) from None
    files = {"tokenizer.json", *filter(None, getattr(tokenizer, "vocab_files_names", {}).values())}
    missing = isinstance(where, Path) and not any((where / file).is_file() for file in files)
    if missing or len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):
        raise UserError(f"model '{model.name}' holds no tokenizer ({', '.join(sorted(files))}); "
                        "copy the files of its tokenizer into the folder")
    return tokenizer


def load(model: settings.Model, tokenizer, device: torch.device, dtype: torch.dtype, tokens: int) -> torch.nn.Module:
    """Return the causal LM of `model.name`, without gradients, for rows of at most `tokens` tokens.

    Raise UserError for a model that cannot be loaded as it is meant.
    """
    where = source(model)
    show = transformers_logging.enable_progress_bar if where != TINY else transformers_logging.disable_progress_bar
    show()  # every model but the built-in one takes long enough to load for a progress bar
    config = read_config(model)
    check_limits(config, model, tokens)
    refuse_family(config, model.name)
    quantisation = own_quantisation(config, replace(model, quantize=pick_quantize(model, device)), dtype)
    try:
        # transformers is told to ignore mismatched sizes, which are refused below in our words.
        causal_lm, info = AutoModelForCausalLM.from_pretrained(
            where, config=config, dtype=dtype, attn_implementation="eager", device_map={"": device},
            use_safetensors=True, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
            **quantisation)
    except ERRORS as error:
        raise cannot_load(model, error) from None
    absent = [*info["missing_keys"], *(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])]
    if absent:
        raise UserError(f"model '{model.name}' lacks {min(absent)} and {len(absent) - 1} more of its tensors, or has "
                        "them in another shape, and they would be random; take a whole checkpoint of this architecture")
    if scales := [key for key in info["unexpected_keys"] if SCALES.search(key)]:
        raise UserError(f"model '{model.name}' has {min(scales)}, a scale of quantised weights, but its config.json "
                        "does not say how it is quantised; without the scales its weights mean nothing. "
                        "Take a checkpoint in 16 bits")
    check_embeddings(tokenizer, causal_lm, model)
    for module in causal_lm.modules():
        # On a CPU with AVX512-BF16 bitsandbytes repacks 4-bit weights for a bf16 kernel that has no gradient.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if sum(parameter.nbytes for parameter in causal_lm.parameters()) > LARGE:
        map_large_blocks()
    torch.backends.cuda.enable_cudnn_sdp(False)  # short of memory it fails with an error that says nothing of memory
    return causal_lm.requires_grad_(False)


def map_large_blocks() -> None:
    """Let the C library (glibc alone) give memory from a megabyte on back as soon as it is freed.

    It would keep the blocks that a backward pass frees between those that it needs. SmolLM2's likelihood step on a CPU
    has a peak of 4.3 GB with this and of 6.8 without, at the same speed (docs/speed.md). Smaller models, such as the
    built-in policy, gain nothing by it.
    """
    with suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, 1 << 20)
        libc.mallopt(TRIM_THRESHOLD, 1 << 20)


def source(model: settings.Model) -> Path | str:
    """Return the folder of the base model, or its name on a hub. Raise UserError for a folder that holds no model."""
    if gguf_file.is_named(model.name):
        return gguf_file.folder(model.name)
    where = TINY if model.name == "tiny" else Path(os.path.expanduser(model.name))
    if where.is_dir():
        if not (where / "config.json").is_file():
            raise UserError(f"model.name: the folder {where} holds no config.json, so it is no model")
        return where
    if model.name.startswith((".", "/", "~")):
        raise UserError(f"model.name: there is no folder {model.name}{_near_folder(where)}")
    return model.name


def _near_folder(path: Path) -> str:
    siblings = [str(p) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    return nearest(str(path), siblings) if siblings else ""


def read_config(model: settings.Model):
    """Return the configuration of the base model. Raise UserError where it cannot be read."""
    try:
        return AutoConfig.from_pretrained(source(model), trust_remote_code=False)
    except ERRORS as error:
        raise cannot_load(model, error) from None


def cannot_load(model: settings.Model, error: Exception) -> UserError:
    """Return the UserError that tells in one line why a model cannot be loaded."""
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    hint = ("" if isinstance(source(model), Path) else
            "; without access to a model hub, point model.name at a local folder: "
            f"--model.name=/path/to/{model.name.split('/')[-1]}")
    return UserError(f"cannot load model '{model.name}': {reason}{hint}")


def check_limits(config, model: settings.Model, tokens: int) -> None:
    """Raise UserError where rows of `tokens` tokens are longer than the model can read, or can read as one function."""
    text = config.get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    longest = f"model.max_prompt + rollout.max_new_tokens is {tokens}, but"
    if context and tokens > context:
        raise UserError(f"{longest} {model.name} reads at most {context} tokens")
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in (ropes, *(rope for rope in ropes.values() if isinstance(rope, dict))):  # for all layers, or by kind
        original = (rope.get("original_max_position_embeddings")
                    or getattr(text, "original_max_position_embeddings", None) or context)
        if rope.get("rope_type") in BATCH_LENGTH and original and tokens > original:
            raise UserError(f"{longest} beyond {original} tokens the positions of {model.name} ({rope['rope_type']}) "
                            "depend on the longest row of a batch, so that no score would be one number; "
                            f"lower them to {original} in all")
    chunk = getattr(text, "attention_chunk_size", None)
    if chunk and tokens > chunk and "chunked_attention" in (getattr(text, "layer_types", None) or ()):
        raise UserError(f"{longest} {model.name} attends in chunks of {chunk} tokens, which is not computed here; "
                        f"lower them to {chunk} in all")


def refuse_family(config, name: str) -> None:
    """Raise UserError for a family that cannot be sampled and scored by shared prompts, naming the reason."""
    text = config.get_text_config()
    has = lambda key: bool(getattr(text, key, None))  # noqa: E731
    layers = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    others = sorted(set(layers) - ATTENDING - {"attention"})
    state_space = has("state_size") or text.model_type == "rwkv"
    why = ("keeps a state that runs through all tokens (a state space)" if state_space else
           f"has layers whose state runs through all tokens ({others[0]})" if others else
           "caches a latent of its keys and values (latent attention)" if has("kv_lora_rank") else
           "has layers that use the keys and values of other layers (shared layers)" if has("num_kv_shared_layers") else
           "adds a bias by distance to its attention scores (alibi)"
           if has("alibi") or text.model_type in ("bloom", "mpt") else
           "takes one attention from another (differential attention)" if text.model_type == "diffllama" else
           "gives its attention sinks beside the keys" if text.model_type == "gpt_oss" else "")
    if why:
        raise refusal(name, why)


def refusal(name: str, why: str) -> UserError:
    """Return the UserError for a model that does not work here: why, and which models do."""
    return UserError(f"model '{name}' {why}, so it does not work here; {WORKS}")


def own_quantisation(config, model: settings.Model, dtype: torch.dtype) -> dict:
    """Return the arguments of from_pretrained that quantise the model; none where the checkpoint is quantised.

    Change `config` so that stored weights are computed with in `dtype`. Raise UserError for weights that are quantised
    in a way that cannot carry a LoRA.
    """
    own = getattr(config, "quantization_config", None)
    if own is None and model.quantize != "nf4":
        return {}
    if own is None:
        return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                                          bnb_4bit_use_double_quant=True,
                                                          bnb_4bit_compute_dtype=dtype)}
    own = dict(own if isinstance(own, dict) else own.to_dict())
    in_bits = own.get("load_in_4bit") or own.get("load_in_8bit")
    method = own.get("quant_method") or ("bitsandbytes" if in_bits else "a way it does not name")
    method = str(getattr(method, "value", method))
    if method == "bitsandbytes" and own.get("load_in_4bit"):
        config.quantization_config = own | {"bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")}
    elif method == "fp8" and model.quantize == "none":
        config.quantization_config = own | {"dequantize": True}
    elif method == "fp8":
        raise UserError(f"model '{model.name}' is stored in fp8 and would have to be quantised twice; "
                        "--model.quantize=none computes with its weights in 16 bits, or take its checkpoint in "
                        "16 bits for nf4")
    else:
        what = method
        if method == "bitsandbytes":
            what = "bitsandbytes in 8 bits, whose products depend on the other rows of a batch"
        raise UserError(f"model '{model.name}' is quantised with {what}; no LoRA is trained on that here. "
                        "Take its checkpoint in 16 bits: --model.quantize=nf4 quantises it")
    return {}


def check_embeddings(tokenizer, causal_lm: torch.nn.Module, model: settings.Model) -> None:
    """Raise UserError for a tokenizer with tokens that the model has no embedding for."""
    rows = min(causal_lm.get_input_embeddings().weight.shape[0], causal_lm.get_output_embeddings().weight.shape[0])
    # A text model may share the tokenizer of a larger model, whose tokens for images and sounds are never in a prompt.
    places = {getattr(tokenizer, f"{kind}_token", None) for kind in ("image", "audio", "video", "boi", "eoi")}
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows and token not in places}
    if beyond:
        token = min(beyond, key=beyond.get)
        raise UserError(f"model '{model.name}' has embeddings for {rows} tokens and {len(beyond)} tokens beyond them, "
                        f"the first '{token}' ({beyond[token]}); take the tokenizer that belongs to it")


def without_dropout(causal_lm: torch.nn.Module) -> None:
    """Set every dropout to 0, modules and numbers alike, so that sampling, scoring and learning are one function."""
    for module in causal_lm.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def is_mixture(config) -> bool:
    """Tell whether a model routes its tokens among experts."""
    text = config.get_text_config()
    counts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(text, key, None) or 0) > 1 for key in counts)


def tell_of_mixture(causal_lm: torch.nn.Module, adapted: set[str], model: settings.Model) -> None:
    """Log which weights of a mixture of experts are quantised, and which modules are adapted."""
    if not is_mixture(causal_lm.config):
        return
    weights = [p for name, p in causal_lm.named_parameters()
               if p.dim() > 1 and ".lora_" not in name and "embed" not in name]
    packed = sum(2 * p.numel() for p in weights if type(p).__name__ == "Params4bit")  # two weights in a byte
    whole = sum(p.numel() for p in weights if type(p).__name__ != "Params4bit")
    quantised = (f"nf4 leaves {whole / (packed + whole):.0%} of its weights in "
                 f"{str(causal_lm.dtype).removeprefix('torch.')}, the experts where they are one tensor; "
                 if packed else "")
    logging.warning(f"model '{model.name}' is a mixture of experts: {quantised}"
                    + (f"LoRA adapts {', '.join(sorted(adapted))}; " if adapted else "") + "its routers are left alone")
