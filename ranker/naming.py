"""Read what an answer names: the text inside an answer -> candidate ids.

Every rule of `RULES` is applied, and where two whole readings differ the answer is unclear, a failure; so no reading
depends on the order of the rules. Identifiers `[k]` win: where one stands, bare numbers and texts are labels, which may
not contradict it. A bare number is an identifier, unless another candidate is called so. In a list only separators,
list marks, labels and words like `then` may stand between two candidates; a list may be introduced, said again and
followed by a remark. Words of negation and of the other direction (`least` in a list of the best), and `<` or `=`
between identifiers, make any answer a failure, outside of the candidates' own texts. Which candidate a text names,
`titles.py` finds.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

from ranker.data import Ask
from ranker.titles import (INTRODUCTION, LINKS, as_shown, close, match, normal, nouns, numerals, says_only, yearless)


def _any_of(patterns: list[str]) -> re.Pattern:
    """Return a pattern of whole words; grouped by their first letters, it is tried three times as fast."""
    groups = groupby(sorted(patterns), key=lambda pattern: pattern[0])
    return re.compile(r"\b(?:" + "|".join(f"{c}(?:{'|'.join(p[1:] for p in group)})" for c, group in groups) + r")\b")


# Words that turn an answer round: those of negation, and those of the other direction.
_NOT = ["instead of", "opposite of", "rather than", "other than", "apart from", r"no(?!\.\s?\d)", "all but",
        "anything but", "everything but", "nothing but", *(
    "not never none neither nor cannot except unable impossible refuse sorry hardly wrong incorrect nicht kein keine "
    "pas jamais не нет").split(), *(f"{verb}n[’' ]?t" for verb in (
        "is are was were do does did has have would should could wo ca ai must need").split())]
_WORST = ["last to first", "right to left", "second[ -]best", "runners?[ -]up", "best (?:is |comes )?last", *(
    r"worst worse least less lowest weakest poorest bottom ascending increasing reversed? unlikel\w+ irrelevan\w+ "
    r"inferior loses eliminat\w+ drop(?:ped|s)? remov\w+ discard\w* exclud\w+ reject\w* avoid").split()]
_BEST = ["first to last", *("best better most top highest strongest descending decreasing keep kept retain stays? save "
                            "winner favou?rites?").split()]
_TURNED = {False: _any_of(_NOT + _WORST), True: _any_of(_NOT + _BEST)}  # by whether the worst is asked for
_ENDS = {False: re.compile(r"\b(?:most|best|highest|top)(?: \w+){0,3}? to (?:the )?(?:least|worst|lowest)\b"),
         True: re.compile(r"\b(?:least|worst|lowest)(?: \w+){0,3}? to (?:the )?(?:most|best|highest)\b")}

INVISIBLE = "\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_MARKUP = re.compile(r"```\w*|\\[a-zA-Z]+\s*(?=\{)|^#+ |</?(?:b|i|u|em|strong|code|pre|span)\s*/?>|"
                     r"<\|(?:begin|end)_of_box\|>", re.MULTILINE | re.IGNORECASE)
_BREAK = re.compile(r"</?(?:br|p|li|ol|ul|div)\s*/?>", re.IGNORECASE)
_QUOTES = re.compile("[{}\"*`“”„]")
_MARKS = re.compile(r"[\n>→⇒➔➜⟶≻,،、;|]|->|=>")  # that separate candidates
_STRONG = re.compile(r"[\n>→⇒➔➜⟶≻;|]|->|=>")  # those that no title holds
_THEN = re.compile(r",? (?:[tT]hen|followed by) ")
_NOWHERE = re.compile(r"(?!)")
_SEPARATORS = re.compile(rf"{_MARKS.pattern}| (?:[aA]nd|[tT]hen|followed by) (?:then )?")
_SPLITS = (*map(re.compile, (r"\n", r"[>→⇒➔➜⟶≻]|->|=>", r"[,،、]", r";", r"\|")), _THEN, _MARKS, _SEPARATORS)
_PLAINLY = re.compile(r"[\s>,;.]*")  # nothing but separators
_SIGNS = re.compile(r"[<≤≺←≈≡≥~]|=(?!>)")  # between identifiers: the other direction, or a tie
_STRANGE = re.compile(r"[^\s\w>,،、;:.|→⇒➔➜⟶≻()\[\]'’_#•–—-]|^[-–—]$")  # neither word, separator nor list mark
_RANKS = re.compile(r"\d|\b(?:first|second|third|fourth|fifth|last)\b", re.IGNORECASE)  # in a remark
_LABEL_END = re.compile(r"[.;] | [-–—] |\(")
_LISTED = re.compile(r"(?:^|[\s>,;(])(\d{1,3})[.):]\s*[(\['_]*$")  # a list mark before an identifier
_ENTRY = re.compile(r"\W*(\d{1,3})\s*[.):]\s+(?=\S)")  # a list mark before a text
_INTRODUCED = re.compile(r":|=(?!>)|\n|\b(?:is|are|be|choose|pick|select|recommend|eliminate|drop|remove|discard|"
                         r"answer)\b", re.IGNORECASE)
_WORD, _NUMBER = re.compile(r"\w+"), re.compile(r"\d{1,9}")
_ROW = re.compile(r"[(\s]*\d{1,9}(?: \d{1,9})+[).\s]*")
_BULLETS, _LINKED = re.compile(r"^(?:[-•–—>+#] )+"), re.compile(r"^(?:next|finally|lastly|and|then) ", re.IGNORECASE)


class Unclear(ValueError):
    """Readings of an answer that differ, or words that turn it round."""


@dataclass
class Shown:
    """The candidates in question, as an answer may name them."""

    ask: Ask
    titles: dict[str, str] = field(init=False)  # candidate id -> `normal` text
    found: dict[str, set] = field(init=False, default_factory=dict)  # text -> candidates that it names
    length: int = field(init=False)  # characters that a list of all, with labels and introduction, may have

    def __post_init__(self):
        self.titles = {c: as_shown(self.ask.query.texts[c]) for c in self.ask.left}
        self.length = 300 + sum(map(len, self.titles.values())) + 40 * len(self.titles)

    def at(self, k: int) -> str | None:
        """Return the candidate with the identifier `k`, if it is in question."""
        return c if 1 <= k <= len(self.ask.pool) and (c := self.ask.pool[k - 1]) in self.titles else None

    def named(self, text: str, spelled: bool = True) -> str | None:
        """Return the one candidate that a text names, if `spelled` by a close spelling too."""
        name = normal(text)
        if name not in self.found:
            self.found[name] = match(name, self.titles)
        found = self.found[name]
        if not found and spelled and not _MARKS.search(text):  # a list of several is no misspelled text
            found = {close(name, self.titles)}
        [candidate] = found if len(found) == 1 else [None]
        return candidate if candidate and numerals(self.titles[candidate]) == numerals(name) else None

    def called(self, text: str) -> set[str]:
        """Return the candidates that are called exactly like a label, years aside."""
        name = yearless(normal(text))
        return {c for c, title in self.titles.items() if name and yearless(title) == name}

    def owns(self, candidate: str | None, text: str) -> bool:
        """Tell whether a label is the candidate's text, or a part of it."""
        name, title = normal(text), self.titles.get(candidate, "")
        return bool(name) and (yearless(name) == yearless(title) or len(name) >= 4 and f" {name} " in f" {title} ")

    def check(self, candidates: set[str | None], *labels: str) -> None:
        """Raise Unclear where a label beside candidates' identifiers is the name or the number of another candidate."""
        for label in labels if None not in candidates else ():
            number = _NUMBER.fullmatch(_trimmed(label))
            others = self.called(label) or {self.at(int(number[0])) if number else None} - {None}
            if others and others.isdisjoint(candidates):
                raise Unclear


def named(inside: str, ask: Ask, one: bool, worst: bool = False) -> list[str | None]:
    """Return the candidate ids that an answer names, in its order, with None for a name of no candidate; never empty.

    `one` says that the answer should name a single candidate, `worst` that it names the worst and not the best.
    """
    shown, text = Shown(ask), tidy(inside)
    try:
        if turned(text, shown.titles, worst):
            return [None]
        readings = {reading for rule in RULES for reading in rule(text, shown, one)}
        known = {reading: (None not in reading, sum(c is not None for c in reading)) for reading in readings}
        best = [r for r in known if known[r][0]] or [r for r in known if known[r] == max(known.values())]
        return list(best[0]) if len(best) == 1 else [None]
    except Unclear:
        return [None]


def tidy(inside: str) -> str:
    """Return the text inside an answer without fences, emphasis, quotes and braces, its spaces single."""
    text = inside.replace("\r", "\n")
    if re.search(r"[`\\$#<]", text):
        text = re.sub(r"\$([^$\n]*)\$", r" \1 ", _MARKUP.sub(" ", _BREAK.sub("\n", text)))
    lines = [" ".join(line.split()) for line in _QUOTES.sub(" ", text).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def views(text: str) -> Iterator[str]:
    """Yield a text as it is, and what follows each introduction to it, such as `The final answer is` or `Ranking:`."""
    yield text
    word = _WORD.search(text)
    for end in _INTRODUCED.finditer(text, 0, 300) if word and says_only(word[0], INTRODUCTION) else ():
        if not says_only(text[:end.end()], INTRODUCTION):
            return
        yield text[end.end():].strip()


def turned(text: str, titles: dict[str, str], worst: bool) -> bool:
    """Tell whether words of negation or of the other direction stand in an answer, outside of candidates' texts."""
    words, text = _TURNED[worst], text.casefold()
    if not words.search(text):
        return False
    name = f" {normal(_ENDS[worst].sub(' ', re.sub(r'no[.] ?(?=[0-9])', '', text)))} "
    for title in sorted({title for title in titles.values() if words.search(title)}, key=len, reverse=True):
        name = name.replace(f" {title} ", "  ")
        if " " in name.strip() and name in f" {title} ":  # a part of the text
            return False
    return bool(words.search(name))


def identifiers(text: str, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each identifier in brackets, and where it stands: `[2]`, `[doc2]`, or a list `[2, 1]`."""
    for found in _patterns(nouns())[0].finditer(text, begin, len(text) if end is None else end):
        if found[2]:
            yield from ((int(k[0]), k.start(), k.end()) for k in _NUMBER.finditer(text, *found.span()))
        else:
            yield int(found[1]), found.start(), found.end()


def identified(text: str, shown: Shown, one: bool) -> Iterator[tuple]:
    """Yield the reading of identifiers in brackets: all of them for `one`, else the list that is said."""
    found = list(identifiers(text))
    names = tuple(shown.at(k) for k, *_ in found)
    if len(found) > 3 * len(shown.ask.pool) + 5:
        yield names if not one else (None,)
    elif found:
        _check_labels(text, found, shown)
        yield names if one else tuple(map(shown.at, _list_of(text, found, shown)))


def _check_labels(text: str, found: list[tuple], shown: Shown) -> None:
    """Raise Unclear where beside identifiers stands the name or the bare number of another candidate."""
    everybody = {shown.at(k) for k, *_ in found}
    for left, right in zip([None, *found], [*found, None]):
        before, after = (shown.at(beside[0]) if beside else None for beside in (left, right))
        gap = _gap(text, left, right)
        if _fits(gap, before, after, shown):
            continue
        labels = _MARKS.split(gap)
        behind = labels.pop(0) if left else ""
        ahead = labels.pop() if right and labels else ""
        shown.check({before} if left else everybody, behind, _LABEL_END.split(behind.lstrip(" :-–—("), maxsplit=1)[0])
        shown.check({after} if right else everybody, ahead, ahead.rpartition(":")[2])
        shown.check(everybody, *labels)


def _gap(text: str, left: tuple | None, right: tuple | None) -> str:
    """Return what stands between two identifiers (None: the text's border), without a list mark before the second."""
    gap = text[left[2] if left else 0:right[1] if right else len(text)]
    mark = _LISTED.search(gap) if right else None
    return gap[:mark.start(1)] if mark else gap


def _fits(gap: str, left: str | None, right: str | None, shown: Shown) -> bool:
    """Tell whether between two candidates stand only separators, words that link, and labels that are their own."""
    if _PLAINLY.fullmatch(gap):
        return True
    for split in (_NOWHERE, _STRONG, _THEN, _MARKS, _SEPARATORS):
        behind, *middle = split.split(gap)
        before = middle.pop() if middle else ""
        if not any(map(_WORD.search, middle)) and (_links(behind) or shown.owns(left, behind)) and (
                _links(before) or shown.owns(right, before)):
            return True
    return False


def _list_of(text: str, found: list[tuple], shown: Shown) -> tuple[int, ...]:
    """Return the numbers of the list that is said in a text with identifiers. Raise Unclear."""
    links = ["line", *(_link(text, left, right, shown) for left, right in zip(found, found[1:]))]
    ends = [*(start for _, start, _ in found[1:]), len(text)]
    for i, (k, _, end) in enumerate(found):
        behind = text[end:ends[i]].partition("\n")[0]
        if links[i] == "line" and not (shown.owns(shown.at(k), behind) or says_only(behind, INTRODUCTION)):
            links[i] = ""  # what is remarked on is no entry of the list above it
    chains = []
    for linking in (("same", "line", "remark"), ("same",)):  # from line to line until one is said again; in a line
        for identifier, link in zip(found, links):
            again = chains and identifier[0] in known
            if not chains or identifier is found[0] or link not in linking or link != "same" and again:
                chains.append([])
                known = set()  # the numbers of the chain
            chains[-1].append(identifier)
            known.add(identifier[0])
    for chain in chains:
        listed = (_LISTED.search(text, max(start - 12, 0), start) for _, start, _ in chain)
        marks = [int(mark[1]) for mark in listed if mark]
        if marks and marks != list(range(marks[0], marks[0] + len(marks))):
            raise Unclear
    said = _said({tuple(k for k, *_ in chain) for chain in chains})
    if not any(_delimited(text, chain, found) for chain in chains if tuple(k for k, *_ in chain) == said):
        raise Unclear
    if "remark" in links and list(said) == sorted(said):
        raise Unclear  # in the order shown, each with a remark: that may be a ranking or not
    return said


def _delimited(text: str, chain: list[tuple], found: list[tuple]) -> bool:
    """Tell whether a list is a sentence or a line of its own beside other identifiers."""
    first, last = found.index(chain[0]), found.index(chain[-1])
    before = text[found[first - 1][2]:chain[0][1]] if first else ":"
    behind = text[chain[-1][2]:found[last + 1][1]] if last + 1 < len(found) else "."
    return bool(re.search(r"[:\n]|[.!] ", before) and re.search(r"[\n.!;(]", behind))


def _link(text: str, left: tuple, right: tuple, shown: Shown) -> str:
    """Tell how two identifiers are linked: on the `same` line, from `line` to line, or by a `remark`, or not ("")."""
    gap, before, after = _gap(text, left, right), shown.at(left[0]), shown.at(right[0])
    remark, *_, label = ["", gap] if "\n" not in gap else gap.split("\n")
    line = text[text.rfind("\n", 0, left[1]) + 1:left[1]]
    if _WORD.search(remark) and not shown.owns(before, remark) and not _SIGNS.search(gap) and (
            _links(line) and _fits(label, None, after, shown)):
        return "" if _RANKS.search(remark) else "remark"  # each identifier at the beginning of its line
    if _fits(gap, before, after, shown):
        return "line" if "\n" in gap or gap.strip() == "." else "same"
    if _SIGNS.search(gap):
        raise Unclear
    return ""


def _links(text: str) -> bool:
    """Tell whether nothing stands in `text` but words that link candidates, their nouns, list marks and separators."""
    return not _STRANGE.search(text) and says_only(normal(text), LINKS)


def _said(lists: set[tuple]) -> tuple:
    """Return the longest list without repeats, if it has the others' names in their order, else the longest.

    Raise Unclear where there is none.
    """
    once = [names for names in lists if len(set(names)) == len(names)]
    for chosen in (once, list(lists)):
        longest = [names for names in chosen if len(names) == max(map(len, chosen))]
        order = tuple(dict.fromkeys(longest[0] if len(longest) == 1 else ()))
        if order and all(tuple(dict.fromkeys(names)) == tuple(c for c in order if c in names) for names in lists):
            return longest[0]
    raise Unclear


def _in_blocks(text: str, shown: Shown, read: Callable[[str, bool], Iterator[tuple]],
               mentions: Callable[[str], set]) -> Iterator[tuple]:
    """Yield what `read` makes of a text, of its paragraphs and lines: the one list that is said, or what is not whole.

    `mentions` finds the candidates in a remark beside the list; there the list's own may be named again, and no others.
    """
    lines = text.split("\n")
    blocks = dict.fromkeys([text, *text.split("\n\n"), *lines] if len(lines) < 100 else [text])
    lists, partial = {}, set()
    for block in blocks:
        for names in {names for view in views(block) for names in read(view, block == text)}:
            if None not in names:
                half = names[:len(names) // 2]
                lists.setdefault(half if names == half * 2 else names, block)  # two lines may say the same
            elif block == text:
                partial.add(names)
    if not lists:
        yield from partial
        return
    said = _said(set(lists))
    rest = text.replace(lists[said], "\n")
    entries = [line for line in rest.split("\n") if shown.called(line) or any(_numbers(line, shown, True, True))]
    if mentions(rest) - set(said) or entries and len(said) > 1:
        raise Unclear  # more is said than a remark about the list
    yield said


def numbered(text: str, shown: Shown, one: bool) -> Iterator[tuple]:
    """Yield the reading of bare numbers where no identifier stands in brackets."""
    if next(identifiers(text), None) is None:
        mentions = lambda rest: {shown.at(int(k)) for k in _NUMBER.findall(rest)} - {None}  # noqa: E731
        yield from _in_blocks(text, shown, lambda view, whole: _numbers(view, shown, one, whole), mentions)


def _numbers(text: str, shown: Shown, one: bool, whole: bool) -> Iterator[tuple]:
    """Yield the candidates of a text that consists of numbers, each with or without noun, list mark and label."""
    if len(text) > shown.length or not _NUMBER.search(text):
        return
    parts = [text] if one else [part for part in _SEPARATORS.split(text) if _WORD.search(part)]
    if not one and len(parts) == 1 and _ROW.fullmatch(text):
        parts = _NUMBER.findall(text)
    if not one and not (1 if whole else 2) <= len(parts) <= 2 * len(shown.ask.pool) + 5:
        return
    found = [_number(part, shown) for part in map(_trimmed, parts)]
    if not found or None in found:
        return
    given, numbers, signs, labels = zip(*found)
    counted = tuple(range(1, len(found) + 1))
    if not one and numbers == counted and all(labels) and "(" not in signs:
        return  # they are marks of a list of texts
    marks = tuple(int(mark or 0) for mark in given)
    if any(marks) and marks not in (counted, numbers):
        if all(marks):
            raise Unclear
        return
    for part, candidate, sign, label in zip(parts, map(shown.at, numbers), signs, labels):
        others = shown.called(part) - {candidate}
        if others and candidate and not label:
            raise Unclear  # another candidate is called so
        if others or label and not shown.owns(candidate, label):
            if sign and not others:
                shown.check({candidate}, label)
            return
    yield tuple(map(shown.at, numbers))


def _number(part: str, shown: Shown) -> tuple | None:
    """Return the list mark, the number, the sign and the label of `1. Movie 2: Heat` or `Heat (2)`, or None."""
    _, entry, behind = _patterns(nouns())
    before, after = entry.fullmatch(part), behind.search(part)
    if after and after.start() and not (before and shown.at(int(before["k"]))):
        return None, int(after[1]), "(", part[:after.start()].strip()
    return (before["mark"], int(before["k"]), before["sign"], before["label"]) if before else None


def titled(text: str, shown: Shown, one: bool) -> Iterator[tuple]:
    """Yield the readings of candidates' texts where no identifier stands in brackets."""
    if next(identifiers(text), None) is None:
        mentions = lambda rest: {c for c, title in shown.titles.items()  # noqa: E731
                                 if title and f" {title} " in f" {normal(rest)} "}
        yield from _in_blocks(text, shown, lambda view, whole: _texts(view, shown, one, whole), mentions)


def _texts(text: str, shown: Shown, one: bool, whole: bool) -> Iterator[tuple]:
    """Yield the candidates of a text that consists of their texts, with None for a text of none."""
    if not text or len(text) > shown.length or one and not whole and not shown.called(text):
        return
    splits = () if one else [split for split in _SPLITS if split.search(text)]
    for parts in {(text,), *(tuple(filter(_WORD.search, split.split(text))) for split in splits)}:
        if one or (1 if whole else 2) <= len(parts) <= 2 * len(shown.ask.pool) + 5:
            yield from _names(parts, shown, one)


def _names(parts: Sequence[str], shown: Shown, one: bool) -> Iterator[tuple]:
    """Yield the candidates that the parts name; list marks must count up or be the candidates' identifiers."""
    parts = list(map(_trimmed, parts))
    strange = sum(shown.named(part, spelled=False) is None for part in parts)
    marks, names = zip(*(_name(part, shown, strange < 3) for part in parts))
    counted = not one and marks == tuple(range(1, len(parts) + 1))
    if counted or all(shown.at(mark) == name for mark, name in zip(marks, names) if mark and name):
        yield names


def _name(part: str, shown: Shown, spelled: bool) -> tuple[int | None, str | None]:
    """Return the list mark and the candidate of `Heat`, `1. Heat` or `1. Heat (2)`, each None where there is none."""
    mark, name = _ENTRY.match(part), shown.named(part, spelled)
    if mark and name and normal(part) != normal(part[mark.end():]):
        mark = None  # the text begins like that
    elif mark:
        part = part[mark.end():]
        name = shown.named(part, spelled)
    number = _patterns(nouns())[2].search(part)
    if name is None and number and shown.at(int(number[1])):
        name = shown.named(part[:number.start()], spelled)
        shown.check({name}, number[1])
    return int(mark[1]) if mark else None, name


RULES = (identified, numbered, titled)


def _trimmed(part: str) -> str:
    """Return a part of an answer without bullet, brackets and punctuation around it, and without a link before it."""
    part = _BULLETS.sub("", part.strip().lstrip("([_' ")).strip(" .,;:!)]_'")
    return _LINKED.sub("", part)


def ranking_lines(whole: str, ask: Ask) -> str | None:
    """Return what was said without answer tags, with no identifiers but those of a ranking, or None without any."""
    shown, lines, kept, other = Shown(ask), whole.split("\n"), [], set()
    for i, line in enumerate(lines):
        found = list(identifiers(line))
        borders = [0, *(place for _, start, end in found for place in (start, end)), len(line)]
        first, *gaps = (line[begin:end] for begin, end in zip(borders[::2], borders[1::2]))
        own = [(i, k, shown.owns(shown.at(k), gap)) for (k, *_), gap in zip(found, gaps)]
        if all(labelled or _introduces(gap) for (_, _, labelled), gap in zip([(i, 0, False), *own], [first, *gaps])):
            kept += own
        else:
            other |= {k for k, *_ in found}
    if not kept and not other:
        return whole
    labelled = [(i, k) for i, k, own in kept if own]
    if [k for _, k in labelled] == list(range(1, len(ask.pool) + 1)):  # the prompt's list
        kept = [line for line in kept if line[0] not in {i for i, _ in labelled}]
    if not kept or not other <= {k for _, k, _ in kept}:
        return None
    clean = {i for i, *_ in kept}
    return "\n".join(line if i in clean else _patterns(nouns())[0].sub(" ", line) for i, line in enumerate(lines))


def _introduces(text: str) -> bool:
    """Tell whether `text` holds nothing but separators, numbers and words that introduce or link."""
    return says_only(re.sub(r"\b\d+\b", " ", text), INTRODUCTION)


@lru_cache(8)
def _patterns(nouns: frozenset[str]) -> tuple[re.Pattern, ...]:
    """Return the patterns of an identifier in brackets, of a number with its label, and of a number behind its label.
    """
    noun = "|".join(sorted(map(re.escape, nouns), key=len, reverse=True))
    space = rf"[\s{INVISIBLE}]*"
    bracket = (rf"[\[［【〔]{space}(?:(?:{noun})[\s:#_-]*|#\s*|[a-z]\s*=\s*)?(\d{{1,9}})"
               rf"((?:(?:\s*[,;>،、]\s*|\s+)\d{{1,9}})*){space}[\]］】〕]")
    entry = (rf"(?:(?P<mark>\d{{1,3}})[.)] )?(?:(?:the )?(?:{noun}) ?(?:no\. ?|number )?[:=#]? ?|# ?|(?:no|nr)\. ?|no|"
             r"number |[a-z] ?= ?)?(?P<k>\d{1,9})(?:st|nd|rd|th)?(?:(?: ?(?P<sign>[:.)(–—-]) ?| )(?P<label>\S.*))?")
    behind = rf"[(\[#] ?(?:{noun})? ?#?(\d{{1,9}}) ?[)\]]?\Z"
    return tuple(re.compile(pattern, re.IGNORECASE | re.DOTALL) for pattern in (bracket, entry, behind))
