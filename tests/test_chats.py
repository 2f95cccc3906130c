"""Tokenizers and chat templates as models have them: each is spoken to as it wants, or refused in one line.

Whatever a template refuses, drops, strips or prints, a prompt holds the system text, the question and the thoughts of a
worked example, is the same tomorrow, and ends where the completion begins; and sampling and scoring stay exact.
"""

import datetime

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ranker import chats, config as settings
from ranker.data import Ask, Candidate, Query
from ranker.decisions import score
from ranker.errors import UserError
from ranker.prompting import Prompter, messages
from ranker.templates import template
from ranker.tiny import tokenizer as tiny_tokenizer
from test_models import GQA, HEAD, is_exact, load, save

CHATML = tiny_tokenizer.CHAT_TEMPLATE
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}" + OPEN
STRIPS = TURNS.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1].lstrip()"
                                             " if m['role'] == 'assistant' else m['content'] }}")
LLAMA2 = ("{{ bos_token }}{% set first = messages[0]['role'] == 'system' %}"
          "{% for m in (messages[1:] if first else messages) %}"
          "{% if m['role'] == 'user' %}[INST] {% if loop.first and first %}<<SYS>>\n{{ messages[0]['content'] }}\n"
          "<</SYS>>\n\n{% endif %}{{ m['content'] }} [/INST]"
          "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}")
ZEPHYR = ("{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
          "{% if add_generation_prompt %}<|assistant|>\n{% endif %}")
DATE = "<|im_start|>system\nToday is {{ strftime_now('%d %b %Y, %H:%M:%S') }}.<|im_end|>\n"
TEMPLATES = {  # name -> chat template
    "as it stands": TURNS,
    "with a default system text": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are X.<|im_end|>\n"
                                  "{% endif %}" + TURNS,
    "no system role": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
                      "{% endif %}" + TURNS,
    "strict alternation": "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
                          "{{ raise_exception('must alternate') }}{% endif %}{% endfor %}" + TURNS,
    "drops the system text": "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
                             "{{ m['content'] }}<|im_end|>\n{% endfor %}" + OPEN,
    "strips thoughts": STRIPS,
    "opens a thought": STRIPS.replace(OPEN, OPEN.replace("assistant\n", "assistant\n<think>\n")),
    "closes an empty thought": STRIPS.replace(OPEN, OPEN.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n")),
    "prints the date": DATE + TURNS,
    "one turn alone": "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}" + TURNS,
}
MANNERS = {  # template -> folds, tells, prefill; the others: none of it
    "no system role": (True, False, ""), "strict alternation": (True, False, ""),
    "drops the system text": (True, False, ""), "strips thoughts": (False, True, ""),
    "opens a thought": (False, True, "<think>"), "closes an empty thought": (False, True, ""),
    "one turn alone": (False, True, "")}
SENTENCES = ("llama-2", "always", "zephyr", "unigram")  # kinds of tokenizers that put a space before a text


def templated(texts, chat, **fields):
    made = tiny_tokenizer.build(texts, 600)
    made.chat_template = chat
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def sentence_tokenizer(texts, kind):
    """Make a tokenizer as SentencePiece does: with spaces before texts, single digits, bytes for what is not known.

    A space stands before a text that stands alone, or (`always`) before each part of a text.
    """
    unigram = kind == "unigram"
    bpe = {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    made = Tokenizer(models.Unigram() if unigram else models.BPE(**bpe))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always" if kind == "always" else "first", split=True),
        pre_tokenizers.Digits(individual_digits=True)])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    letters = sorted({c for text in texts for c in text} | set("0123456789[]<>/|ABCDEFGHIJKLMNOPQRST"))
    special = ["<unk>", "<s>", "</s>"]
    made.train_from_iterator(texts, trainers.UnigramTrainer(
        vocab_size=700, special_tokens=special, unk_token="<unk>", initial_alphabet=letters, show_progress=False,
    ) if unigram else trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))], initial_alphabet=letters,
        show_progress=False))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                                   chat_template=ZEPHYR if kind in ("zephyr", "unigram") else LLAMA2,
                                   clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def texts(asks):
    answers = "<think> a [1]</think>\n<answer>[1]</answer> <answer>7</answer>"
    return [*(m["content"] for ask in asks for m in messages(ask)), answers] * 2


def made(texts, name):
    """Return the tokenizer of a variant, and its model's architecture: kind and fields."""
    if name in SENTENCES:
        return sentence_tokenizer(texts, name), "Llama", GQA
    return templated(texts, TEMPLATES[name]), *(("Qwen3", GQA | HEAD) if "thought" in name else ("Qwen2", GQA))


FAST = ("no system role", "strips thoughts", "opens a thought", "prints the date", "llama-2", "unigram")
OTHERS = [name for name in (*TEMPLATES, *SENTENCES) if name not in FAST]
VARIANTS = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_template_is_spoken_to_as_it_wants_and_the_model_is_exact(name, texts, asks, tmp_path, monkeypatch):
    tokenizer, kind, fields = made(texts, name)
    policy = load(save(tmp_path / "base", tokenizer, kind, fields), max_prompt=900)
    prompter, question = policy.prompter, asks[1]
    chat = prompter.chat
    assert (chat.folds, chat.tells, chat.prefill) == MANNERS.get(name, (False, False, ""))
    thought = "<think>because it is old</think>\n<answer>[2]</answer>"
    with_example = Ask(question.query, question.pool, question.decision, ((asks[0], thought),))
    for ask in (question, with_example):
        rendered = prompter.render(prompter.messages(ask))
        asked = [m["content"] for m in prompter.messages(ask)]
        assert all(text.strip() in rendered for text in asked) and rendered.endswith(chat.opening)
        assert template("system") in rendered and (thought in rendered) == bool(ask.examples)
    assert chat.ends == {tokenizer.eos_token_id} <= policy.stop_ids
    before = prompter.encode(question)

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, *arguments):
            return cls(2031, 5, 6, 7, 8, 9)

    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Tomorrow)
    again = Prompter(policy.tokenizer, 900)
    assert again.encode(question) == before and again.chat.version == chat.version
    is_exact(policy, tmp_path / "base", tmp_path)


def test_templates_that_render_alike_have_one_version_and_others_another(texts):
    versions = {name: Prompter(templated(texts, chat)).chat.version for name, chat in TEMPLATES.items()}
    assert versions["as it stands"] == versions["with a default system text"]  # which is not used
    # The system text is folded into the user's turn.
    assert versions["no system role"] == versions["strict alternation"] == versions["drops the system text"]
    assert len(set(versions.values())) == len(TEMPLATES) - 3


def test_a_base_model_ends_where_its_template_ends_a_turn(texts, tmp_path):
    tokenizer = templated(texts, TURNS, eos_token="<|endoftext|>")
    policy = load(save(tmp_path / "base", tokenizer, "Qwen2", GQA))
    assert policy.stop_ids == set(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))


def test_a_model_without_a_template_is_refused_and_takes_a_file_or_one_that_is_built_in(texts, asks, tmp_path):
    folder = save(tmp_path / "base", templated(texts, None), "Qwen2", GQA)
    with pytest.raises(UserError, match=r"has no chat template; give one: --model.chat_template=FILE.jinja, or a"
                                        r" built-in one: chatml, plain"):
        load(folder)
    with pytest.raises(UserError, match=r"nor a built-in template of that name \(did you mean 'plain'\?\)"):
        load(folder, chat_template="plan")
    plain = load(folder, chat_template="plain", max_prompt=900).prompter
    assert plain.render(plain.messages(asks[0])).endswith("\n\nAssistant:")
    assert set(plain.chat.marks) == {"User:", "Assistant:"}
    assert plain.chat.ends == {plain.tokenizer.eos_token_id}
    (tmp_path / "mine.jinja").write_text(CHATML)
    chatml = load(folder, chat_template=str(tmp_path / "mine.jinja"), max_prompt=900).prompter
    named = load(folder, chat_template="chatml", max_prompt=900).prompter
    assert chatml.encode(asks[0]) == named.encode(asks[0])
    (tmp_path / "empty.jinja").write_text("{{ bos_token }}")
    with pytest.raises(UserError, match="drops the texts"):
        load(folder, chat_template=str(tmp_path / "empty.jinja"))


def test_embeddings_may_be_padded_and_lack_the_places_of_images_alone(texts, tmp_path):
    tokenizer = templated(texts, TURNS)
    rows = len(tokenizer)
    folder = tmp_path / "base"
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**GQA, vocab_size=rows + 77, eos_token_id=tokenizer.eos_token_id)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    is_exact(load(folder), folder, tmp_path)
    save(folder, tokenizer, "Qwen2", GQA)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="1 tokens beyond them, the first '<tool>'"):
        load(folder)
    image = templated(texts, TURNS)
    image.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image.image_token = "<image>"
    image.init_kwargs["image_token"] = "<image>"
    image.save_pretrained(folder)
    assert load(folder)


@pytest.mark.parametrize("kind", SENTENCES)
def test_numbers_are_scored_as_they_stand_behind_the_answer_tag(kind, texts):
    """Alone, a number has a space before it, which is another token."""
    prompter = Prompter(sentence_tokenizer(texts, kind))
    encode = lambda text: prompter.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    for number in score.ALTERNATIVES:
        found = prompter.behind("<think>x</think>\n<answer>", f"{number}</answer>")
        assert encode("<think>x</think>\n<answer>") + found == encode(f"<think>x</think>\n<answer>{number}</answer>")
        assert found != encode(f"{number}</answer>")
        assert not prompter.tokenizer.convert_ids_to_tokens(found[0]).startswith("▁")


def split_digits(texts):
    """Make a byte-level BPE whose numbers are single digits, as Qwen2.5's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}|[^\p{N}\w\s]+|\s?\p{L}+|\s+"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   chat_template=TURNS)


@pytest.mark.parametrize("kind", ["qwen", "llama-2"])
def test_where_numbers_are_several_tokens_logits_rank_by_letters(kind, texts):
    prompter = Prompter(split_digits(texts) if kind == "qwen" else sentence_tokenizer(texts, kind), 10**6)
    query = Query("q", "rank", "c", tuple(Candidate(str(k), f"text [{k}] [A]") for k in range(21)), (1.0,) * 21)
    twenty = Ask(query, query.ids[:20], "order", by_logits=True)
    shown = prompter.tokenizer.decode(prompter.encode(twenty))
    assert all(f"\n[{letter}] text " in shown for letter in "ABCDEFGHIJKLMNOPQRST")
    assert "[1]" not in shown and shown.count("[A]") == 1
    tokens = prompter.identifier_tokens(20)
    assert len(set(tokens)) == 20
    begun = prompter.to_answer.removesuffix("[")
    for letter, token in zip("ABCDEFGHIJKLMNOPQRST", tokens):
        assert prompter._tokens(f"{begun}[{letter}]</answer>")[len(prompter._tokens(prompter.to_answer))] == token
    with pytest.raises(UserError, match="at most 20 candidates at a time"):
        prompter.identifier_tokens(21)
    text, ids = prompter.written_answer([3, 1, 2])
    behind = prompter.to_answer.partition("<answer>")[2] + prompter.tokenizer.decode(ids)
    assert text == "<answer>[C] > [A] > [B]</answer>" == f"<answer>{behind}"
    written = Ask(query, query.ids[:20], "order")
    assert "\n[20] text" in prompter.tokenizer.decode(prompter.encode(written))  # what the policy writes has numbers


def test_the_built_in_templates_are_files_that_the_settings_name():
    assert chats.read("") is None and "<|im_start|>" in chats.read("chatml") and settings.Model().chat_template == ""
