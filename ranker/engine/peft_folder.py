"""PEFT adapter folders: a plain LoRA is read; any other adapter is refused.

A plain LoRA adds B times A to a linear layer, also with rank and alpha patterns and with rank-stabilised scaling. Other
adapters would be sampled wrongly, or train other weights.
"""

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

from ranker import config as settings
from ranker.errors import UserError, nearest
from ranker.engine.pretrained import ERRORS, cannot_load, read_config

PLAIN = {  # fields of LoraConfig that may have any value; every other field must have PEFT's default
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out", "use_rslora",
    "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "target_parameters", "megatron_core",
    "qalora_group_size", "runtime_config", "ensure_weight_tying"}
STARTS = (True, False, "gaussian", "orthogonal")  # values of init_lora_weights that leave the base as it is


def head_name(causal_lm: torch.nn.Module) -> str:
    """Return the name of the module that is the LM head."""
    return next(name for name, module in causal_lm.named_modules() if module is causal_lm.get_output_embeddings())


def load_adapter(causal_lm: torch.nn.Module, folder: Path) -> PeftModel:
    """Return the model with the adapter saved in `folder`, which goes on learning.

    Raise UserError for an adapter that is no plain LoRA, is damaged, or was made for another base.
    """
    check_adapter_config(folder / "adapter_config.json")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():  # PEFT would fall back on pickled weights, then on a hub
        raise UserError(f"{folder} holds no adapter_model.safetensors; other formats are not read")
    head = head_name(causal_lm)
    try:
        with safe_open(weights, "pt") as file:
            saved = set(file.keys())
        if any(f".{head}.lora_" in key for key in saved):
            raise UserError(f"{folder} adapts {head}, the LM head, which scoring computes by itself; "
                            "it is not supported")
        adapted = PeftModel.from_pretrained(causal_lm, folder, is_trainable=True)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"cannot load the adapter {folder}: {' '.join(str(error).split())[:160]}; "
                        "was it trained on another base model?") from None
    # PEFT would ignore saved weights that the model lacks, and leave missing weights as they were drawn.
    if differing := saved ^ get_peft_model_state_dict(adapted, save_embedding_layers=False).keys():
        raise UserError(f"cannot load the adapter {folder}: {min(differing)} is "
                        f"{'no weight of the model' if differing <= saved else 'missing'}; "
                        "was it trained on another base model?")
    return adapted


def check_adapter_config(path: Path) -> None:
    """Raise UserError for a config of no plain LoRA: other adapters train, sample or import something of their own."""
    if not path.is_file():
        raise UserError(f"{path.parent} holds no adapter_config.json, so it is no adapter")
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    unknown = sorted(config.keys() - LoraConfig.__dataclass_fields__.keys())
    if unknown:
        raise UserError(f"{path}: unknown key '{unknown[0]}'"
                        f"{nearest(unknown[0], LoraConfig.__dataclass_fields__)[:160]}")
    if config.get("peft_type") != "LORA" or config.get("task_type") != "CAUSAL_LM" or config.get("megatron_config"):
        raise UserError(f"{path}: only a LoRA adapter of a causal language model can be loaded")
    for field in dataclasses.fields(LoraConfig):
        value = config.get(field.name)
        if (field.name in PLAIN or not value or value == field.default
                or (field.name == "init_lora_weights" and value in STARTS)):
            continue
        raise UserError(f"{path}: '{field.name}' makes it another adapter than plain LoRA, which would be sampled "
                        "wrongly; train one without it")


def check_adapters(model: settings.Model, folders: Sequence[Path]) -> None:
    """Raise UserError for a base that is not there, or an adapter that does not fit it; read no weights of the base."""
    config = read_config(model)
    try:
        for folder in folders:
            with torch.device("meta"):
                base = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            with warnings.catch_warnings():  # a warning that tensors without storage stay so
                warnings.simplefilter("ignore")
                load_adapter(base, folder)
    except ERRORS as error:
        raise cannot_load(model, error) from None
