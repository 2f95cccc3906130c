"""Completion -> Answer: the only parser, for rewards and evaluation alike. It reads or fails; it never guesses.

Only the text after the last `</think>` counts, and of it only the last `<answer>...</answer>`. Inside the answer,
identifiers `[k]` are read first; a number that stands alone is an identifier too, unless a candidate is called exactly
that. Without any identifier the answer may name a candidate by its text as the prompt showed it. The first of these
that hits a candidate decides: equal text, a candidate's text inside the answer (the longest), the answer inside a
candidate's text, a close spelling; the hit must be unique. Numbers and roman numerals must agree (years aside): `Rocky`
is not `Rocky II`.
"""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from ranker import plugins
from ranker.data import Answer, Ask
from ranker.prompting import harmless

MISSING, FOREIGN = Answer("missing_answer"), Answer("not_a_candidate")
LONGEST_TITLE = 300  # characters; longer texts are not compared by spelling

_BRACKETS = str.maketrans("【】〔〕", "[][]")
_IDENTIFIER = re.compile(r"\[\s*(\d{1,9})\s*\]")
_LONE_NUMBER = re.compile(r"[^\w+-]*(\d{1,9})\W*")
_NAMED_NUMBER = re.compile(r"\W*(?:candidate|passage|item|option|number|no\.?)\s*(?:#\s*)?(\d{1,9})\W*", re.IGNORECASE)
_MARKER = re.compile(r"\s*(?:[-*•>]|(\d{1,3})[.)]\s)\s*")
_YEAR = re.compile(r"\b(?:18|19|20)\d\d\b")
_NUMERAL = re.compile(r"\d+|\b(?:[ivx]{2,}|[vx])\b")


def span(text: str) -> str | None:
    """Return the text inside the last pair of answer tags after the last `</think>`, or None."""
    found = place(text)
    return text[found] if found else None


def place(text: str) -> slice | None:
    """Return where in `text` its `span` stands, or None."""
    begin = text.rfind("</think>") + len("</think>") if "</think>" in text else 0
    end = text.find("<think>", begin)  # a thought that never ended, inside of which nothing is an answer
    end = end if end >= 0 else len(text)
    while (end := text.rfind("</answer>", begin, end)) >= 0 and (start := text.rfind("<answer>", begin, end)) >= 0:
        start += len("<answer>")
        if "</answer>" not in text[start:end]:  # else this end tag has no start tag of its own
            return slice(start, end)
    return None


def parse(text: str, ask: Ask, finished: bool = True) -> Answer:
    """Return the Answer that `text` gives to `ask`. `finished` is False where the token limit cut the completion."""
    found = place(text)
    if found is None:
        return Answer("truncated" if not finished else "missing_answer", text=text)
    whole = unicodedata.normalize("NFKC", text[found]).translate(_BRACKETS)
    inside = whole.strip()
    if not re.search(r"\w", inside):
        return replace(MISSING, text=text)
    answer = plugins.module("decision", ask.decision).parse(inside, ask)
    numbers = list(_IDENTIFIER.finditer(whole)) if len(whole) == found.stop - found.start else []
    places = tuple((found.start + n.start(), found.start + n.end()) for n in numbers)
    return replace(answer, text=text, places=places if len(places) == answer.named == len(answer.value) else ())


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


def alternatives(ask: Ask) -> tuple[str, ...]:
    """Return the answers to a decision whose probabilities the policy gives beside the answer it wrote."""
    return getattr(plugins.module("decision", ask.decision), "ALTERNATIVES", ())


def parse_recorded(text: str, ask: Ask) -> Answer:
    """Parse a completion that another tool asked for, whose prompt may not have wanted the answer tags."""
    return parse(text if span(text) is not None else f"<answer>{text.rpartition('</think>')[2]}</answer>", ask)


def digits(text: str, ask: Ask) -> Answer:
    """Parse by the rule of older rerankers, to replay their runs and for nothing else: all digits are identifiers.

    Repeated numbers and numbers out of range are ignored, and missing candidates are appended in the order shown, so
    that no answer ever fails: in `1. [14] > [15]` the list marker lifts the first passage to the top.
    """
    named = [ask.pool[int(k) - 1] for k in re.findall(r"[0-9]+", text) if len(k) < 10 and 1 <= int(k) <= len(ask.pool)]
    return Answer("ok", tuple(dict.fromkeys([*named, *ask.pool])), len(named))


def named(inside: str, ask: Ask, one: bool) -> list[str | None]:
    """Return the candidate ids that an answer names, in its order, with None for a name of no candidate; never empty.

    `one` says that the answer should name a single candidate.
    """
    pool, left = ask.pool, set(ask.left)
    pick = lambda k: pool[k - 1] if 1 <= k <= len(pool) and pool[k - 1] in left else None  # noqa: E731
    numbers = [int(k) for k in _IDENTIFIER.findall(inside)]
    if numbers:
        return [pick(k) for k in numbers]
    titles = {c: _shown(ask.query.texts[c]) for c in ask.left}
    parts = [inside] if one else [part for part in re.split(r"[\n>,]", inside) if re.search(r"\w", part)]
    lone = [_LONE_NUMBER.fullmatch(part) or _NAMED_NUMBER.fullmatch(part) for part in parts]
    if all(lone) and not any(normal(part) in titles.values() for part in parts):
        return [pick(int(number[1])) for number in lone]
    parts = parts if one else [part for part in re.split(r"\n|\s>\s", inside) if part.strip()]
    found = [match(part, titles) for part in parts]
    marker = _MARKER.match(inside)
    if one and marker and marker[1] and pick(int(marker[1])) != found[0]:
        return [None]  # "3. Heat" where [3] is another candidate than "Heat"
    return found


def normal(text: str) -> str:
    """Return a text in NFKC, case folded, without list marker and punctuation, with single spaces."""
    text = unicodedata.normalize("NFKC", text)
    text = text[_MARKER.match(text).end():] if _MARKER.match(text) else text
    return " ".join(re.sub(r"[^\w]+", " ", text.casefold()).split())


@lru_cache(4096)
def _shown(text: str) -> str:
    """Return the `normal` form of a candidate's text as the prompt showed it.

    It is cached, since every completion of a group and every ask about a query needs it again.
    """
    return normal(harmless(text))


@lru_cache(4096)
def numerals(name: str) -> list[str]:
    """Return the numbers and roman numerals of a `normal` text, years aside."""
    return _NUMERAL.findall(_YEAR.sub(" ", name))


def match(text: str, titles: dict[str, str]) -> str | None:
    """Return the one candidate that `text` names, or None. `titles`: candidate id -> `normal` text."""
    name = normal(text)
    exact = [c for c, title in titles.items() if title == name]
    if exact:
        return exact[0] if len(exact) == 1 else None
    if not re.search(r"[^\W\d_]{2}", name):  # a number, a letter or nothing names no candidate
        return None
    like = {c: title for c, title in titles.items() if title and numerals(title) == numerals(name)}
    padded = f" {name} "
    inside = [title for title in set(titles.values()) if title and f" {title} " in padded]
    if inside:
        longest = max(inside, key=len)
        rest = padded.replace(f" {longest} ", "  ")
        holders = [c for c, title in titles.items() if title == longest]
        # Two titles ("Alien or Heat") name no candidate; a word in a sentence ("none of them") may be no title at all.
        alone = not any(f" {title} " in rest for title in inside if title != longest)
        enough = " " in longest or 2 >= len(name.split())
        return holders[0] if len(holders) == 1 and alone and enough and holders[0] in like else None
    around = [c for c, title in titles.items() if padded in f" {title} "]
    if around:
        shown = len(name) >= 4 and name != "none"
        return around[0] if len(around) == 1 and shown and around[0] in like else None
    return _close(name, titles, like)


def _close(name: str, titles: dict[str, str], like: dict[str, str]) -> str | None:
    """Return the candidate whose title is spelled most like `name`, if in `like` (it has the same numerals), or None.

    The similarity must be at least 0.85, and 0.08 above that of the second.
    """
    if len(name) > LONGEST_TITLE or not like:
        return None
    scores, bound = [], difflib.SequenceMatcher(None, "", name, autojunk=False)  # indexes `name` once
    for candidate, title in titles.items():
        bound.set_seq1(title)
        if len(title) <= LONGEST_TITLE and bound.real_quick_ratio() >= 0.77 and bound.quick_ratio() >= 0.77:
            # Computed anew, since the ratio depends on the order of the two texts.
            scores.append((difflib.SequenceMatcher(None, name, title, autojunk=False).ratio(), candidate))
    scores.sort(reverse=True)
    if not scores or scores[0][0] < 0.85 or (len(scores) > 1 and scores[0][0] - scores[1][0] < 0.08):
        return None
    return scores[0][1] if scores[0][1] in like else None
