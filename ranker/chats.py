"""Chat templates of tokenizers: how each treats a system text and earlier answers, and what it puts between turns.

Templates differ in the messages that they refuse or drop, and in the words that they add. Their behaviour is found by
rendering words that no template contains, never by the model's name:
- A system text that a template refuses or drops is put at the head of the user's turn.
- Earlier answers that a template refuses, or whose thoughts it drops (Qwen3, R1), are told inside the user's turn,
  where they survive.
- The date that some templates print is always the first of January 2025, so that a seed gives the same run on any day.
- Words between two turns that are no added token (`[INST]`, `User:`) are marks, which no text of a user may contain.
- The token behind an answer ends a completion, whatever the generation config says (base models).
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import TemplateError

from ranker.errors import UserError, nearest
from ranker.files import shipped

FOLDER = shipped("prompts") / "chats"  # of the built-in templates
# The date as text for each code of strftime. A macro in a template wins over the function that transformers provides.
DATE = {"Y": "2025", "y": "25", "m": "01", "B": "January", "b": "Jan", "d": "01", "-d": "1", "A": "Wednesday",
        "a": "Wed", "H": "00", "M": "00", "S": "00"}
NOW = ("{% macro strftime_now(format) %}{{ format"
       + "".join(f"|replace('%{code}','{text}')" for code, text in DATE.items()) + " }}{% endmacro %}")
SYSTEM, QUESTION, THOUGHT, ANSWER, NEXT = "qsystemq", "qquestionq", "qthoughtq", "qanswerq", "qnextq"  # in no template
BRACKETS, LABEL = re.compile(r"[\[\]<>|{}]"), re.compile(r"\w.+:|#{2,}|={3,}")  # how marks are recognised
TAGS = re.compile(r"</?(?:think|answer)>")


def read(name: str) -> str | None:
    """Return the Jinja text of `model.chat_template`, which names a file or a built-in template.

    Return None for an empty name, which means the tokenizer's own template. Raise UserError where there is no such file
    or template.
    """
    if not name:
        return None
    built_in = {path.stem: path for path in FOLDER.glob("*.jinja")}
    path = built_in.get(name, Path(name).expanduser())
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise UserError(f"model.chat_template: there is no Jinja file {name}, nor a built-in template of that name"
                        f"{nearest(name, built_in)}") from None


@dataclass
class ChatTemplate:
    """A tokenizer with its own chat template, or with another template (`text`), and the template's behaviour.

    Its making raises UserError where there is no template, or where the template renders no question.
    """

    tokenizer: object
    text: str | None = None
    example: Callable[[], str] = lambda: "{question}\n\n{answer}"  # the words that tell an earlier turn in the user's
    folds: bool = field(init=False)  # whether the system text is put into the user's turn
    tells: bool = field(init=False, default=False)  # whether earlier turns are put into the user's turn
    opening: str = field(init=False)  # the text between a question and its completion
    prefill: str = field(init=False)  # the part of the completion that the template has already written
    marks: tuple[str, ...] = field(init=False)  # words around turns that are no added tokens
    ends: frozenset[int] = field(init=False)  # tokens behind an answer
    version: str = field(init=False)  # a short hash of everything that is rendered around texts

    def __post_init__(self):
        if not (self.text or self.tokenizer.chat_template):
            built_in = ", ".join(sorted(path.stem for path in FOLDER.glob("*.jinja")))
            raise UserError("the model's tokenizer has no chat template; give one: --model.chat_template=FILE.jinja, "
                            f"or a built-in one: {built_in} (plain suits a base model)")
        self.text = NOW + self.tokenizer.get_chat_template(self.text)
        system, question, following = _turn("system", SYSTEM), _turn("user", QUESTION), _turn("user", NEXT)
        plain = _turn("assistant", ANSWER)
        thought = _turn("assistant", f"<think>{THOUGHT}</think>\n<answer>{ANSWER}</answer>")
        try:
            self.folds = SYSTEM not in (self._try([system, question]) or "")
            asked = self.render([system, question])
            if SYSTEM not in asked or QUESTION not in asked:
                raise ValueError("it drops the texts that it is given")
        except (TemplateError, ValueError, TypeError) as error:
            raise UserError(f"the chat template cannot render a question ({str(error)[:120]}); "
                            "give another: --model.chat_template=FILE.jinja") from None
        several, turns = (self._try(self._folded([system, question, answer, following])) or ""
                          for answer in (thought, plain))
        kept = re.search(rf"<think>\s*{THOUGHT}\s*</think>\s*<answer>\s*{ANSWER}", several)
        self.tells = not (kept and NEXT in several)
        self.opening = asked.partition(QUESTION)[2]
        self.prefill = "<think>" if asked.rstrip().endswith("<think>") else ""
        between = re.split("|".join((SYSTEM, QUESTION, ANSWER, NEXT)), turns or asked)[1:]
        self.marks = self._marks(asked.partition(SYSTEM)[0], between)
        behind = (self._try([question, plain], open=False) or "").partition(ANSWER)[2].lstrip()
        end = next((token for token in self.added() if behind.startswith(token.strip())), None)
        self.ends = frozenset(() if end is None else (self.tokenizer.convert_tokens_to_ids(end),))
        self.version = hashlib.sha256("\0".join((asked, turns, several)).encode()).hexdigest()[:12]

    def render(self, messages: list[dict[str, str]]) -> str:
        """Return the prompt of a chat that ends with the user's turn, up to where the completion begins."""
        return self._render(self._folded(messages))

    def _folded(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """Return the messages in a form that the template takes: system text and earlier turns folded where needed."""
        begin = messages[:1] if messages[0]["role"] == "system" else []  # where nothing is written there is none
        if self.tells and len(messages) > len(begin) + 1:
            *earlier, question = messages[len(begin):]
            told = (self.example().replace("{question}", asked["content"]).replace("{answer}", answer["content"])
                    + "\n\n" for asked, answer in zip(earlier[::2], earlier[1::2], strict=True))
            messages = [*begin, _turn("user", "".join(told) + question["content"])]
        if self.folds and begin:
            system, question, *rest = messages
            messages = [_turn("user", f"{system['content']}\n\n{question['content']}"), *rest]
        return messages

    def _render(self, messages: list[dict[str, str]], open: bool = True) -> str:
        return self.tokenizer.apply_chat_template(messages, chat_template=self.text, tokenize=False,
                                                  add_generation_prompt=open)

    def _try(self, messages: list[dict[str, str]], open: bool = True) -> str | None:
        """Return the rendered messages, or None where the template refuses them."""
        try:
            return self._render(messages, open)
        except (TemplateError, ValueError, TypeError):
            return None

    def added(self) -> list[str]:
        """Return the added and special tokens, the longest first."""
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        added |= set(self.tokenizer.all_special_tokens)
        return sorted((token for token in added if token.strip()), key=len, reverse=True)

    def _marks(self, preamble: str, between: list[str]) -> tuple[str, ...]:
        """Return the marks: words around turns that have brackets, and words between turns like `User:` and `###`."""
        tokens = re.compile("|".join(map(re.escape, self.added())) or "(?!)")

        def words(text: str) -> list[str]:
            return [word for word in TAGS.sub(" ", tokens.sub(" ", text)).split() if len(word) > 1]

        found = {word for text in (preamble, *between) for word in words(text) if BRACKETS.search(word)}
        found |= {word for text in between for word in words(text) if LABEL.fullmatch(word)}
        return tuple(sorted(found, key=len, reverse=True))


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
