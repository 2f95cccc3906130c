"""The policy: a causal LM, quantised or not, with a LoRA adapter; the reference is the same model, adapter off.

Decisions a reader could doubt:
- Adapters are fp32 whatever the base computes in: in bf16 most entries of A never move at RL learning rates.
- Dropout is 0 and the model stays in eval mode, so that sampling and scoring see one function. Gradient checkpointing
  looks at the mode of each layer, so scoring switches that alone (`training_graph`) and back: whatever else a model
  does while it trains (jitter in a router, a demand for token types) stays out.
- Scoring slices hidden states before the LM head and attends by prompt and completion; what a model does to its logits
  behind the head, a scale or a soft-cap, is done to those (`logits`). `exact.py` compares all that with the model's own
  way.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from transformers.modeling_layers import GradientCheckpointingLayer

from ranker import chats, config as settings, plugins
from ranker.engine import pretrained
from ranker.engine.attention import PACKED
from ranker.errors import UserError
from ranker.engine.peft_folder import check_adapter_config, check_adapters, load_adapter  # noqa: F401  for evaluations
from ranker.engine.pretrained import pick_attention, pick_device, pick_dtype
from ranker.prompting import Prompter

STOP = "</answer>"
TAIL = 16  # tokens decoded to look for STOP


@dataclass
class Policy:
    """A loaded model and what belongs to it. `model` is a PeftModel, or the bare causal LM when there is no adapter."""

    model: torch.nn.Module
    tokenizer: object
    prompter: Prompter
    device: torch.device
    stop_ids: frozenset[int]  # every token that ends a completion
    attention: str  # of prompts while sampling; at rest the model computes attention its own plain way
    checkpointing: bool = False  # recompute activations in the backward pass
    scale: float = 1.0  # of the logits, behind the head
    softcap: float | None = None  # of the logits, after the scale
    adapter: plugins.Plugin | None = None  # how its adapter was made
    measured: bool = False  # while its costs are measured, what goes through it is no data
    taught: torch.Tensor | None = None  # places of a packed row that predict what is learned, while it is computed
    own: dict[str, torch.nn.Module] = field(default_factory=dict)  # parameters of objectives: name -> module, fp32
    frozen: dict[str, torch.Tensor] | None = None  # the adapter a stage began with, its reference; None: the base
    freezes: int = 0  # how often that changed

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

    def behind_head(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what the model makes of its head's logits [..., V]."""
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Compute the logits [..., V] of hidden states [..., H], in fp32."""
        return self.behind_head(self.head(states).float())

    @cached_property
    def closing(self) -> frozenset[int]:
        """Return the tokens that can complete STOP: those with a `>` in them. No other needs a look at the text."""
        return frozenset(i for token, i in self.tokenizer.get_vocab().items() if ">" in token)

    def ends(self, tokens: list[int]) -> bool:
        """Tell whether the last token ends a completion: an end token, or the close of an answer outside the
        thought."""
        if tokens[-1] in self.stop_ids:
            return True
        decode = self.tokenizer.decode
        if decode(tokens[-TAIL:]).count(STOP) <= decode(tokens[-TAIL:-1]).count(STOP):
            return False
        text = self.prompter.prefill + decode(tokens)
        return text.rfind("<think>") <= text.rfind("</think>")

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def critic(self) -> torch.nn.Linear | None:
        """Return the value head: hidden state -> value, for objectives that have one."""
        return self.own.get("critic")

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

    @contextmanager
    def playing(self, role: str) -> Iterator[None]:
        """Inside, the model plays a role: `policy`, `base`, `previous` (the reference), or an adapter that was
        added."""
        if role == "base":
            with self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext():
                yield
        elif role == "previous":
            with self.reference():
                yield
        elif role in getattr(self.model, "peft_config", ()):
            self.model.set_adapter(role)
            try:
                yield
            finally:
                self.model.set_adapter("default")
        elif role == "policy":
            yield
        else:
            raise UserError(f"nobody plays the role '{role}'; say who does in the config's section roles")

    def add_role(self, name: str, folder: Path) -> None:
        """Put another adapter of the same base beside the policy's, which plays the role `name`. Raise UserError."""
        check_adapter_config(folder / "adapter_config.json")
        if isinstance(self.model, PeftModel):
            try:
                self.model.load_adapter(folder, adapter_name=name, is_trainable=False)
            except (RuntimeError, ValueError, KeyError) as error:
                raise UserError(f"roles.{name}: cannot load the adapter {folder}: {' '.join(str(error).split())[:160]};"
                                " was it trained on another base model?") from None
            self.model.set_adapter("default")
        else:
            raise UserError(f"roles.{name}: an adapter can be added beside a policy that has one")

    def freeze(self) -> None:
        """Keep the adapter as it is now for a reference."""
        self.frozen = {name: p.detach().clone() for name, p in self.adapter_parameters().items()}
        self.freezes += 1

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
        """Inside, gradient checkpointing (if configured) is on, and the attention of packed rows, which it needs in the
        backward pass."""
        layers = []
        if self.checkpointing:
            layers = [m for m in self.causal_lm.modules() if isinstance(m, GradientCheckpointingLayer)]
        for layer in layers:
            layer.training = True
        try:
            with self.attend(PACKED):
                yield
        finally:
            for layer in layers:
                layer.training = False

    @contextmanager
    def sampling_weights(self, weights: str) -> Iterator[None]:
        """Inside, with `dense`, the linear layers compute with a dequantised copy of their weights, for sampling only.

        In fp32 the adapter is added to the copy, which changes a log-probability by 1e-6. In bf16 it would be lost in
        rounding, so it stays a layer of its own: sampling and training see the same numbers.
        """
        replaced = []
        for name, module in list(self.causal_lm.named_modules()) if weights == "dense" else ():
            base = module.get_base_layer() if isinstance(module, LoraLayer) else module
            if (not isinstance(base, torch.nn.Linear) or base is self.head or name.endswith(".base_layer")
                or ".lora_" in name):
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


def load_prompter(model: settings.Model) -> Prompter:
    """Return what makes the prompts of a model, without its weights. Raises UserError."""
    tokenizer, template = pretrained.load_tokenizer(model), chats.read(model.chat_template)
    try:
        return Prompter(tokenizer, model.max_prompt, template, model.think)
    except UserError as error:
        raise UserError(f"model '{model.name}': {error}") from None


def load(model: settings.Model, lora: plugins.Plugin | None = None, adapter: Path | None = None,
         max_new_tokens: int = 0) -> Policy:
    """The policy of a config: with a fresh adapter (`lora`), a saved one (`adapter`), or none.

    `max_new_tokens` is the longest completion that will be sampled: with the prompt it must fit the model's context.
    A fresh adapter draws A from torch's global generator and has B = 0, so it starts as the base model.
    """
    from ranker.engine.exact import check  # here, since it samples and scores with the policy that is made here

    # PEFT's own call
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    device = pick_device(model.device)
    dtype = pick_dtype(model, device)
    attention = pick_attention(model.attention, device, dtype)
    # The fp32 products of LoRA beside a bf16 base may be TF32: they cost a third of a forward pass otherwise.
    torch.set_float32_matmul_precision("high" if dtype == torch.bfloat16 and device.type == "cuda" else "highest")
    prompter = load_prompter(model)
    causal_lm = pretrained.load(model, prompter.tokenizer, device, dtype, model.max_prompt + max_new_tokens)
    if adapter is not None:
        loaded = load_adapter(causal_lm, adapter)
    elif lora is not None:
        loaded = lora.make(causal_lm)
        loaded.peft_config["default"].base_model_name_or_path = model.name
    else:
        loaded = causal_lm
    if model.gradient_checkpointing:
        causal_lm.activation_checkpointing_enable({"use_reentrant": False})
    loaded.eval()
    pretrained.without_dropout(causal_lm)  # the adapter has come in by now
    text = causal_lm.config.get_text_config()
    scale = getattr(text, "logit_scale", None) or 1 / (getattr(text, "logits_scaling", None) or 1.0)
    policy = Policy(loaded, prompter.tokenizer, prompter, device, stop_ids(causal_lm, prompter, model.name), attention,
                    model.gradient_checkpointing, scale, getattr(text, "final_logit_softcapping", None))
    policy.adapter = lora
    adapted = {name.split(".lora_")[0].split(".")[-1] for name in policy.adapter_parameters()}
    pretrained.tell_of_mixture(causal_lm, adapted, model)
    check(policy, model.name, model.max_prompt + max_new_tokens)
    if lora is not None:
        lora.begin(policy)
    return policy


def stop_ids(causal_lm: torch.nn.Module, prompter: Prompter, name: str) -> frozenset[int]:
    """Return every token that ends a completion: of the generation config, the tokenizer, and the chat template."""
    ends = causal_lm.generation_config.eos_token_id if causal_lm.generation_config else None
    ends = set(ends) if isinstance(ends, (list, tuple)) else {ends}
    ends = (ends | {prompter.tokenizer.eos_token_id} | prompter.chat.ends) - {None}
    if not ends:
        raise UserError(f"model '{name}' has no end-of-sequence token")
    return frozenset(ends)


def save_adapter(policy: Policy, folder: Path) -> None:
    """A PEFT adapter folder: `peft.PeftModel.from_pretrained(base, folder)` gives the same logits."""
    # Only safetensors; embeddings are not trained; adapters that play roles are others'.
    policy.model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"])
    (folder / "adapter_model.safetensors").chmod(0o644)  # its library makes it for the owner alone
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
