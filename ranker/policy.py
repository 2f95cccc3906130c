"""The policy: a causal LM, quantised or not, with a LoRA adapter; the reference is the same model, adapter off.

Decisions a reader could doubt:
- Adapters are fp32 whatever the base computes in: in bf16 most entries of A never move at RL learning rates.
- Dropout is 0 and the model stays in eval mode, so that sampling and scoring see one function. Gradient checkpointing
  works in train mode only, so scoring switches it on (`training_graph`) and off again.
- Scoring slices hidden states before the LM head and attends by prompt and completion. Models that change their logits
  behind the head, or attend in another way (soft-capping, scales, sinks), are found by comparing on a few tokens, and refused.
"""

import importlib.util
import json
import os.path
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import TemplateError
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from ranker import config as settings
from ranker.attention import PACKED, layout
from ranker.errors import UserError, nearest
from ranker.prompting import Prompter

TINY = Path(__file__).parent / "tiny" / "model"


@dataclass
class Policy:
    """A loaded model and what belongs to it. `model` is a PeftModel, or the bare causal LM when there is no adapter."""

    model: torch.nn.Module
    tokenizer: object
    prompter: Prompter
    device: torch.device
    stop_ids: frozenset[int]  # every end token of the generation config
    attention: str  # while sampling; scoring needs a free mask and uses SDPA
    checkpointing: bool = False  # recompute activations in the backward pass
    critic: torch.nn.Linear | None = None  # hidden state -> value, fp32; for objectives that need one
    frozen: dict[str, torch.Tensor] | None = None  # the adapter a stage began with, its reference; None: the base

    @property
    def causal_lm(self) -> torch.nn.Module:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def trunk(self) -> torch.nn.Module:
        """Token ids -> hidden states."""
        return self.causal_lm.base_model

    @property
    def head(self) -> torch.nn.Module:
        """Hidden states -> logits."""
        return self.causal_lm.get_output_embeddings()

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def add_critic(self) -> None:
        """A value head that starts by predicting zero."""
        self.critic = torch.nn.Linear(self.head.weight.shape[-1], 1, device=self.device, dtype=torch.float32)
        torch.nn.init.zeros_(self.critic.weight), torch.nn.init.zeros_(self.critic.bias)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the base without its adapter, or has the adapter that `freeze` kept."""
        if self.frozen is None:
            with self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext():
                yield
            return
        moving = {name: p.data for name, p in self.adapter_parameters().items()}
        try:
            for name, p in self.adapter_parameters().items():
                p.data = self.frozen[name]
            yield
        finally:
            for name, p in self.adapter_parameters().items():
                p.data = moving[name]

    def freeze(self) -> None:
        """Keep the adapter as it is now for a reference."""
        self.frozen = {name: p.detach().clone() for name, p in self.adapter_parameters().items()}

    @contextmanager
    def attend(self, attention: str) -> Iterator[None]:
        """Inside, the model computes attention by the function of that name."""
        before = self.causal_lm.config._attn_implementation
        if attention != before:
            self.causal_lm.set_attn_implementation(attention)
        try:
            yield
        finally:
            if attention != before:
                self.causal_lm.set_attn_implementation(before)

    @contextmanager
    def training_graph(self) -> Iterator[None]:
        """Inside, gradient checkpointing (if configured) is on, and the attention of packed rows, which it needs in the backward pass."""
        self.model.train(self.checkpointing)
        try:
            with self.attend(PACKED):
                yield
        finally:
            self.model.eval()

    @contextmanager
    def sampling_weights(self, weights: str) -> Iterator[None]:
        """Inside, with `dense`, the linear layers compute with a dequantised copy of their weights, for sampling only.

        In fp32 the adapter is added to the copy, which changes a log-probability by 1e-6. In bf16 it would be lost in
        rounding, so it stays a layer of its own: sampling and training see the same numbers.
        """
        replaced = []
        for name, module in list(self.causal_lm.named_modules()) if weights == "dense" else ():
            base = module.get_base_layer() if isinstance(module, LoraLayer) else module
            if not isinstance(base, torch.nn.Linear) or base is self.head or name.endswith(".base_layer") or ".lora_" in name:
                continue
            weight, path = dequantize_module_weight(base).detach(), name
            if isinstance(module, LoraLayer) and weight.dtype == torch.float32:
                if not module.disable_adapters:
                    weight = weight + sum(module.get_delta_weight(adapter) for adapter in module.active_adapters)
            elif weight.data_ptr() == base.weight.data_ptr():  # it was plain before
                continue
            elif module is not base:
                path = f"{name}.base_layer"
            parent, _, child = path.rpartition(".")
            replaced.append((self.causal_lm.get_submodule(parent), child, self.causal_lm.get_submodule(path)))
            setattr(*replaced[-1][:2], _plain_linear(weight, base.bias))
        try:
            yield
        finally:
            for parent, child, module in replaced:
                setattr(parent, child, module)


def _plain_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.bias = bias
    return layer


def pick_device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device is 'cuda', but no CUDA device is usable here; use 'auto' or 'cpu'")
    cuda = wanted != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def pick_attention(wanted: str, device: torch.device, dtype: torch.dtype) -> str:
    usable = importlib.util.find_spec("flash_attn") is not None and device.type == "cuda" and dtype == torch.bfloat16
    if wanted == "flash_attention_2" and not usable:
        raise UserError("model.attention is 'flash_attention_2', but that needs flash-attn installed, a CUDA device and bfloat16;"
                        " use 'auto' or 'sdpa'")
    return "flash_attention_2" if wanted != "sdpa" and usable else "sdpa"


def load(model: settings.Model, lora: settings.Lora | None = None, adapter: Path | None = None, max_new_tokens: int = 0) -> Policy:
    """The policy of a config: with a fresh adapter (`lora`), a saved one (`adapter`), or none.

    `max_new_tokens` is the longest completion that will be sampled: with the prompt it must fit the model's context.
    A fresh adapter draws A from torch's global generator and has B = 0, so it starts as the base model.
    """
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)  # PEFT's own call
    device = pick_device(model.device)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(
        model.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32)
    attention = pick_attention(model.attention, device, dtype)
    tokenizer, causal_lm = _load_base(model, device, dtype, attention)
    causal_lm.requires_grad_(False)
    if adapter is not None:
        loaded = _load_adapter(causal_lm, adapter)
    elif lora is not None:
        loaded = _new_adapter(causal_lm, lora)
        loaded.peft_config["default"].base_model_name_or_path = model.name
    else:
        loaded = causal_lm
    if model.gradient_checkpointing:
        causal_lm.activation_checkpointing_enable({"use_reentrant": False})
    loaded.eval()
    _check_context(causal_lm.config, model, max_new_tokens)
    try:
        prompter = Prompter(tokenizer, model.max_prompt)
    except (TemplateError, ValueError) as error:
        raise UserError(f"model '{model.name}': its chat template cannot render a system and a user message ({error})") from None
    policy = Policy(loaded, tokenizer, prompter, device,
                    _stop_ids(causal_lm, tokenizer, model.name), attention, model.gradient_checkpointing)
    _check_computation(policy, model.name)
    return policy


def _load_base(model: settings.Model, device: torch.device, dtype: torch.dtype, attention: str):
    source = _source(model)
    show = transformers_logging.enable_progress_bar if source != TINY else transformers_logging.disable_progress_bar
    show()  # loading takes long enough for a bar unless the model is the built-in one
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
    ) if model.quantize == "nf4" else None
    try:
        AutoConfig.from_pretrained(source, trust_remote_code=False)  # fails before gigabytes of weights are looked for
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        causal_lm = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, quantization_config=quantization, attn_implementation=attention,
            device_map={"": device}, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise _cannot_load(model, error) from None
    for module in causal_lm.modules():
        # On a CPU with AVX512-BF16 bitsandbytes repacks 4-bit weights for a bf16 kernel that has no gradient.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return tokenizer, causal_lm


def _source(model: settings.Model) -> Path | str:
    """The folder of the base model, or its name on a hub."""
    source = TINY if model.name == "tiny" else Path(os.path.expanduser(model.name))
    if source.is_dir():
        if not (source / "config.json").is_file():
            raise UserError(f"model.name: the folder {source} holds no config.json, so it is no model")
        return source
    if model.name.startswith((".", "/", "~")):
        raise UserError(f"model.name: there is no folder {model.name}{_near_folder(source)}")
    return model.name


def _cannot_load(model: settings.Model, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    hint = ("" if isinstance(_source(model), Path) else "; without access to a model hub, point model.name at a local folder:"
            f" --model.name=/path/to/{model.name.split('/')[-1]}")
    return UserError(f"cannot load model '{model.name}': {reason}{hint}")


def check_adapters(model: settings.Model, folders: Sequence[Path]) -> None:
    """Raises UserError for a base that is not there and for an adapter that does not fit it; no weights of the base are read."""
    try:
        config = AutoConfig.from_pretrained(_source(model), trust_remote_code=False)
        for folder in folders:
            with torch.device("meta"):
                base = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            with warnings.catch_warnings():  # that tensors without storage stay so
                warnings.simplefilter("ignore")
                _load_adapter(base, folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _cannot_load(model, error) from None


def _check_context(config, model: settings.Model, max_new_tokens: int) -> None:
    needed, context = model.max_prompt + max_new_tokens, getattr(config, "max_position_embeddings", None)
    if context and needed > context:
        raise UserError(f"model.max_prompt + rollout.max_new_tokens is {needed}, but {model.name} reads at most {context} tokens")
    window = getattr(config, "sliding_window", None)
    if (set(getattr(config, "layer_types", None) or ()) - {"full_attention"}) or (window and window < needed):
        raise UserError(f"model '{model.name}' has layers with another attention than the full one; they are not supported,"
                        " since packed rows would let them see beyond their window")


def _near_folder(path: Path) -> str:
    siblings = [str(p) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    return nearest(str(path), siblings) if siblings else ""


def _new_adapter(causal_lm, lora: settings.Lora) -> PeftModel:
    targets = lora.targets if lora.targets == "all-linear" else [t.strip() for t in lora.targets.split(",")]
    if "lm_head" in targets:
        raise UserError("lora.targets: an adapter on lm_head would be ignored, since scoring slices the head; leave it out")
    try:
        adapted = get_peft_model(causal_lm, LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"))
    except ValueError as error:
        raise UserError(f"lora.targets '{lora.targets}': {str(error).splitlines()[0]}") from None
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _load_adapter(causal_lm, folder: Path) -> PeftModel:
    _check_adapter_config(folder / "adapter_config.json")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():  # PEFT would fall back on pickled weights, then on a hub
        raise UserError(f"{folder} holds no adapter_model.safetensors; other formats are not read")
    try:
        with safe_open(weights, "pt") as file:
            saved = set(file.keys())
        adapted = PeftModel.from_pretrained(causal_lm, folder, is_trainable=True)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"cannot load the adapter {folder}: {' '.join(str(error).split())[:160]};"
                        " was it trained on another base model?") from None
    if differing := saved ^ get_peft_model_state_dict(adapted, save_embedding_layers=False).keys():  # PEFT would leave them out or at random
        raise UserError(f"cannot load the adapter {folder}: {min(differing)} is {'no weight of the model' if differing <= saved else 'missing'};"
                        " was it trained on another base model?")
    return adapted


def _check_adapter_config(path: Path) -> None:
    """Only plain LoRA: other kinds would train or import something of their own."""
    if not path.is_file():
        raise UserError(f"{path.parent} holds no adapter_config.json, so it is no adapter")
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    unknown = sorted(config.keys() - LoraConfig.__dataclass_fields__.keys())
    if unknown:
        raise UserError(f"{path}: unknown key '{unknown[0]}'{nearest(unknown[0], LoraConfig.__dataclass_fields__)[:160]}")
    if config.get("peft_type") != "LORA" or config.get("task_type") != "CAUSAL_LM" or config.get("megatron_config"):
        raise UserError(f"{path}: only a LoRA adapter of a causal language model can be loaded")


def _stop_ids(causal_lm, tokenizer, name: str) -> frozenset[int]:
    ends = causal_lm.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, (list, tuple)) else [ends])} - {None}
    if not ends:
        raise UserError(f"model '{name}' has no end-of-sequence token")
    return frozenset(ends)


@torch.no_grad()
def _check_computation(policy: Policy, name: str) -> None:
    """What sampling and scoring leave out or do themselves, the LM head and the attention, against the model's own way."""
    ids = torch.tensor([policy.tokenizer("rank these from the best to the worst", add_special_tokens=False)["input_ids"]], device=policy.device)
    length = ids.shape[1]
    place = layout([(0, length // 2)], [(length // 2, length - length // 2)], [0], policy.device)
    try:
        whole = policy.causal_lm(input_ids=ids, use_cache=False).logits.float()
        sliced = policy.head(policy.trunk(input_ids=ids, use_cache=False).last_hidden_state).float()
        with policy.attend(PACKED):
            packed = policy.head(policy.trunk(input_ids=ids, use_cache=False, layout=place).last_hidden_state).float()
    except ValueError as error:  # such as of SDPA for attention with soft-capping
        raise UserError(f"model '{name}' is not supported: {str(error).splitlines()[0][:160]}") from None
    alike = lambda logits: torch.allclose(whole, logits, rtol=1e-2, atol=1e-2 * whole.abs().max().item())  # noqa: E731
    if not alike(sliced):
        raise UserError(f"model '{name}' changes its logits behind the LM head (soft-capping or a scale); it is not supported")
    if not alike(packed):
        raise UserError(f"model '{name}' has an attention other than the plain one (soft-capping or sinks); it is not supported")


def save_adapter(policy: Policy, folder: Path) -> None:
    """A PEFT adapter folder: `peft.PeftModel.from_pretrained(base, folder)` gives the same logits."""
    policy.model.save_pretrained(folder, save_embedding_layers=False)  # only safetensors; embeddings are not trained
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
