"""Models of many families, small and of random weights: sampled, scored, learned and saved exactly, or refused.

A family is exact where its log-probabilities are the same to 1e-4 (fp32): while sampling, in packed rows, with another
token budget, in the training graph, and computed one by one by transformers' own code from the saved adapter; and where
greedy decoding writes what `generate` writes, up to the first token whose lead is below 1e-4. Prompts are longer than
the windows. A refusal is one line.
"""

import json
import logging

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

from ranker import config as settings, plugins
from ranker.engine import policy as policies
from ranker.engine.sampler import Sampler
from ranker.engine.scoring import pack, score_all
from ranker.errors import LONGEST, UserError

NEW, CLOSE, BUDGET = 24, 1e-4, 10**6
LORA = {"name": "lora", "rank": 4}
GQA = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
       "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.15, "bos_token_id": None}
MHA = {key: value for key, value in GQA.items() if key != "num_key_value_heads"}
HEAD = {"head_dim": 16}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
GEMMA = HEAD | {"query_pre_attn_scalar": 16}
ROPE = lambda kind, **rest: {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **rest}}  # noqa: E731
GRANITE = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0625,
           "logits_scaling": 8.0}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024, "initializer_range": 0.15, "bos_token_id": None}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

FAST = {  # name -> configuration class, its fields
    "llama 3": ("Llama", GQA | ROPE("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                    original_max_position_embeddings=256)),
    "qwen 2.5": ("Qwen2", GQA | {"tie_word_embeddings": True}),
    "qwen 3": ("Qwen3", GQA | HEAD),
    "mistral, window": ("Mistral", GQA | {"sliding_window": 64}),
    "gemma 2": ("Gemma2", GQA | GEMMA | MIXED | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma 3": ("Gemma3Text", GQA | GEMMA | MIXED),
    "phi 3": ("Phi3", GQA | {"sliding_window": 64}),
    "granite 3": ("Granite", GQA | GRANITE),
}
SLOW = {
    "llama 2": ("Llama", MHA), "smollm 2": ("Llama", GQA | {"tie_word_embeddings": True}), "qwen 2": ("Qwen2", GQA),
    "qwen 2, yarn": ("Qwen2", GQA | ROPE("yarn", factor=4.0, original_max_position_embeddings=256)),
    "qwen 2, windows": ("Qwen2", GQA | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
    "mistral": ("Mistral", GQA | {"sliding_window": None}), "ministral 3": ("Ministral3", GQA | HEAD),
    "gemma": ("Gemma", GQA | HEAD),
    "gemma 4": ("Gemma4Text", GQA | HEAD | MIXED | {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}),
    "phi 3, one rope": ("Phi3", GQA | {"original_max_position_embeddings": 512} | ROPE(
        "longrope", short_factor=[1.5] * 8, long_factor=[4.0] * 8, original_max_position_embeddings=512)),
    "phi 2": ("Phi", GQA | {"partial_rotary_factor": 0.5, "resid_pdrop": 0.1, "embd_pdrop": 0.1}),
    "smollm 3": ("SmolLM3", GQA | {"no_rope_layers": [1, 0]}), "olmo": ("Olmo", GQA), "olmo 2": ("Olmo2", GQA),
    "olmo 3": ("Olmo3", GQA | MIXED), "cohere": ("Cohere", GQA), "cohere 2": ("Cohere2", GQA | MIXED),
    "starcoder 2": ("Starcoder2", GQA | {"sliding_window": 64}), "glm": ("Glm", GQA | HEAD),
    "glm 4": ("Glm4", GQA | HEAD), "exaone 4": ("Exaone4", GQA | HEAD | MIXED), "ernie 4.5": ("Ernie4_5", GQA | HEAD),
    "hunyuan": ("HunYuanDenseV1", GQA | HEAD), "helium": ("Helium", GQA | HEAD), "seed oss": ("SeedOss", GQA | HEAD),
    "apertus": ("Apertus", GQA), "arcee": ("Arcee", GQA), "nanochat": ("NanoChat", GQA),
    "internlm 3": ("InternLM3", GQA), "persimmon": ("Persimmon", MHA), "gpt neox": ("GPTNeoX", MHA),
    "lfm 2, attention alone": ("Lfm2", GQA | {"layer_types": ["full_attention"] * 2}),
    "gpt 2": ("GPT2", GPT2), "gpt bigcode": ("GPTBigCode", GPT2),
    "opt": ("OPT", {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "max_position_embeddings": 1024, "word_embed_proj_dim": 64, "init_std": 0.15,
                    "bos_token_id": None}),
    "granite moe": ("GraniteMoe", GQA | EXPERTS), "mixtral": ("Mixtral", GQA | EXPERTS | {"sliding_window": None}),
    "qwen 3 moe": ("Qwen3Moe", GQA | HEAD | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                                             "norm_topk_prob": True}),
}
LATENT = GQA | {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 32, "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8, "v_head_dim": 16}
REFUSED = {  # name -> configuration class, its fields, what the line says
    "deepseek 3": ("DeepseekV3", LATENT | {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
                                           "topk_group": 1}, "latent attention"),
    "gemma 3n": ("Gemma3nText", GQA | HEAD | {
        "num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 2, "activation_sparsity_pattern": [0.0] * 2,
        "hidden_size_per_layer_input": 8, "laurel_rank": 4}, "shared layers"),
    "bloom": ("Bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}, "alibi"),
    "diffllama": ("DiffLlama", GQA, "differential attention"),
    "gpt oss": ("GptOss", GQA | EXPERTS | HEAD, "sinks"),
    "mamba": ("Mamba", {"hidden_size": 64, "num_hidden_layers": 2}, "state space"),
    "qwen 3 next": ("Qwen3Next", GQA | HEAD | {
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "num_experts": 0, "layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
    "lfm 2": ("Lfm2", GQA | {"layer_types": ["conv", "full_attention"]}, "conv"),
    "falcon": ("Falcon", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False},
               "code of its own"),
    "stablelm": ("StableLm", GQA, "code of its own"), "nemotron": ("Nemotron", GQA | HEAD, "pass nothing on"),
    "llama 4": ("Llama4Text", GQA | HEAD | {
        "num_local_experts": 2, "intermediate_size_mlp": 64, "attention_chunk_size": 64,
        "layer_types": ["chunked_attention", "full_attention"]}, "chunks of 64"),
    "llama, dynamic": ("Llama", GQA | {"max_position_embeddings": 128} | ROPE("dynamic", factor=4.0),
                       "at most 128 tokens"),
    "phi 3, two ropes": ("Phi3", GQA | {"original_max_position_embeddings": 128} | ROPE(
        "longrope", short_factor=[1.0] * 8, long_factor=[4.0] * 8, original_max_position_embeddings=128),
        "beyond 128 tokens"),
}


def save(folder, tokenizer, kind, fields):
    """Write a checkpoint as a user would have it, and return its folder."""
    torch.manual_seed(0)
    ends = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id}
    extra = {"vocab_size_per_layer_input": len(tokenizer)} if kind.startswith(("Gemma3n", "Gemma4")) else {}
    config = getattr(transformers, f"{kind}Config")(**fields | ends | extra)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder, quantize="none", max_prompt=180, lora=LORA, **model):
    torch.manual_seed(1)
    model = settings.Model(name=str(folder), quantize=quantize, device="cpu", dtype="float32", max_prompt=max_prompt,
                           **model)
    policy = policies.load(model, plugins.load("lora", lora), max_new_tokens=NEW)
    with torch.no_grad():
        for name, parameter in policy.adapter_parameters().items():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return policy


def is_exact(policy, folder, tmp_path):
    """Assert what the head of this file says.

    nf4 weights are compared with the policy's own model, which is not what is saved.
    """
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, len(policy.tokenizer), (n,), generator=generator).tolist() for n in (37, 120, 5)]
    sampler = Sampler(policy, settings.Rollout(max_new_tokens=NEW))
    samples = [sample for group in sampler(prompts, [3, 2, 2], 1.0, range(3)) for sample in group]
    groups = [[ids for ids, _, _ in samples[a:b]] for a, b in ((0, 3), (3, 5), (5, 7))]
    owner = [0, 0, 0, 1, 1, 2, 2]
    rows = pack(prompts, groups, BUDGET)
    scored, _ = score_all(policy, rows, 1.0, BUDGET)
    with policy.training_graph():
        learned, _ = score_all(policy, rows, 1.0, BUDGET)
    apart, _ = score_all(policy, pack(prompts, groups, 150), 1.0, 150)
    if policy.causal_lm.config.__dict__.get("quantization_config") is None:
        policies.save_adapter(policy, tmp_path / "adapter")
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        plain = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    else:
        plain = policy.model
    with torch.no_grad():
        for k, (ids, logprobs, _) in enumerate(samples):
            whole = torch.tensor([prompts[owner[k]] + ids])
            logits = plain(input_ids=whole, use_cache=False).logits[0, len(prompts[owner[k]]) - 1:-1].float()
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
            for found in (torch.tensor(logprobs), scored[k], learned[k], apart[k]):
                torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)
        for prompt, [(ids, _, _)] in zip(prompts, sampler(prompts, [1, 1, 1], 0.0, range(3))):
            plan = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=sorted(policy.stop_ids),
                                    pad_token_id=0)
            theirs = plain.generate(input_ids=torch.tensor([prompt]), generation_config=plan,
                                    attention_mask=torch.ones(1, len(prompt), dtype=torch.long))
            theirs = theirs[0, len(prompt):].tolist()[:len(ids)]
            if ids != theirs:
                k = next(k for k, (a, b) in enumerate(zip(ids, theirs)) if a != b)
                best = plain(input_ids=torch.tensor([prompt + ids[:k]]), use_cache=False).logits[0, -1].float().topk(2)
                assert best.values[0] - best.values[1] < CLOSE and ids[k] in best.indices


def is_refused(says, *arguments, **model):
    with pytest.raises(UserError, match=says) as caught:
        load(*arguments, **model)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= LONGEST + 60  # the folder of a test has a long name


FAMILIES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_sampled_scored_learned_and_saved_exactly(name, quantize, tokenizer, tmp_path):
    folder = save(tmp_path / "base", tokenizer, *(FAST | SLOW)[name])
    is_exact(load(folder, quantize, gradient_checkpointing=quantize == "none"), folder, tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_exact_is_refused_with_its_reason(name, tokenizer, tmp_path):
    kind, fields, says = REFUSED[name]
    is_refused(says, save(tmp_path / "base", tokenizer, kind, fields))


def changed(source, target, tensors=lambda tensors: tensors, **config):
    """Copy a checkpoint, with other tensors and another config.json."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    save_file(tensors(load_file(target / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(json.loads((target / "config.json").read_text()) | config))
    return target


def without(*names):
    return lambda tensors: {key: value for key, value in tensors.items() if not key.endswith(names)}


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}


def in_fp8(tensors):
    """Return linear weights in blocks of 32 x 32, as FP8 checkpoints have them, beside the scale of each block."""
    stored = {}
    for key, weight in tensors.items():
        if key.endswith("proj.weight"):
            blocks = weight.reshape(weight.shape[0] // 32, 32, weight.shape[1] // 32, 32)
            scale = blocks.abs().amax((1, 3), keepdim=True) / 448
            stored[key] = (blocks / scale).reshape(weight.shape).to(torch.float8_e4m3fn)
            stored[f"{key}_scale_inv"] = scale[:, 0, :, 0].contiguous()
        else:
            stored[key] = weight
    return stored


def test_a_checkpoint_in_fp8_is_dequantised_with_its_scales(base_folder, tmp_path):
    folder = changed(base_folder, tmp_path / "fp8", in_fp8, quantization_config=FP8)
    policy, plain = load(folder), load(base_folder)
    for name, weight in plain.causal_lm.state_dict().items():
        if name.endswith("base_layer.weight"):
            found = policy.causal_lm.state_dict()[name]
            assert found.dtype == torch.float32 and 0 < (found - weight).norm() < 0.05 * weight.norm(), name
    prompts = [list(range(5, 40))]
    [[(ids, logprobs, _)]] = Sampler(policy, settings.Rollout(max_new_tokens=8))(prompts, [1], 1.0, [0])
    scored, _ = score_all(policy, pack(prompts, [[ids]], BUDGET), 1.0, BUDGET)
    torch.testing.assert_close(torch.tensor(logprobs), scored[0], atol=CLOSE, rtol=0)
    is_refused("quantised twice; --model.quantize=none", folder, "nf4")


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_checkpoint_that_is_in_4_bits_stays_so_and_computes_as_the_config_says(base_folder, tokenizer, tmp_path,
                                                                                 quantize):
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(base_folder, quantization_config=four, dtype=torch.float32)
    base.save_pretrained(tmp_path / "four")
    tokenizer.save_pretrained(tmp_path / "four")
    policy = load(tmp_path / "four", quantize)
    layer = policy.causal_lm.model.layers[0].mlp.up_proj.base_layer
    assert layer.weight.quant_state.quant_type == "nf4" and layer.compute_dtype == torch.float32
    is_exact(policy, tmp_path / "four", tmp_path)


@pytest.mark.parametrize("own, says", [
    ({"quant_method": "gptq", "bits": 4}, "quantised with gptq"),
    ({"quant_method": "awq", "bits": 4}, "quantised with awq"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "depend on the other rows"),
    ({"bits": 4}, "a way it does not name")])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_checkpoint_quantised_in_another_way_is_refused(base_folder, tmp_path, own, says, quantize):
    is_refused(says, changed(base_folder, tmp_path / "other", quantization_config=own), quantize)


def test_no_tensor_is_left_as_it_was_initialised(base_folder, tmp_path):
    is_refused(r"lacks model.layers.0.mlp.up_proj.weight and 1 more",
               changed(base_folder, tmp_path / "missing", without("up_proj.weight")))
    is_refused("up_proj.weight", changed(base_folder, tmp_path / "shape", lambda tensors: tensors | {
        "model.layers.1.mlp.up_proj.weight": torch.zeros(16, 64)}))
    is_refused("a scale of quantised weights", changed(base_folder, tmp_path / "scales", in_fp8))
    load(changed(base_folder, tmp_path / "more", lambda tensors: tensors | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))


def test_a_tokenizer_that_is_not_there_or_another_models_is_refused(base_folder, tokenizer, tmp_path):
    folder = changed(base_folder, tmp_path / "none")
    for path in folder.glob("token*"):
        path.unlink()
    is_refused("holds no tokenizer", folder)
    small = save(tmp_path / "small", tokenizer, "Qwen2", GQA | {"tie_word_embeddings": True})
    config = json.loads((small / "config.json").read_text())
    rows = config["vocab_size"] - 40
    is_refused("40 tokens beyond them", changed(small, tmp_path / "cut", lambda tensors: tensors | {
        "model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:rows].clone()}, vocab_size=rows))


def test_the_text_of_a_model_that_sees_images_has_its_limits_and_is_exact(tokenizer, tmp_path):
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}
    text = transformers.Gemma3TextConfig(**GQA | GEMMA | MIXED, vocab_size=len(tokenizer)).to_dict()
    folder = save(tmp_path / "base", tokenizer, "Gemma3",
                  {"text_config": text, "vision_config": vision, "initializer_range": 0.15})
    is_refused("reads at most 1024 tokens", folder, max_prompt=2000)
    is_exact(load(folder, gradient_checkpointing=True), folder, tmp_path)


@pytest.mark.parametrize("quantize", ["none", pytest.param("nf4", marks=pytest.mark.slow)])
def test_a_model_computed_in_bf16_is_not_refused_for_its_depth(tokenizer, tmp_path, quantize):
    folder = save(tmp_path / "base", tokenizer, "Qwen2", GQA | {"num_hidden_layers": 36, "attention_dropout": 0.1})
    model = settings.Model(name=str(folder), quantize=quantize, device="cpu", dtype="bfloat16", max_prompt=180)
    policies.load(model, plugins.load("lora", LORA))


@torch.no_grad()
def test_a_fault_in_bf16_is_found_all_the_same(tokenizer, tmp_path, monkeypatch):
    """Rounding moves a model of this depth by about 0.03; completions that see their own future move it by far more."""
    folder = save(tmp_path / "base", tokenizer, "Qwen2", GQA | {"num_hidden_layers": 12})
    model = settings.Model(name=str(folder), quantize="none", device="cpu", dtype="bfloat16", max_prompt=180)
    last = lambda layout: layout.visible[..., -1:, :].expand_as(layout.visible)  # noqa: E731  what the last token sees
    monkeypatch.setattr("ranker.engine.attention.Layout.visible_in", lambda layout, window: (None, last(layout)))
    with pytest.raises(UserError, match="gives other logits scored in packed rows than its own code does"):
        policies.load(model)


@pytest.mark.parametrize("name", ["gpt 2", "phi 2", "opt"])
def test_no_dropout_is_left(name, tokenizer, tmp_path):
    policy = load(save(tmp_path / "base", tokenizer, *SLOW[name]), gradient_checkpointing=True)
    dropouts = [module for module in policy.model.modules() if isinstance(module, torch.nn.Dropout)]
    numbers = [value for module in policy.model.modules() for key, value in vars(module).items()
               if "drop" in key and isinstance(value, float)]
    assert not any(module.p for module in dropouts) and not any(numbers) and (dropouts or numbers)


def test_a_mixture_says_what_nf4_leaves_and_lora_adapts_and_its_routers_stay(tokenizer, tmp_path, caplog):
    folder = save(tmp_path / "base", tokenizer, *SLOW["mixtral"])
    with caplog.at_level(logging.WARNING):
        policy = load(folder, "nf4")
    assert "mixture of experts: nf4 leaves 9" in caplog.text
    assert "LoRA adapts k_proj, o_proj, q_proj, v_proj; its routers are left alone" in caplog.text
    assert not any(".gate." in name or ".experts" in name for name in policy.adapter_parameters())


def test_lora_targets_are_all_there_and_adapters_are_plain(base_folder, tmp_path):
    missing = r"no module of the model is called 'v_prj' \(did you mean 'v_proj'\?\)"
    for targets, says in (("q_proj,v_prj", missing), ("q_proj,lm_head", "lm_head")):
        is_refused(says, base_folder, lora=LORA | {"targets": targets})
    others = {"dora": {"use_dora": True}, "bias": {"bias": "all"}, "pissa": {"init_lora_weights": "pissa"},
              "saved": {"modules_to_save": ["norm"]}}
    for name, fields in others.items():
        base = AutoModelForCausalLM.from_pretrained(base_folder)
        config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **fields)
        peft.get_peft_model(base, config).save_pretrained(tmp_path / name)
        with pytest.raises(UserError, match="another adapter than plain LoRA"):
            policies.load(settings.Model(name=str(base_folder), quantize="none", device="cpu"), adapter=tmp_path / name)


def test_patterns_of_rank_and_alpha_and_stabilised_scaling_are_plain_lora(base_folder, tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], rank_pattern={"q_proj": 8},
                             alpha_pattern={"v_proj": 3}, use_rslora=True, lora_dropout=0.1, task_type="CAUSAL_LM")
    made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), config)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    made.save_pretrained(tmp_path / "made")
    model = settings.Model(name=str(base_folder), quantize="none", device="cpu", max_prompt=180)
    policy = policies.load(model, adapter=tmp_path / "made")
    assert not any(module.p for module in policy.model.modules() if isinstance(module, torch.nn.Dropout))
    is_exact(policy, base_folder, tmp_path)
