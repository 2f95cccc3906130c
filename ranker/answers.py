"""Completion -> Answer: the only parser, for reward and evaluation alike. It reads or it fails; it never guesses.

Only the text after the last `</think>` counts, and of that only the last `<answer>...</answer>`. Inside it,
identifiers `[k]` are read first; a lone number is one too, unless a candidate is called just that. If there is no
identifier, the answer may name a candidate by its text, in a cascade that takes the first step with a unique hit:
equal text, a candidate's text inside the answer (longest), the answer inside one candidate's text, and a close
spelling with the same numbers.
"""

import difflib
import re
import unicodedata

from ranker.data import Answer, Ask

MISSING, FOREIGN = Answer("missing_answer"), Answer("not_a_candidate")
LONGEST_TITLE = 300  # characters; longer texts are not compared by spelling

_BRACKETS = str.maketrans("【】〔〕", "[][]")
_IDENTIFIER = re.compile(r"\[\s*(\d{1,9})\s*\]")
_NUMBER = re.compile(r"#?\s*(\d{1,9})\s*[.)]?")
_NAMED_NUMBER = re.compile(r"(?:candidate|passage|item|option|number|no\.?)\s*#?\s*(\d{1,9})\s*\.?", re.IGNORECASE)
_SCORE = re.compile(r"(\d{1,9})(?:\s*/\s*10)?")
_MARKER = re.compile(r"^\s*(?:[-*•>]|\d{1,3}[.)]\s)\s*")
_ROMAN = re.compile(r"\b[ivx]+\b")


def span(text: str) -> str | None:
    """The text inside the last answer pair after the last `</think>`, or None."""
    body = text.rpartition("</think>")[2]
    if "<think>" in body:  # a thought that never ended: whatever stands in it is no answer
        body = body.partition("<think>")[0]
    before, closed, _ = body.rpartition("</answer>")
    if not closed or "<answer>" not in before:
        return None
    return before.rpartition("<answer>")[2]


def parse(text: str, ask: Ask, finished: bool = True) -> Answer:
    """The Answer that `text` gives to `ask`. `finished` is False when the token limit cut the completion."""
    inside = span(text)
    if inside is None:
        return MISSING if finished else Answer("truncated")
    inside = unicodedata.normalize("NFKC", inside).translate(_BRACKETS).strip()
    if not inside:
        return MISSING
    if ask.decision == "score":
        return _score(inside)
    named = _named(inside, ask)
    if not named:
        return MISSING if not re.search(r"\w", inside) else FOREIGN
    if None in named:
        return Answer("not_a_candidate", tuple(dict.fromkeys(c for c in named if c is not None)))
    distinct = tuple(dict.fromkeys(named))
    if ask.decision in ("eliminate", "pick"):
        return Answer("ok" if len(distinct) == 1 else "repetition", distinct)
    wanted = len(ask.pool) if ask.decision == "order" else (len(ask.pool) + 1) // 2
    if len(distinct) < len(named) or len(distinct) > wanted:
        return Answer("repetition", distinct)
    return Answer("ok" if len(distinct) == wanted else "missing_ids", distinct)


def _score(inside: str) -> Answer:
    number = _SCORE.fullmatch(inside)
    if not number:
        return MISSING
    value = int(number[1])
    return Answer("ok", (value,)) if value <= 10 else FOREIGN


def _named(inside: str, ask: Ask) -> list[str | None]:
    """Candidate ids in the order named, None for what is no candidate. Empty: nothing readable."""
    pool = ask.pool
    pick = lambda k: pool[k - 1] if 1 <= k <= len(pool) else None  # noqa: E731
    numbers = [int(k) for k in _IDENTIFIER.findall(inside)]
    if numbers:
        return [pick(k) for k in numbers]
    titles = {c: normal(ask.query.texts[c]) for c in pool}
    if ask.decision in ("eliminate", "pick"):
        lone = _NUMBER.fullmatch(inside) or _NAMED_NUMBER.fullmatch(inside)
        if lone and normal(inside) not in titles.values():
            return [pick(int(lone[1]))]
        return [match(inside, titles)]
    lines = [line for line in re.split(r"\n|\s>\s", inside) if line.strip()]
    return [match(line, titles) for line in lines]


def normal(text: str) -> str:
    """NFKC, case folded, list marker and punctuation gone, single spaces."""
    text = _MARKER.sub("", unicodedata.normalize("NFKC", text)).casefold()
    return " ".join(re.sub(r"[^\w]+", " ", text).split())


def match(text: str, titles: dict[str, str]) -> str | None:
    """The one candidate that `text` names, or None. `titles`: candidate id -> `normal` text."""
    name = normal(text)
    if not name:
        return None
    exact = [c for c, title in titles.items() if title == name]
    if exact:
        return exact[0] if len(exact) == 1 else None
    padded = f" {name} "
    inside = [c for c, title in titles.items() if title and f" {title} " in padded]
    if inside:
        longest = max(len(titles[c]) for c in inside)
        inside = [c for c in inside if len(titles[c]) == longest]
        # Two different titles in one answer ("Alien or Heat") name no one.
        others = [c for c, title in titles.items() if title and f" {title} " in padded and title not in titles[inside[0]]]
        return inside[0] if len(inside) == 1 and not others else None
    around = [c for c, title in titles.items() if padded in f" {title} "]
    if around:
        return around[0] if len(around) == 1 else None
    return _close(name, titles)


def _close(name: str, titles: dict[str, str]) -> str | None:
    """A spelling at least 0.85 alike, 0.08 ahead of the second, with the same digits and roman numerals."""
    if len(name) > LONGEST_TITLE:
        return None
    scores = []
    for candidate, title in titles.items():
        matcher = difflib.SequenceMatcher(None, name, title, autojunk=False)
        if len(title) <= LONGEST_TITLE and matcher.real_quick_ratio() >= 0.77 and matcher.quick_ratio() >= 0.77:
            scores.append((matcher.ratio(), candidate))
    scores.sort(reverse=True)
    if not scores or scores[0][0] < 0.85 or (len(scores) > 1 and scores[0][0] - scores[1][0] < 0.08):
        return None
    numerals = lambda text: (re.findall(r"\d+", text), _ROMAN.findall(text))  # noqa: E731
    best = scores[0][1]
    return best if numerals(name) == numerals(titles[best]) else None
