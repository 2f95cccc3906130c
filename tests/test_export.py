"""Merged checkpoints: what is written computes what base and adapter compute, and what cannot be written is refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import train
from ranker import config as settings, export
from ranker.engine import policy as policies
from test_train import ROOT, call, finished_run  # noqa: F401  fixtures


def trained(call, base) -> None:  # noqa: F811
    status, _, err = call(train, ROOT / "configs/iranker.yaml", f"--model.name={base}", "--model.quantize=none",
                          "--model.device=cpu", "--train.steps=1", "--train.warmup=0", "--train.lr=0.05",
                          "--rollout.prompts_per_step=2", "--rollout.max_new_tokens=8", "--eval.queries=1",
                          "--data.tasks=passage-5", "--run.dir=run", "--objective.name=sft", "--reward.format.weight=0",
                          "--objective.keep_above=-9")
    assert status == 0, err


def logits(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits.float()


@pytest.fixture
def llama(tmp_path, tokenizer, base_folder):
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.15, tie_word_embeddings=True,
        rope_theta=5e4, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    model.save_pretrained(tmp_path / "llama")
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(tmp_path / "llama")  # of a splitter that has a name
    return tmp_path / "llama"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_merged_and_gguf_compute_what_base_and_adapter_do(call, base_folder, llama, family, tmp_path,  # noqa: F811
                                                          monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("R1_RANKER_CACHE", str(tmp_path / "cache"))
    base = base_folder if family == "qwen2" else llama
    trained(call, base)
    status, out, err = call(export, "--ckpt", "run", "--merged", "merged", "--gguf", "one.gguf", "--dtype", "float16")
    assert status == 0, err
    assert out.count("nats on average") == 2 and "next: python evaluate.py" in out
    plain = settings.Model(name=str(base), quantize="none", device="cpu", dtype="float32")
    policy, ids = policies.load(plain, None, tmp_path / "run/last"), torch.tensor([[5, 6, 7, 8, 9, 10]])
    expected = logits(policy.model, ids)
    with policy.reference():
        moved = (logits(policy.model, ids) - expected).abs().max()  # by the adapter
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype="float32")
    assert (logits(merged, ids) - expected).abs().max() < 0.1 * moved
    assert json.load(open("merged/config.json"))["dtype"] == "float16"
    text = "Which passage [1] fits 2024?"
    assert AutoTokenizer.from_pretrained("merged")(text).input_ids == policy.tokenizer(text).input_ids
    again = policies.load(settings.Model(name="one.gguf", quantize="none", device="cpu", dtype="float32"))
    assert (logits(again.model, ids) - expected).abs().max() < 0.1 * moved
    assert again.tokenizer(text, add_special_tokens=False).input_ids == policy.tokenizer(
        text, add_special_tokens=False).input_ids


@pytest.mark.slow
def test_a_checkpoint_of_the_built_in_policy_is_merged_and_says_what_four_bits_cost(call, finished_run):  # noqa: F811
    status, out, err = call(export, "--ckpt", "runs/iranker", "--merged", "merged")
    assert status == 0, err
    assert "as trained, 4 bits" in out and "fp32" in out
    assert not [key for key in json.load(open("merged/config.json")) if "quant" in key]
    status, _, err = call(export, "--ckpt", "runs/iranker", "--gguf", "x.gguf")
    assert status == 2 and "writes the families llama, qwen2, and this model is a qwen3" in err


@pytest.mark.parametrize("options, said", [
    (["--merged", "taken"], "--merged taken is there already"), (["--gguf", "x.bin"], "must end with .gguf"),
    ([], "name what to write"), (["--merged", "new"], "nothing/there")])
def test_mistakes_end_in_one_line_and_write_nothing(call, tmp_path, options, said):  # noqa: F811
    (tmp_path / "taken").mkdir()
    status, _, err = call(export, "--ckpt", "nothing/there", *options)
    assert status == 2 and said in err and len(err.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]


def test_the_order_of_rows_is_that_of_llamas_files():
    rows = torch.arange(8.0)[:, None]  # two heads of four rows: pairs (0, 2), (1, 3)
    assert export.neighbours(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
