"""Query + pool + decision -> prompt token ids. The only place where untrusted text meets a prompt.

Contexts and candidates come from users and the web. Before they are put into a template they lose every power to speak
for the system: control and invisible characters are removed, white space (line breaks too) becomes a single space,
`[3]` becomes `(3)`, and think and answer tags and the tokenizer's control strings are broken. The finished prompt is
then tokenized as a whole, as the chat template wants it. A server tokenizes by itself and its control strings are not
known: for a server everything in the form of a control string is broken.

Constant text comes first and the pool last, so that asks about a query share a long prefix. A prompt over budget is
never cut as a whole: its longest texts are shortened until it fits (in the middle, since questions often end a
context), and only if that is not enough does the history lose its oldest items.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

from ranker import plugins, templates
from ranker.chats import ChatTemplate
from ranker.data import Ask, Cut
from ranker.errors import UserError
from ranker.templates import template, wording

TAIL = 80  # characters of a prompt that decide how a text behind it is tokenized
LETTERS = "ABCDEFGHIJKLMNOPQRST"

_BRACKETS = str.maketrans("［］【】〔〕", "[][][]")
_IDENTIFIER = re.compile(r"\[\s*([^\[\]]{1,12}?)\s*\]")
_EXACT = re.compile(r"\s*<think>((?:(?!</?(?:think|answer)>).)*)</think>"
                    r"\s*<answer>((?:(?!</?(?:think|answer)>).)*)</answer>\s*", re.DOTALL)
_SELECTOR = re.compile("[\ufe00-\ufe0f]")  # variation selectors, which change the look of a character only
_TAG = re.compile(r"[<＜](?=\s*[/／]?\s*(?:think|answer)\b)", re.IGNORECASE)
# The form of control strings, such as <s>, <|im_end|>, <<SYS>>, [/INST], [gMASK].
_CONTROL = re.compile(r"<(?!/?(?:think|answer)>)(?=[^<>\s]+>)|<(?=[|｜])|(?<=[|｜])>|\[(?=/?[a-z]?[A-Z_]{2,40}\])")


def harmless(text: str, control_strings: tuple[str, ...] = ()) -> str:
    """Return `text` with nothing left in it that could pass for an identifier, a tag, a control token or a new line."""
    if not text.isprintable():  # most texts are printable, and then there is nothing to take out
        text = "".join(" " if c.isspace() else c for c in text
                       if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    text = _SELECTOR.sub("", text).translate(_BRACKETS)
    text = " ".join(text.split())  # first, as a run of spaces costs the patterns its square
    text = _IDENTIFIER.sub(_disarmed, text)
    text = _TAG.sub("(", text)
    text = text.replace("<|", "(|").replace("|>", "|)")
    return broken_control(text, control_strings)


def broken_control(text: str, control_strings: tuple[str, ...]) -> str:
    """Return `text` with `_` after the first character of every control string; `control_strings`: longest first."""
    for control in control_strings:
        core = control.strip()
        while core in text:
            text = text.replace(core, f"{core[0]}_{core[1:]}" if len(core) > 1 else "_")
    return text


def without_control(text: str) -> str:
    """Return `text` for a model whose control strings are not known.

    Everything in the form of a control string is broken, except think and answer tags.
    """
    return _CONTROL.sub(lambda found: ")" if found[0] == ">" else "(", text)


def _disarmed(found: re.Match) -> str:
    """Return `[3]`, `[²]` and `[A]` in round brackets, and other bracketed text as it is."""
    inside = unicodedata.normalize("NFKC", found[1]).strip()
    return f"({inside})" if re.fullmatch(r"\d+|[A-Za-z]", inside) else found[0]


def messages(ask: Ask, shown: Callable[[str], str] = harmless, told: Callable[[str], str] = str,
             history: int | None = None, multi_turn: bool = False,
             name: Callable[[int], str] = str, system: str = "system") -> list[dict[str, str]]:
    """Return the chat messages of an ask; `shown` makes untrusted texts harmless, and a history is cut.

    `system` names the template of the system's turn.

    Of a history the newest `history` items are left (None: all). Worked examples are earlier turns of the same chat,
    their completions as `told` returns them. The k-th candidate is called `[name(k)]`. With `multi_turn` the question
    is asked twice, and between stands a turn for each candidate, which the assistant acknowledges, as RankGPT asks
    (arXiv 2304.09542).
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
    begin = [] if scored_texts(ask) else [turn("system", template(system))]  # where nothing is written
    return [*begin, *examples, *asked(ask)]


def scored_texts(ask: Ask) -> list[str]:
    """Return the texts whose log-probabilities answer the ask; none: an answer is written."""
    texts = getattr(plugins.module("decision", ask.decision), "texts", None)
    return texts(ask) if texts else []


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
    fields |= {name: "\n".join(map(shown, text.split("\n"))) for name, text in ask.told}
    name = decision.template(ask) if hasattr(decision, "template") else ask.decision
    try:
        question = template(name, getattr(decision, "TOLD", ()), getattr(decision, "SHOWS", ("context", "pool"))
                            ).format_map(fields)
    except (ValueError, KeyError) as error:  # the template wants a conversion or a format that texts do not have
        raise UserError(f"{templates.FOLDER / name}.txt: a field cannot be filled ({error})") from None
    if ask.out is not None:
        question += ("\n" + template("out")
                     .replace("{out}", ", ".join(f"[{ask.pool.index(c) + 1}]" for c in ask.out) or "none"))
    return question + ("\n" + template("hint").replace("{hint}", ask.hint) if ask.hint else "")


@dataclass
class Chat:
    """A builder of chats for a server, which renders and tokenizes them itself.

    A text of more than `words` words loses its middle.
    """

    words: int = 300
    multi_turn: bool = False

    def messages(self, ask: Ask) -> list[dict[str, str]]:
        return self.fitted(ask)[0]

    def fitted(self, ask: Ask) -> tuple[list[dict[str, str]], Cut]:
        """Return the messages of an ask, and to how many `words` its long texts were cut (None where no text was)."""
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
    """A builder of prompts for a tokenizer. `max_tokens`: the longest prompt it makes, chat template included."""

    tokenizer: object
    max_tokens: int = 1400
    chat_template: str | None = None  # Jinja; None: the tokenizer's own
    think: bool = True  # whether a thought is asked for; else the prompt begins the answer
    chat: ChatTemplate = field(init=False)
    control_strings: tuple[str, ...] = field(init=False)  # added tokens, and words between turns that are none
    identifiers: list[int] = field(init=False, default_factory=list)  # tokens of `[1]`, `[2]`, ... found so far

    def __post_init__(self):
        self.chat = ChatTemplate(self.tokenizer, self.chat_template, lambda: template("example"))
        self.control_strings = tuple(sorted({*self.chat.added(), *self.chat.marks}, key=len, reverse=True))

    @property
    def prefill(self) -> str:
        """Return the part of the completion that the prompt has already written, of it the chat template's first."""
        return self.chat.prefill + self.begun

    @property
    def begun(self) -> str:
        """Return what is written behind the chat template, where no thought is asked for."""
        return "" if self.think else "\n</think>\n<answer>" if self.chat.prefill else "<answer>"

    @cached_property
    def to_answer(self) -> str:
        """Return the text written for a model whose logits are the answer: an answer up to where identifiers differ."""
        opening = "\n</think>\n<answer>" if self.chat.prefill else "<answer>"
        first = self.identifier(1)
        one_more = len(self._tokens(opening)) + 1
        return opening + ("[" if len(self._tokens(f"{opening}[{first}]")) > one_more else "")  # else `[1]` is one token

    @cached_property
    def letters(self) -> bool:
        """Tell whether candidates are A to T, as in FIRST, in asks that logits answer.

        They are where the numbers up to 20 are not one token each.
        """
        single = lambda text: len(self.behind("<answer>[", text)) == 1  # noqa: E731
        return not all(single(str(k)) or single(f"{k}]") for k in range(1, len(LETTERS) + 1))

    def identifier(self, k: int) -> str:
        """Return the identifier of the k-th candidate of an ask that logits answer."""
        return LETTERS[k - 1] if self.letters and k <= len(LETTERS) else str(k)

    def messages(self, ask: Ask, shown: Callable[[str], str] | None = None,
                 history: int | None = None) -> list[dict[str, str]]:
        """Return the chat messages of an ask; `shown` (by default harmless and whole) and `history`: see `messages`."""
        return messages(ask, shown or self.harmless, self.told, history, name=self.identifier if ask.by_logits else str,
                        system="system" if self.think else "direct")

    def harmless(self, text: str) -> str:
        """Return `text` with nothing left in it that could speak for the system of this tokenizer."""
        return harmless(text, self.control_strings)

    def told(self, completion: str) -> str:
        """Return the completion of a worked example: its own tags stay, its control strings are broken."""
        broken = lambda text: broken_control(text, self.control_strings)  # noqa: E731
        found = _EXACT.fullmatch(completion)
        if not found:
            return broken(completion)
        return f"<think>{broken(found[1])}</think>\n<answer>{broken(found[2])}</answer>"

    def render(self, messages: list[dict[str, str]]) -> str:
        return self.chat.render(messages)

    def encode(self, ask: Ask) -> list[int]:
        """Return the prompt's token ids, at most `max_tokens`. Raise UserError when the bare template does not fit."""
        return self.fitted(ask)[0]

    def fitted(self, ask: Ask) -> tuple[list[int], Cut]:
        """Return the token ids of the prompt, and how far its texts had to be cut (None: not at all).

        The cut says to how many `tokens` each text was cut, and how many items of its `history` are left. However many
        cuts are tried, a text is cleaned and tokenized once.
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
            raise UserError(f"query '{ask.query.id}': a prompt of {len(ask.pool)} candidates needs more than "
                            f"model.max_prompt={self.max_tokens} tokens even with every text cut; raise it")
        left = self._largest(0, history, lambda items: prompt(shortest, items))
        return prompt(shortest, left), {"tokens": 4, "history": left}

    def _largest(self, low: int, high: int, prompt: Callable[[int], list[int]]) -> int:
        """Find the largest number whose prompt fits; `low` is a number that fits, `high` one that does not."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if len(prompt(middle)) <= self.max_tokens else (low, middle)
        return low

    def written_answer(self, places: Sequence[int]) -> tuple[str, list[int]]:
        """Return the answer that names candidates by their places in the pool, and the tokens of its rest.

        The rest of the answer is all that follows the beginning that the prompt has written.
        """
        text = f"{self.to_answer.removesuffix('[')}{' > '.join(f'[{self.identifier(k)}]' for k in places)}</answer>"
        return text[text.rindex("<answer>"):], self.behind(self.to_answer, text[len(self.to_answer):])

    def identifier_tokens(self, count: int) -> list[int]:
        """Return the token of each identifier 1 to `count` where an answer names it.

        Raise UserError for an identifier that is not a single token there.
        """
        before, begun = self._tokens(self.to_answer), self.to_answer.removesuffix("[")
        for k in range(len(self.identifiers) + 1, count + 1):
            name = self.identifier(k)
            whole = self._tokens(f"{begun}[{name}]</answer>")
            named = f"{begun}[{name}]" if begun == self.to_answer else f"{begun}[{name}"
            if (whole[:len(before)] != before or self._tokens(named) != [*before, whole[len(before)]]
                    or whole[len(before)] in self.identifiers):
                raise UserError(f"the identifier [{name}] is not one token of this tokenizer, so its logit says "
                                f"nothing; ask about at most {k - 1} candidates at a time (ranker.final, or "
                                "ranker.window)")
            self.identifiers.append(whole[len(before)])
        return self.identifiers[:count]

    def scored(self, ask: Ask, limit: int) -> tuple[list[int], list[list[int]], Cut]:
        """Return the prompt of an ask, and the tokens of each text whose log-probability answers it, with the end of
        the turn.

        At most `limit` tokens each; of a longer text the beginning is left, and no end, which the cut says (`scored`)
        beside what the prompt lost.
        """
        prompt, cut = self.fitted(ask)
        before = self._prompt(ask, self.harmless, 0)[-TAIL:]  # enough to know how a text behind it begins
        texts = [[*self.behind(before, self.harmless(text)), self.end] for text in scored_texts(ask)]
        if any(len(ids) > limit for ids in texts):
            cut = (cut or {}) | {"scored": limit}
        return prompt, [ids[:limit] for ids in texts], cut

    @cached_property
    def end(self) -> int:
        """Return the token that ends a completion, as the chat template writes it."""
        own = self.tokenizer.eos_token_id
        return own if own in self.chat.ends or not self.chat.ends else min(self.chat.ends)

    def check(self, asks: Sequence[Ask]) -> None:
        """Raise UserError for asks that logits cannot answer, since their identifiers are several tokens."""
        self.identifier_tokens(max((len(ask.pool) for ask in asks if ask.by_logits), default=0))

    def behind(self, before: str, text: str) -> list[int]:
        """Return the tokens of `text` behind `before`, since some tokenizers put a space before a lone text."""
        begun, whole = self._tokens(before), self._tokens(before + text)
        return whole[len(begun):] if whole[:len(begun)] == begun else self._tokens(text)

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _prompt(self, ask: Ask, shown: Callable[[str], str], history: int | None) -> str:
        scored = "\n</think>\n" if self.chat.prefill else ""  # what a template opens for a thought is closed
        begun = self.to_answer if ask.by_logits else scored if scored_texts(ask) else self.begun
        return self.render(self.messages(ask, shown, history)) + begun

    def completion(self, text: str) -> list[int]:
        """Return the tokens of a completion that somebody else wrote, behind what the prompt begins of it.

        Where no thought is asked for its answer alone is left.
        """
        if not self.think:
            if "<answer>" not in text:
                raise UserError("model.think=false keeps a trace's answer alone, and this one has none:"
                                f" {text[:60]!r}")
            text = self.prefill + text[text.rindex("<answer>") + len("<answer>"):]
        return self.behind(self.chat.opening + self.begun, text.removeprefix(self.prefill))

    def _cut(self, text: str, ids: list[int], tokens: int) -> str:
        """Return `text`, whose tokens are `ids`, without its middle where it has more than `tokens` tokens."""
        if len(ids) <= tokens:
            return text
        head, tail = ids[:tokens - tokens // 2], ids[len(ids) - tokens // 2:]
        decode = self.tokenizer.decode
        # Decoding half a token can put control characters or identifiers together again, so the text is cleaned again.
        return self.harmless(f"{decode(head)} ... {decode(tail)}")
