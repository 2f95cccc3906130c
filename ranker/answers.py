"""Completion -> Answer: the only parser, for rewards and evaluation alike. It reads or fails; it never guesses.

Here stands where the answer is; `naming.py` reads what it names. Only the text behind the last thought counts, in
whatever tags a family of models thinks, up to the first mark of another turn, and of it only the last
`<answer>...</answer>`. An answer that is told as an example, or that stands in the middle of a completion which the
token limit cut, is a draft. A thought behind the answer, with nothing behind itself, explains that answer.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ranker import plugins
from ranker.data import Answer, Ask
from ranker.naming import INVISIBLE, identifiers, ranking_lines
from ranker.naming import named, tidy, turned, views  # noqa: F401  what decisions read answers by

MISSING, FOREIGN = Answer("missing_answer"), Answer("not_a_candidate")
LONGEST_ANSWER = 4000  # characters between the tags, spaces aside; a longer text decides nothing

# Marks in a completion. All of `_MARK` begin with one of three characters, so that the search is fast.
_THOUGHT = r"\s*(?:[a-z]+:)?(?:think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratchpad|cot)\s*>"
_OPEN = (rf"(?<=<){_THOUGHT}|(?<=[\[◁])think(?:ing)?[\]▷]|(?<=<)\|(?:start|begin)_(?:of_)?th(?:inking|ought)\|>"
         r"|(?<=<)\|channel\|?>(?!\s*final\b)\s*[a-z]*(?:[^<\n]{0,40}<\|message\|>)?")
_CLOSE = (rf"(?<=<)/{_THOUGHT}|(?<=[\[◁])/think(?:ing)?[\]▷]|(?<=<)\|end_(?:of_)?th(?:inking|ought)\|>|(?<=<)channel\|>"
          r"|(?<=<)\|channel\|?>\s*final\b(?:[^<\n]{0,40}<\|message\|>)?|(?<=<)\|end\|>(?=\s*<\|start\|>assistant)")
_TURN = (r"(?<=\[)/?INST\]|(?<=<)(?:/?s|eos|bos|(?:start|end)_of_turn|turn\||\|turn|<SYS>)>"
         r"|(?<=<)\|end\|>(?!\s*<\|start\|>assistant)|(?<=<)\|start\|>(?!assistant)"
         r"|(?<=<)[|｜][^|｜<>\s]{0,30}(?:user|human|system|assistant|chatbot|turn|im_start|im_end|eot|eom|eos|endoftext"
         r"|_of_text|header_id|role|sentence|observation|tool|return|call)[^|｜<>\s]{0,30}[|｜]>")
_MARK = re.compile(rf"[<\[◁](?:(?P<open>{_OPEN})|(?P<close>{_CLOSE})|(?P<turn>{_TURN}))", re.IGNORECASE)
_PREAMBLE = re.compile(r"(?:\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|im_start\|>\s*assistant\b|<\|assistant\|>|"
                       r"<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|<start_of_turn>\s*model\b|"
                       r"<\|turn>\s*model\b|<[|｜]assistant[|｜]>))*", re.IGNORECASE)
_SPEAKER = re.compile(r"^[ \t]*(?:#+ *)?(?:User|USER|Human|HUMAN|Instruction) *:", re.MULTILINE)
_UNTAGGED = re.compile(r"\s*(?:analysis|commentary)(?=[A-Z])")  # harmony decoded without its special tokens
_ANSWER = re.compile(r"<\s*(/?)\s*answer\s*>", re.IGNORECASE)
_EXAMPLE = re.compile(r"(?:\be\.\s?g\.,?|\bfor (?:example|instance),?|\bsuch as|\bas in|\b(?:form|format|template|"
                      r"syntax) (?:is|as|like|would be|should be)(?: in)?|\b(?:not|never|maybe|perhaps|possibly|"
                      r"instead of|rather than)):?\s*[\"'`(]*\Z", re.IGNORECASE)
_EITHER = re.compile(r"</\s*answer\s*>,?\s*or\s*\Z", re.IGNORECASE)
_DOUBTED = re.compile(r"<\s*/\s*answer\s*>\s?\?", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"\s*(?:\[\s*[ijkn]\s*\][\s>,.]*)+")
_AT_ONCE = re.compile(r"\W*(?:(?:the|my|final)\s+)*(?:answer\W*)?", re.IGNORECASE)
# In a completion without tags: what is weighed or repeated is no ranking.
_DOUBT = re.compile(r"\b(?:could|might|maybe|perhaps|possibly|wait|hmm+|let me|let['’]?s|need to|example|e\.g|"
                    r"provide)\b", re.IGNORECASE)
_BRACKETS = re.compile("[【〔】〕]")
_HIDDEN = re.compile(f"[{INVISIBLE}]")
_WORD = re.compile(r"\w+")


# Where the answer stands.

def span(text: str) -> str | None:
    """Return the text inside the answer tags that count, or None."""
    found = place(text)
    return text[found] if found else None


def place(text: str, finished: bool = True) -> slice | None:
    """Return where in `text` its `span` stands, or None. `finished` is False where the token limit cut the text."""
    parts, thinking, ended = visible(text)
    cut = not finished and not ended
    for begin, end in () if cut and thinking else parts[-1:] if cut else parts[::-1]:
        found = [tags for tags in _tagged(text, begin, end) if not (
            _EXAMPLE.search(text, max(begin, tags[0] - 60), tags[0]) or _DOUBTED.match(text, tags[2], end))]
        found = [tags for tags in found if not _PLACEHOLDER.fullmatch(text, *tags[1:])] or found
        if found:
            tag, start, stop = found[-1]
            either = _EITHER.search(text, max(begin, tag - 60), tag)
            return None if either or cut and not _AT_ONCE.fullmatch(text, begin, tag) else slice(start, stop)
        if _WORD.search(text, begin, end):
            return None
    return None


def _tagged(text: str, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield where each answer's start tag begins, and where its inside begins and ends."""
    opened = None
    for tag in _ANSWER.finditer(text, begin, end):
        if tag[1] and opened:
            yield opened.start(), opened.end(), tag.start()
        opened = None if tag[1] else tag


def visible(text: str) -> tuple[list[tuple[int, int]], bool, bool]:
    """Return the stretches of `text` outside of thoughts, whether a thought is open, and whether another turn began.

    All that stands before an end of thought without a beginning is thought: the prompt may have written the beginning.
    """
    begin, end, tail = _PREAMBLE.match(text).end(), len(text), "assistantfinal"
    parts, thought, final, ended = [], None, False, False
    if _UNTAGGED.match(text):
        begin, thought = (text.rfind(tail) + len(tail), None) if tail in text else (begin, "analysis")
    for mark in _MARK.finditer(text, begin):
        kind = _kind(mark[0].lower())
        if mark["turn"] or final and mark[0].lower() == "<|end|>":
            end, ended = mark.start(), True
            break
        if mark["open"] and thought is None:
            parts.append((begin, mark.start()))
            thought = kind
        elif mark["close"] and thought in (None, kind):
            parts = parts if thought else []
            begin, thought, final = mark.end(), None, "final" in mark[0].lower()
    if thought is None:
        parts.append((begin, end))
    if parts and (speaker := _SPEAKER.search(text, *parts[-1])):
        parts[-1], ended = (parts[-1][0], speaker.start()), True
    return parts, thought is not None, ended


def _kind(mark: str) -> str:
    """Return the name under which a thought's beginning and its end belong together."""
    if "channel" in mark or mark == "<|end|>":
        return "channel"
    return "token" if mark.startswith("<|") else re.sub(r"[^a-z:]", "", mark)


# Completion -> Answer.

def parse(text: str, ask: Ask, finished: bool = True) -> Answer:
    """Return the Answer that `text` gives to `ask`. `finished` is False where the token limit cut the completion."""
    found = place(text, finished)
    if found is None:
        return Answer("truncated" if not finished and not visible(text)[2] else "missing_answer", text=text)
    if found.stop - found.start > LONGEST_ANSWER < len("".join(text[found].split())):
        return replace(FOREIGN, text=text)
    return _read(text[found], text, found, ask)


def parse_recorded(text: str, ask: Ask) -> Answer:
    """Parse a completion that another tool asked for, whose prompt may not have wanted the answer tags.

    Without the tags nothing says which words are the answer. So identifiers count only in lines that hold nothing but
    identifiers, separators, their candidates' own texts and words that introduce a ranking; the prompt's list of all
    candidates, which a model may repeat, is no ranking; and words of doubt make the answer a failure.
    """
    if place(text):
        return parse(text, ask)
    parts, thinking, _ = visible(text)
    begin, end = parts[-1] if parts and not thinking else (0, 0)
    whole = _plain(text[begin:end])
    if _ANSWER.search(whole) or not _WORD.search(whole):
        return replace(MISSING, text=text)
    said = None if _DOUBT.search(whole) else ranking_lines(whole, ask)
    return replace(FOREIGN, text=text) if said is None else _read(said, text, slice(begin, end), ask)


def _read(inside: str, text: str, found: slice, ask: Ask) -> Answer:
    """Return the Answer of the text inside the tags, or of a completion without tags, which stand at `found`."""
    inside = _plain(inside).strip()
    if not _WORD.search(inside):
        return replace(MISSING, text=text)
    answer = plugins.module("decision", ask.decision).parse(inside, ask)
    return replace(answer, text=text, places=_places(text, found, answer.value, ask))


def _plain(text: str) -> str:
    """Return `text` in NFKC without invisible characters, with one kind of square brackets."""
    if text.isascii():
        return text
    text = _HIDDEN.sub("", unicodedata.normalize("NFKC", text))
    return _BRACKETS.sub(lambda bracket: "[" if bracket[0] in "【〔" else "]", text)


def _places(text: str, found: slice, value: Sequence, ask: Ask) -> tuple[tuple[int, int], ...]:
    """Return where in `text` the identifiers of `value` stand, one behind another (of a failed answer, others between
    them), or () where they do not."""
    wanted = [ask.pool.index(c) + 1 for c in value if c in ask.pool]
    there = list(identifiers(text, found.start, found.stop)) if wanted and len(wanted) == len(value) else []
    for i in range(len(there) - len(wanted) + 1 if there else 0):
        if [k for k, *_ in there[i:i + len(wanted)]] == wanted:
            return tuple((start, stop) for _, start, stop in there[i:i + len(wanted)])
    rest = iter(there)
    spread = [next(((start, stop) for k, start, stop in rest if k == number), None) for number in wanted]
    return () if None in spread else tuple(spread)


def some(named: Sequence[str | None], ask: Ask, most: int) -> Answer:
    """Return the Answer that names at most `most` candidates, each once; if `most` is 1, it may be named again."""
    if None in named:
        return _foreign(named)
    distinct = tuple(dict.fromkeys(named))
    once = len(distinct) == len(named) or most == 1
    return Answer("ok" if once and len(distinct) <= most else "repetition", distinct, len(named))


def exactly(named: Sequence[str | None], ask: Ask, wanted: int) -> Answer:
    """Return the Answer that names `wanted` candidates, each once."""
    if None in named:
        return _foreign(named)
    distinct = tuple(dict.fromkeys(named))
    if len(distinct) < len(named) or len(distinct) > wanted:
        return Answer("repetition", distinct, len(named))
    return Answer("ok" if len(distinct) == wanted else "missing_ids", distinct, len(named))


def _foreign(named: Sequence[str | None]) -> Answer:
    return Answer("not_a_candidate", tuple(dict.fromkeys(c for c in named if c is not None)), len(named))


def by_relevance(ask: Ask) -> list[str]:
    """Return the candidates in question as somebody orders them who knows the relevance."""
    return sorted(ask.left, key=lambda c: -ask.query.rel[c])


def written(ask: Ask, ids: Sequence[str]) -> str:
    """Return the text inside the answer tags of an answer that names these candidates."""
    return " > ".join(f"[{ask.pool.index(c) + 1}]" for c in ids)


def all_right(ask: Ask) -> list[str]:
    """Return the text of every right answer of an ask, one where only one is right."""
    decision = plugins.module("decision", ask.decision)
    return (getattr(decision, "all_right", None) or (lambda ask: [decision.right(ask)]))(ask)


def alternatives(ask: Ask) -> tuple[str, ...]:
    """Return the answers to a decision whose probabilities the policy gives beside the answer it wrote."""
    return getattr(plugins.module("decision", ask.decision), "ALTERNATIVES", ())


def digits(text: str, ask: Ask) -> Answer:
    """Parse by the rule of older rerankers, to replay their runs and for nothing else: all digits are identifiers.

    Repeated numbers and numbers out of range are ignored, and missing candidates are appended in the order shown, so
    that no answer ever fails: in `1. [14] > [15]` the list marker lifts the first passage to the top.
    """
    named = [ask.pool[int(k) - 1] for k in re.findall(r"[0-9]+", text) if len(k) < 10 and 1 <= int(k) <= len(ask.pool)]
    return Answer("ok", tuple(dict.fromkeys([*named, *ask.pool])), len(named))
