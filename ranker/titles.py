"""Find the candidate that a text names.

It is the one of an equal text; else the one whose text stands in it among words of choosing, or that it is a good part
of; else one of a close spelling. Numbers and roman numerals must agree (years aside): `Rocky` is not `Rocky II`. Texts
are compared in their `normal` form.
"""

import difflib
import re
import unicodedata
from functools import lru_cache

from ranker.prompting import harmless
from ranker.templates import wordings

LONGEST_TITLE = 300  # characters; longer texts are not compared by spelling
_MARKER = re.compile(r"\s*(?:[-*•>]|(\d{1,3})[.)]\s)\s*")
_YEAR = re.compile(r"\b(?:18|19|20)\d\d\b")
_NUMERAL = re.compile(r"\d+|\b(?:[ivx]{2,}|[vx])\b")
_WORD = re.compile(r"\w+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that say nothing by themselves: between two candidates, before an answer, beside a candidate's text.
LINKS = _words("""
    and then next finally lastly followed by before over rank place position is which better more relevant likely than
    ahead of beats""")
INTRODUCTION = LINKS | _words("""
    the my your our a an i so thus therefore hence ok okay sure here s d ll m are be would will should final answer
    answers best worst least most relevance ranking rankings ranked ranks order ordering ordered sorted list result
    results output choice choices pick picks choose select selection selected decision prediction preference preferred
    identifier identifiers id ids number first to in from for with on based their its this that as follows below query
    question user viewer top chosen correct right suggested recommend recommended recommendation overall descending
    decreasing highest lowest half keep kept k score rating likelihood eliminate eliminated eliminates drop dropped
    remove removed discard out""")
CARRIERS = INTRODUCTION | _words("watch watched it was because since")
NOUNS = _words("""
    candidate passage item option choice document doc movie film album game model product text title answer identifier
    id""")  # and the nouns of prompts/tasks.yaml


def says_only(text: str, words: frozenset[str]) -> bool:
    """Tell whether a text consists of such words and of nouns of candidates."""
    known = nouns()
    return all(word in words or word in known for word in _WORD.findall(text.casefold()))


_NOUNS: list = []  # the wordings of tasks in use, and all nouns of candidates


def nouns() -> frozenset[str]:
    """Return the nouns of candidates, those of the prompts' tasks among them."""
    if not _NOUNS or _NOUNS[0] is not wordings():
        tasks = [task[key].casefold() for task in wordings().values() for key in ("noun", "nouns")]
        _NOUNS[:] = wordings(), frozenset([*tasks, *NOUNS, *(f"{noun}s" for noun in NOUNS)])
    return _NOUNS[1]


@lru_cache(256)
def normal(text: str) -> str:
    """Return a text in NFKC, case folded, without list marker and punctuation, with single spaces."""
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)
    text = text[_MARKER.match(text).end():] if _MARKER.match(text) else text
    return " ".join(_WORD.findall(text.casefold()))


@lru_cache(4096)
def as_shown(text: str) -> str:
    """Return the `normal` form of a candidate's text as the prompt showed it.

    It is cached, since every completion of a group and every ask about a query needs it again.
    """
    return normal(harmless(text))


@lru_cache(4096)
def yearless(name: str) -> str:
    """Return a `normal` text without its years, unless it consists of them."""
    return " ".join(_YEAR.sub(" ", name).split()) or name


@lru_cache(4096)
def numerals(name: str) -> list[str]:
    """Return the numbers and roman numerals of a `normal` text, years aside."""
    return _NUMERAL.findall(_YEAR.sub(" ", name))


def match(name: str, titles: dict[str, str]) -> set[str | None]:
    """Return the candidates that a `normal` text names, {None} for an unclear name. `titles`: id -> `normal` text."""
    equal = {c for c, title in titles.items() if title == name}
    equal = equal or {c for c, title in titles.items() if name and yearless(title) == name}
    if equal or not re.search(r"[^\W\d_]{2}", name):  # a number, a letter or nothing names no other candidate
        return equal or {None}
    return {c for rule in TITLE_RULES for c in rule(name, titles)}


def holding(name: str, titles: dict[str, str]) -> set[str | None]:
    """Return the candidate whose text stands in `name` among words of choosing, {None} for several."""
    padded = f" {name} "
    inside = sorted({title for title in titles.values() if title and f" {title} " in padded}, key=lambda t: (len(t), t))
    if not inside:
        return set()
    before, _, behind = padded.partition(f" {inside[-1]} ")
    if any(f" {title} " in f"{before}  {behind}" for title in inside[:-1]):
        return {None}  # "Alien or Heat" names no candidate
    # "Alien Resurrection" is another film, and a word in a sentence ("none of them") may be no title at all.
    beside = " ".join(word for word in (*before.split()[-1:], *behind.split()[:1]) if not _YEAR.fullmatch(word))
    if not says_only(beside, CARRIERS) or " " not in inside[-1] and len(name.split()) > 2:
        return set()
    holders = {c for c, title in titles.items() if title == inside[-1]}
    return holders if len(holders) == 1 else {None}


def within(name: str, titles: dict[str, str]) -> set[str | None]:
    """Return the candidates of whose texts `name` is the beginning, the half or three words."""
    if len(name) < 4 or name == "none":
        return set()
    begins = tuple(f"{article}{name} " for article in ("", "the ", "a ", "an "))
    return {c for c, title in titles.items() if f" {name} " in f" {title} "
            and (name.count(" ") > 1 or 2 * len(name) >= len(title) or f"{title} ".startswith(begins))}


TITLE_RULES = (holding, within)


def close(name: str, titles: dict[str, str]) -> str | None:
    """Return the candidate whose title is spelled most like `name`, or None.

    The similarity must be at least 0.85, and 0.08 above that of the second.
    """
    length, words = len(name), set(name.split())
    alike = {c: title for c, title in titles.items() if max(length, len(title)) <= LONGEST_TITLE
             and min(length, len(title)) >= 0.385 * (length + len(title))  # else the similarity is below 0.77
             and (len(words) < 3 or not words.isdisjoint(title.split()))}
    scores, bound = [], difflib.SequenceMatcher(None, "", name if alike else "", autojunk=False)  # indexes `name` once
    for candidate, title in alike.items():
        bound.set_seq1(title)
        if bound.quick_ratio() >= 0.77:
            # Computed anew, since the ratio depends on the order of the two texts.
            scores.append((difflib.SequenceMatcher(None, name, title, autojunk=False).ratio(), candidate))
    scores.sort(reverse=True)
    if not scores or scores[0][0] < 0.85 or (len(scores) > 1 and scores[0][0] - scores[1][0] < 0.08):
        return None
    return scores[0][1]
