"""Loading, quantising, adapting, saving: fp32 adapters that move, one function before and after, errors in one line."""

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from ranker import config as settings, plugins
from ranker.engine import policy as policies
from ranker.engine.scoring import pack, score
from ranker.errors import UserError


def logits(model, policy, ask):
    with torch.no_grad():
        return model(input_ids=torch.tensor([policy.prompter.encode(ask)])).logits


def step(policy, ask, optimizer):
    completion = [10, 11, policy.tokenizer.eos_token_id]
    logprobs, _, mask = score(policy, pack([policy.prompter.encode(ask)], [[completion]], 4000), 1.0)
    (-(logprobs * mask).sum()).backward()
    optimizer.step(), optimizer.zero_grad()


@pytest.mark.parametrize("quantize, dtype", [("none", "float32"), ("none", "bfloat16"), ("nf4", "float32")])
def test_adapters_are_fp32_and_move(make_policy, asks, quantize, dtype):
    policy = make_policy(quantize, moved=False, dtype=dtype)
    adapter = policy.adapter_parameters()
    assert adapter and all("lora_" in name and p.dtype == torch.float32 for name, p in adapter.items())
    before = {name: p.detach().clone() for name, p in adapter.items()}
    optimizer = torch.optim.AdamW(adapter.values(), lr=1e-5, weight_decay=0.0)
    step(policy, asks[0], optimizer)
    moved = {name for name, p in adapter.items() if not torch.equal(p, before[name])}
    assert moved == {name for name in adapter if "lora_B" in name}  # A has no gradient while B is zero
    step(policy, asks[0], optimizer)
    assert all(not torch.equal(p, before[name]) for name, p in adapter.items())


def test_all_linear_layers_are_adapted_but_not_the_head(make_policy):
    names = {name.split(".")[-4] for name in make_policy().adapter_parameters()}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_the_reference_is_the_base_without_its_adapter(make_policy, base_folder, asks, quantize):
    policy = make_policy(quantize)
    bare = policies.load(settings.Model(name=str(base_folder), quantize=quantize, device="cpu"))
    with policy.reference():
        torch.testing.assert_close(logits(policy.model, policy, asks[0]), logits(bare.model, bare, asks[0]))
    assert not torch.allclose(logits(policy.model, policy, asks[0]), logits(bare.model, bare, asks[0]), atol=1e-3)


def test_nf4_stores_four_bits_with_double_quantisation_and_a_stated_compute_dtype(make_policy):
    layer = make_policy("nf4").causal_lm.model.layers[0].mlp.up_proj.base_layer
    assert layer.weight.dtype == torch.uint8 and layer.weight.quant_state.quant_type == "nf4"
    assert layer.weight.quant_state.nested and layer.compute_dtype == torch.float32


def test_four_bit_weights_stay_where_gradients_can_pass(base_folder, monkeypatch):
    """bitsandbytes has a CPU kernel without a gradient; it must be off even on a CPU that offers it."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    policy = policies.load(settings.Model(name=str(base_folder), quantize="nf4", device="cpu"))
    layers = [m for m in policy.causal_lm.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert layers and not any(m.support_avx512bf16_for_cpu for m in layers)


def test_a_saved_adapter_is_a_peft_folder_with_the_same_logits(make_policy, base_folder, asks, tmp_path):
    policy = make_policy()
    policies.save_adapter(policy, tmp_path / "adapter")
    expected = logits(policy.model, policy, asks[0])
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(base, tmp_path / "adapter"), policy, asks[0]),
                               expected)
    ours = policies.load(settings.Model(name=str(base_folder), quantize="none", device="cpu"),
                         adapter=tmp_path / "adapter")
    torch.testing.assert_close(logits(ours.model, ours, asks[0]), expected)
    assert ours.adapter_parameters() and not list((tmp_path / "adapter").glob("*.bin"))


def load(lora=None, adapter=None, **model):
    lora = plugins.load("lora", {"name": "lora"} | lora) if lora else None
    return policies.load(settings.Model(device="cpu", quantize="none", **model), lora, adapter)


def test_a_model_that_cannot_be_had_says_how_to_point_at_a_folder():
    with pytest.raises(UserError, match=r"Qwen/Qwen2.5-3B-Instruct.*--model.name=/path/to/Qwen2.5-3B-Instruct"):
        load(name="Qwen/Qwen2.5-3B-Instruct")


def test_broken_folders_and_settings_end_in_one_clear_line(base_folder, tmp_path, make_policy):
    with pytest.raises(UserError, match="there is no folder"):
        load(name=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no config.json"):
        load(name=str(tmp_path))
    with pytest.raises(UserError, match="no adapter_config.json"):
        load(name=str(base_folder), adapter=tmp_path)
    with pytest.raises(UserError, match="lm_head"):
        load({"targets": "q_proj,lm_head"}, name=str(base_folder))
    with pytest.raises(UserError, match="lora.targets"):
        load({"targets": "no_such_layer"}, name=str(base_folder))
    with pytest.raises(UserError, match="max_prompt"):
        load(name=str(base_folder), max_prompt=4096)
    with pytest.raises(UserError, match="max_new_tokens"):
        policies.load(settings.Model(name=str(base_folder), device="cpu", max_prompt=1500), max_new_tokens=1000)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="CUDA"):
            policies.pick_device("cuda")
        with pytest.raises(UserError, match="flash-attn"):
            policies.pick_attention("flash_attention_2", torch.device("cpu"), torch.bfloat16)


def test_an_adapter_of_another_base_is_refused(make_policy, base_folder, tmp_path):
    lora = plugins.load("lora", {"name": "lora", "rank": 4})
    policies.save_adapter(make_policy(lora=lora), tmp_path / "adapter")
    record = tmp_path / "adapter" / "adapter_config.json"
    changed = json.loads(record.read_text()) | {"r": 8}
    record.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="another base model"):
        load(name=str(base_folder), adapter=tmp_path / "adapter")


def test_a_cut_download_is_one_line(base_folder, tmp_path):
    for path in base_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:2000] if path.suffix == ".safetensors"
                                           else path.read_bytes())
    with pytest.raises(UserError, match="cannot load model"):
        load(name=str(tmp_path))


def test_every_end_token_of_the_generation_config_stops(base_folder, tmp_path):
    for path in base_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = json.loads((base_folder / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps(record | {"eos_token_id": [0, 7]}))
    policy = load(name=str(tmp_path))
    assert policy.stop_ids == {0, 7, policy.tokenizer.eos_token_id}


