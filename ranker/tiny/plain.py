"""Examples of text that the built-in world does not have: made-up words, long histories, years, any task's wording.

A policy trained on the world's few hundred words alone writes no answers about a user's data. These examples teach it
the form on any text: quote the first word of every candidate shown, then answer. A candidate fits the context, crudely,
as far as it shares words with it. Quoting teaches copying, which the world's examples need, much sooner than those
examples do; so most of the words are words of the world, which are one token each.
"""

import random
import re

from ranker.data import Candidate, Query
from ranker.templates import wordings
from ranker.world import GENRES, MOODS, TITLES, Reading

ONSETS = "b c d f g h j k l m n p r s t v w br ch cl cr dr fl fr gr ph pl pr qu sh sl sp st str th tr wh".split()
VOWELS = "a e i o u ai ea ee ie oo ou y".split()
CODAS = [""] * 12 + [*"n r s t l d m ck ng nd nt rd rn rs ss st tion ing er ed al ly ment".split()]
KNOWN = ([w for table in (MOODS, *GENRES.values()) for words in table.values() for w in words.split()]
         + [w for t in TITLES for w in t])
FILLERS = "the of and a in to for with on is at from by it as how what which who".split()


def word(rng: random.Random) -> str:
    """Draw a word of the built-in world or a made-up word."""
    if rng.random() < 0.6:
        return rng.choice(KNOWN)
    made = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((1, 1, 2))))
    return made.capitalize() if rng.random() < 0.4 else made


def text(rng: random.Random, length: int, shared: list[str]) -> str:
    """Draw a text of about `length` words with the words `shared` among them, at times with a year at its end."""
    words = [word(rng) if rng.random() < 0.75 else rng.choice(FILLERS) for _ in range(max(length - len(shared), 1))]
    for item in shared:
        words.insert(rng.randint(0, len(words)), item)
    tail = rng.choice(("", "", "", "?", ".", f" ({rng.randint(1930, 2025)})", f": {word(rng)}",
                       f", {rng.choice(FILLERS)}"))
    return " ".join(words) + tail


def draw(rng: random.Random, size: int) -> tuple[Query, Reading]:
    """Draw a query of `size` candidates in any task's wording, with its reading.

    Relevance is the number of words that a candidate shares with the context.
    """
    task = rng.choice(list(wordings()))
    wanted = [word(rng) for _ in range(4)]
    length = rng.choice((2, 3, 4, 5)) if size > 8 else rng.choice((2, 4, 8, 16))
    if task.startswith("rec"):
        context = tuple(text(rng, length, rng.sample(wanted, rng.choice((0, 1, 1)))) for _ in range(rng.randint(3, 20)))
    else:
        context = text(rng, rng.choice((6, 10, 20)), wanted)
    shared = [2, *rng.choices((0, 1, 2), weights=(6, 3, 1), k=size - 1)]
    rng.shuffle(shared)
    texts = [text(rng, length, rng.sample(wanted, count)) for count in shared]
    candidates = tuple(Candidate(f"c{i}", t) for i, t in enumerate(texts))
    offers = tuple(re.findall(r"\w+", t)[0] for t in texts)
    reading = Reading("shared words", offers, tuple("-+"[s > 0] + "-+"[s > 1] for s in shared),
                      tuple(map(float, shared)), tuple(float(s > 0) for s in shared))
    return Query("plain", task, context, candidates, tuple(map(float, shared))), reading
