"""Query + pool + decision -> prompt token ids. The one place where untrusted text meets a prompt.

Contexts and candidates come from users and the web. Before they are set into a template they lose every power to
speak for the system: control and invisible characters go, white space (line breaks too) becomes one space, `[3]`
becomes `(3)`, think and answer tags and the tokenizer's control strings are broken. The finished prompt is then
tokenized as a whole, as the chat template wants it. A server tokenizes by itself and its control strings are not known:
for it whatever has the form of one is broken.

Constant text comes first and the pool last, so that asks about one query share a long prefix. A prompt over budget
is never cut as a whole: the longest texts are shortened (middle first, since questions often end a context) until it
fits, and the history drops its oldest items only if that is not enough.
"""

import hashlib
import os
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from ranker import plugins
from ranker.chats import ChatTemplate
from ranker.config import parse_yaml
from ranker.data import Ask, Cut
from ranker.errors import UserError, nearest

FOLDER = Path(__file__).resolve().parent.parent / "prompts"
LETTERS = "ABCDEFGHIJKLMNOPQRST"
WORDING = ("scenario", "heading", "noun", "nouns", "criterion")
FIELDS = ("context", "count", "half", "drop", "pool", *WORDING)  # of a template

_BRACKETS = str.maketrans("［］【】〔〕", "[][][]")
_IDENTIFIER = re.compile(r"\[\s*([^\[\]]{1,12}?)\s*\]")
_EXACT = re.compile(r"\s*<think>((?:(?!</?(?:think|answer)>).)*)</think>"
                    r"\s*<answer>((?:(?!</?(?:think|answer)>).)*)</answer>\s*", re.DOTALL)
_SELECTOR = re.compile("[\ufe00-\ufe0f]")  # variation selectors: they change how a character looks, not what it is
_TAG = re.compile(r"[<＜](?=\s*[/／]?\s*(?:think|answer)\b)", re.IGNORECASE)
# Such as <s>, <|im_end|>, <<SYS>>, [/INST], [gMASK].
_CONTROL = re.compile(r"<(?!/?(?:think|answer)>)(?=[^<>\s]+>)|<(?=[|｜])|(?<=[|｜])>|\[(?=/?[a-z]?[A-Z_]{2,40}\])")


_TAKEN: dict[str, bytes] = {}  # prompts in the place of those in FOLDER


@cache
def files() -> dict[str, bytes]:
    """Return what stands in prompts/, read once.

    Who edits a prompt while a run goes on changes neither its asks nor what its checkpoints say of them.
    """
    paths = (*sorted(FOLDER.glob("[!.]*.txt")), FOLDER / "tasks.yaml")
    return {path.name: path.read_bytes() for path in paths if os.access(path, os.R_OK)} | _TAKEN


def use(where: str | None, records: Sequence[dict] = ()) -> None:
    """Take the prompts of a folder, or (`checkpoint`) those that checkpoints were trained with, over those in prompts/.

    None: prompts/ as it is. Raise UserError where there are none, or checkpoints that differ.
    """
    _TAKEN.clear()
    if where == "checkpoint":
        texts = [record.get("prompt_texts") for record in records]
        if not texts or not all(texts):
            raise UserError("--prompts=checkpoint needs checkpoints that hold their prompts; older ones do not")
        if any(text != texts[0] for text in texts):
            raise UserError("the checkpoints were trained with different prompts; evaluate them one by one")
        _TAKEN.update({name: text.encode() for name, text in texts[0].items()})
    elif where:
        found = [path for path in sorted(Path(where).glob("*")) if path.suffix == ".txt" or path.name == "tasks.yaml"]
        if not found:
            raise UserError(f"--prompts: {where} is no folder with prompts (NAME.txt, tasks.yaml)")
        _TAKEN.update({path.name: path.read_bytes() for path in found})
    for cached in (files, wordings, template):
        cached.cache_clear()


def prompt_texts() -> dict[str, str]:
    """Return the prompts as they stand in checkpoints: file name -> text."""
    return {name: text.decode() for name, text in files().items()}


@cache
def wordings() -> dict[str, dict[str, str]]:
    """Task name -> its wording, from prompts/tasks.yaml. Raises UserError for a task without all fields."""
    path = FOLDER / "tasks.yaml"
    try:
        tasks = parse_yaml(_text(path))
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(tasks, dict) or not tasks:
        raise UserError(f"{path}: expected task names with their wordings")
    for name, wording in tasks.items():
        for key in WORDING:
            if not isinstance(wording, dict) or not isinstance(wording.get(key), str):
                raise UserError(f"{path}: task '{name}' has no text for '{key}'")
    return tasks


def wording(task: str) -> dict[str, str]:
    if task not in wordings():
        raise UserError(f"no wording for task '{task}' in prompts/tasks.yaml{nearest(task, wordings())};"
                        " add an entry, or use the task name 'rank'")
    return wordings()[task]


@cache
def template(name: str, told: tuple[str, ...] = ()) -> str:
    """Return the text of prompts/NAME.txt.

    Raise UserError for fields that nothing fills (`told`: further ones that are filled), and for a decision that shows
    no context or no pool.
    """
    path = FOLDER / f"{name}.txt"
    text = _text(path).strip()
    if name in ("system", "out", "hint", "example"):
        return text
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise UserError(f"{path}: broken field ({error}; known: {', '.join(FIELDS)}); "
                        "a bracket that is none is written twice") from None
    wrong = [f"unknown field '{{{field}}}'" for field in fields if field not in (*FIELDS, *told)]
    wrong += [f"no field '{{{field}}}'" for field in ("context", "pool") if field not in fields]
    if wrong:
        raise UserError(f"{path}: {wrong[0]} (known: {', '.join(FIELDS)})")
    return text


def _text(path: Path) -> str:
    try:
        return files()[path.name].decode()
    except KeyError:
        raise UserError(f"{path}: cannot be read "
                        f"({'no permission' if path.exists() else 'there is no such file'})") from None
    except ValueError:
        raise UserError(f"{path}: cannot be read (not UTF-8 text)") from None


CHAT = "chat template"  # among the versions of prompts


def prompt_versions(chat: str = "") -> dict[str, str]:
    """Return a short hash of every template and of every task's wording, as it stands in checkpoints and results.

    `chat` is the hash of a chat template, which is one more of them.
    """
    texts = {name: text for name, text in files().items() if name != "tasks.yaml"}
    texts |= {f"tasks.yaml {task}": repr(sorted(fields.items())).encode() for task, fields in wordings().items()}
    versions = {name: hashlib.sha256(text).hexdigest()[:12] for name, text in texts.items()}
    return versions | ({CHAT: chat} if chat else {})


def changed_prompts(recorded: dict[str, str], chat: str = "") -> list[str]:
    """Return what was recorded and reads otherwise now.

    New templates and tasks are no change, nor is the chat template where `chat` is not given.
    """
    now = prompt_versions(chat)
    return [name for name, version in recorded.items() if now.get(name) != version and (chat or name != CHAT)]


def harmless(text: str, control_strings: tuple[str, ...] = ()) -> str:
    """`text` with nothing left in it that could pass for an identifier, a tag, a control token or a new line."""
    if not text.isprintable():  # else there is nothing to take out, and most texts are
        text = "".join(" " if c.isspace() else c for c in text
                       if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    text = _SELECTOR.sub("", text).translate(_BRACKETS)
    text = " ".join(text.split())  # first, since a long run of spaces behind a bracket costs the patterns its square
    text = _IDENTIFIER.sub(_disarmed, text)
    text = _TAG.sub("(", text)
    text = text.replace("<|", "(|").replace("|>", "|)")
    return broken_control(text, control_strings)


def broken_control(text: str, control_strings: tuple[str, ...]) -> str:
    """`text` with a mark after the first character of every control string in it; the longest come first."""
    for control in control_strings:
        core = control.strip()
        while core in text:
            text = text.replace(core, f"{core[0]}_{core[1:]}" if len(core) > 1 else "_")
    return text


def without_control(text: str) -> str:
    """`text` for a model whose control strings are not known: what has the form of one is broken, think and answer tags
    aside."""
    return _CONTROL.sub(lambda found: ")" if found[0] == ">" else "(", text)


def _disarmed(found: re.Match) -> str:
    """`[3]`, `[²]` and `[A]` in round brackets; other bracketed text as it is."""
    inside = unicodedata.normalize("NFKC", found[1]).strip()
    return f"({inside})" if re.fullmatch(r"\d+|[A-Za-z]", inside) else found[0]


def messages(ask: Ask, shown: Callable[[str], str] = harmless, told: Callable[[str], str] = str, history: int
             | None = None, multi_turn: bool = False, name: Callable[[int], str] = str) -> list[dict[str, str]]:
    """Chat messages for an ask: untrusted texts as `shown` gives them, a history cut to its newest `history` items.

    Worked examples are earlier turns of the same chat, their completions as `told` gives them. The k-th candidate is
    called `[name(k)]`. With `multi_turn` each candidate has a turn of its own, which the assistant acknowledges,
    between the question and the question again, as RankGPT (arXiv 2304.09542) asks.
    """
    turn = lambda role, content: {"role": role, "content": content}  # noqa: E731

    def asked(ask: Ask) -> list[dict[str, str]]:
        pool = [f"[{name(k)}] {shown(ask.query.texts[c])}" for k, c in enumerate(ask.pool, 1)]
        question = lambda pool: turn("user", _question(ask, pool, shown, history))  # noqa: E731
        if not multi_turn:
            return [question("\n".join(pool))]
        given = [t for k, line in enumerate(pool, 1)
                 for t in (turn("user", line), turn("assistant", f"Received [{k}]."))]
        identifiers = " ".join(f"[{k}]" for k in range(1, len(pool) + 1))
        return [question("(each follows in a turn of its own)"), turn("assistant", "Go on."), *given,
                question(f"{identifiers}, each as given above")]

    examples = [t for example, completion in ask.examples
                for t in (*asked(example), turn("assistant", told(completion)))]
    return [turn("system", template("system")), *examples, *asked(ask)]


def _question(ask: Ask, pool: str, shown: Callable[[str], str], history: int | None) -> str:
    decision = plugins.module("decision", ask.decision)
    query, context = ask.query, ask.query.context
    if isinstance(context, str):
        context = shown(context)
    else:
        kept = context if history is None else context[max(len(context) - history, 0):]
        context = "\n".join(f"- {shown(item)}" for item in kept)
    fields = wording(query.task) | {"context": context, "pool": pool, "count": len(ask.pool),
                                    "half": (len(ask.pool) + 1) // 2, "drop": ask.drop}
    fields |= {name: shown(text) for name, text in ask.told}
    name = decision.template(ask) if hasattr(decision, "template") else ask.decision
    try:
        question = template(name, getattr(decision, "TOLD", ())).format_map(fields)
    except (ValueError, KeyError) as error:  # a conversion or a format that a text does not have
        raise UserError(f"{FOLDER / name}.txt: a field cannot be filled ({error})") from None
    if ask.out is not None:
        question += "\n" + template("out").replace("{out}",
                                                   ", ".join(f"[{ask.pool.index(c) + 1}]" for c in ask.out) or "none")
    return question + ("\n" + template("hint").replace("{hint}", ask.hint) if ask.hint else "")


@dataclass
class Chat:
    """Builds the chats for a server, which renders and tokenizes them. A text of more than `words` words loses its
    middle."""

    words: int = 300
    multi_turn: bool = False

    def messages(self, ask: Ask) -> list[dict[str, str]]:
        return self.fitted(ask)[0]

    def fitted(self, ask: Ask) -> tuple[list[dict[str, str]], Cut]:
        """The chat of an ask, and how many `words` its long texts were cut to."""
        cut = []

        def shown(text: str) -> str:
            words = without_control(harmless(text)).split(" ")
            if len(words) > self.words:
                cut.append(text)
                words[self.words - self.words // 2:len(words) - self.words // 2] = ["..."]
            return " ".join(words)

        return messages(ask, shown, without_control, multi_turn=self.multi_turn), {"words": self.words} if cut else None


@dataclass
class Prompter:
    """Builds prompts for one tokenizer. `max_tokens` is the longest prompt it will make, chat template included."""

    tokenizer: object
    max_tokens: int = 1400
    chat_template: str | None = None  # Jinja; None: the tokenizer's own
    chat: ChatTemplate = field(init=False)
    control_strings: tuple[str, ...] = field(init=False)  # added tokens, and marks of turns that are none
    identifiers: list[int] = field(init=False, default_factory=list)  # their tokens in an answer, as far as asked for

    def __post_init__(self):
        self.chat = ChatTemplate(self.tokenizer, self.chat_template, lambda: template("example"))
        self.control_strings = tuple(sorted({*self.chat.added(), *self.chat.marks}, key=len, reverse=True))

    @property
    def prefill(self) -> str:
        """Return what the chat template has already written of the completion."""
        return self.chat.prefill

    @cached_property
    def to_answer(self) -> str:
        """What is written for a model whose logits are the answer, up to where identifiers differ."""
        opening = "\n</think>\n<answer>" if self.prefill else "<answer>"
        first = self.identifier(1)
        one_more = len(self._tokens(opening)) + 1
        return opening + ("[" if len(self._tokens(f"{opening}[{first}]")) > one_more else "")  # else `[1]` is one token

    @cached_property
    def letters(self) -> bool:
        """Tell whether identifiers of asks that logits answer are A to T, as FIRST has them.

        They are where numbers up to 20 are not one token each.
        """
        single = lambda text: len(self.behind("<answer>[", text)) == 1  # noqa: E731
        return not all(single(str(k)) or single(f"{k}]") for k in range(1, len(LETTERS) + 1))

    def identifier(self, k: int) -> str:
        """Name the k-th candidate of an ask that logits answer."""
        return LETTERS[k - 1] if self.letters and k <= len(LETTERS) else str(k)

    def messages(self, ask: Ask, shown: Callable[[str], str] | None = None,
                 history: int | None = None) -> list[dict[str, str]]:
        """Chat messages for an ask: every text as `shown` gives it (harmless and whole), a history cut to its newest
        `history` items."""
        return messages(ask, shown or self.harmless, self.told, history, name=self.identifier if ask.by_logits else str)

    def harmless(self, text: str) -> str:
        return harmless(text, self.control_strings)

    def told(self, completion: str) -> str:
        """Return the completion of a worked example: its own tags stay, control strings in it do not."""
        broken = lambda text: broken_control(text, self.control_strings)  # noqa: E731
        found = _EXACT.fullmatch(completion)
        if not found:
            return broken(completion)
        return f"<think>{broken(found[1])}</think>\n<answer>{broken(found[2])}</answer>"

    def render(self, messages: list[dict[str, str]]) -> str:
        return self.chat.render(messages)

    def encode(self, ask: Ask) -> list[int]:
        """Token ids of the prompt, at most `max_tokens`. Raises UserError when the bare template does not fit."""
        return self.fitted(ask)[0]

    def fitted(self, ask: Ask) -> tuple[list[int], Cut]:
        """`encode`, and how many `tokens` each text was cut to and how many items of its `history` are left, if that
        had to be.

        Whatever is tried, a text is cleaned and tokenized once.
        """
        clean, tokens = cache(self.harmless), cache(self._tokens)
        cut_to = lambda length: cache(lambda text: self._cut(clean(text), tokens(clean(text)), length))  # noqa: E731
        prompt = lambda shown, history=None: tokens(self._prompt(ask, shown, history))  # noqa: E731
        whole, shortest = prompt(clean), cut_to(4)
        if len(whole) <= self.max_tokens:
            return whole, None
        if len(prompt(shortest)) <= self.max_tokens:
            length = self._largest(4, len(whole), lambda length: prompt(cut_to(length)))
            return prompt(cut_to(length)), {"tokens": length}
        history = 0 if isinstance(ask.query.context, str) else len(ask.query.context)
        if history == 0 or len(prompt(shortest, 0)) > self.max_tokens:
            raise UserError(f"query '{ask.query.id}': a prompt of {len(ask.pool)} candidates needs more than"
                            f" model.max_prompt={self.max_tokens} tokens even with every text cut; raise it")
        left = self._largest(0, history, lambda items: prompt(shortest, items))
        return prompt(shortest, left), {"tokens": 4, "history": left}

    def _largest(self, low: int, high: int, prompt: Callable[[int], list[int]]) -> int:
        """The largest number whose prompt fits, from `low`, which does, to below `high`, which does not."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if len(prompt(middle)) <= self.max_tokens else (low, middle)
        return low

    def written_answer(self, places: Sequence[int]) -> tuple[str, list[int]]:
        """Return the answer that names candidates by their places in the pool, and the tokens that are left of it.

        Those stand behind what the prompt has begun of the answer.
        """
        text = f"{self.to_answer.removesuffix('[')}{' > '.join(f'[{self.identifier(k)}]' for k in places)}</answer>"
        return text[text.rindex("<answer>"):], self.behind(self.to_answer, text[len(self.to_answer):])

    def identifier_tokens(self, count: int) -> list[int]:
        """The token of each identifier 1 to `count` where an answer names it. Raises UserError if one is not a single
        token there."""
        before, begun = self._tokens(self.to_answer), self.to_answer.removesuffix("[")
        for k in range(len(self.identifiers) + 1, count + 1):
            name = self.identifier(k)
            whole = self._tokens(f"{begun}[{name}]</answer>")
            named = f"{begun}[{name}]" if begun == self.to_answer else f"{begun}[{name}"
            if (whole[:len(before)] != before or self._tokens(named) != [*before, whole[len(before)]]
                    or whole[len(before)] in self.identifiers):
                raise UserError(f"the identifier [{name}] is not one token of this tokenizer, so its logit says"
                                f" nothing; ask about at most {k - 1} candidates at a time (ranker.final, or"
                                " ranker.window)")
            self.identifiers.append(whole[len(before)])
        return self.identifiers[:count]

    def check(self, asks: Sequence[Ask]) -> None:
        """Raise UserError for asks that logits are to answer and cannot, since their identifiers are several tokens."""
        self.identifier_tokens(max((len(ask.pool) for ask in asks if ask.by_logits), default=0))

    def behind(self, before: str, text: str) -> list[int]:
        """Return the tokens of `text` behind `before`: some tokenizers put a space before a text that stands alone."""
        begun, whole = self._tokens(before), self._tokens(before + text)
        return whole[len(begun):] if whole[:len(begun)] == begun else self._tokens(text)

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _prompt(self, ask: Ask, shown: Callable[[str], str], history: int | None) -> str:
        return self.render(self.messages(ask, shown, history)) + (self.to_answer if ask.by_logits else "")

    def _cut(self, text: str, ids: list[int], tokens: int) -> str:
        """`text`, whose tokens are `ids`, without its middle where it has more than `tokens`."""
        if len(ids) <= tokens:
            return text
        head, tail = ids[:tokens - tokens // 2], ids[len(ids) - tokens // 2:]
        decode = self.tokenizer.decode
        # Decoding half a token can bring control characters or identifiers back together: clean once more.
        return self.harmless(f"{decode(head)} ... {decode(tail)}")
