"""The built-in world: nine small made-up tasks with the paper's names and pool sizes (arXiv 2506.21638, section 4).

It exists so that training, evaluation and tests run with nothing to download. It is no benchmark. Every query has a
primary and a secondary wish, and every candidate offers something for both:

    recommendation   the genre (primary) and mood (secondary) that dominate the history; one positive among 20
    routing          skill at the query's topic and a low price, weighed by the objective; 10 models, graded utility
    passages         the aspect asked about (primary) and the place (secondary); one positive among 5, 7 or 9

A wish is written in other words than the offers (each meaning has several surface words), so matching words is not
enough. A query depends only on (seed, task, split, index): the splits share no query, and training queries never run
out. The context of a routing or passage query is one of a few sentences, which repeat; the candidates do not.
"""

import random
from dataclasses import dataclass

from ranker.data import Candidate, Query

TASKS = {  # name -> pool size
    "rec-movie": 20, "rec-music": 20, "rec-game": 20,
    "router-performance": 10, "router-balance": 10, "router-cost": 10,
    "passage-5": 5, "passage-7": 7, "passage-9": 9,
}
SPLITS = ("train", "validation", "test")

MOODS = {  # meaning -> surface words, the meaning itself among them
    "gloomy": "gloomy bleak somber", "cheerful": "cheerful sunny merry", "tense": "tense gripping nervous",
    "gentle": "gentle tender soft", "odd": "odd quirky strange", "epic": "epic grand sweeping",
}
GENRES = {
    "rec-movie": {
        "noir": "noir detective mobster", "western": "western cowboy frontier", "romance": "romance courtship wedding",
        "horror": "horror haunted vampire", "space": "space rocket alien", "war": "war battlefield soldier",
    },
    "rec-music": {
        "jazz": "jazz saxophone swing", "metal": "metal distortion thrash", "folk": "folk banjo ballad",
        "techno": "techno synthesizer rave", "opera": "opera soprano aria", "reggae": "reggae dub ska",
    },
    "rec-game": {
        "puzzle": "puzzle riddle tile", "racing": "racing kart rally", "farming": "farming harvest barn",
        "fantasy": "fantasy dragon wizard", "shooter": "shooter sniper arena", "strategy": "strategy empire tactics",
    },
}
TITLES = ("Silent Golden Broken Hidden Distant Burning Frozen Second Paper Crystal Scarlet Hollow".split(),
          "Harbor Garden Mirror River Lantern Station Winter Letter Crown Island Window Road".split())
TOPICS = {
    "law": ("draft a lease for a small shop", "explain this clause of a contract", "may a tenant sublet a flat"),
    "math": ("prove that this series converges", "solve the equation for x", "find the area under the curve"),
    "code": ("fix the bug in this loop", "write a function that sorts a list", "why does my program crash"),
    "poetry": ("compose a sonnet about rain", "find a rhyme for silver", "write a verse for a birthday"),
    "medicine": ("what causes a dry cough", "compare two drugs for pain", "read this blood test"),
    "history": ("who ruled after the great fire", "date the treaty of the two kings", "retell the siege"),
}
MODELS = "Atlas Borea Comet Delta Ember Falcon Gamma Helix Iris Juno Krill Lumen Mango Nova Orbit Pixel".split()
UTILITY = {  # task -> (utility of full skill, utility lost by the highest price)
    "router-performance": (1.0, 0.0), "router-balance": (0.6, 0.4), "router-cost": (0.2, 0.8),
}
OBJECTIVE = {"router-performance": "quality", "router-balance": "value", "router-cost": "price"}
PLACES = "Velm Orda Tarn Miro Quell Sandre Bruk Halden Ister Novar Pelt Rusk".split()
ASPECTS = {  # meaning -> (how a question asks, how a passage says it)
    "age": (("how old is the tower of", "in which year did they build"),
            ("masons raised the keep long ago", "stones were laid seven centuries back",
             "its walls date from early times")),
    "ruler": (("who governs", "which family is in power in"),
              ("a duke holds the throne", "the council obeys a queen", "a prince wears the crown")),
    "food": (("what do people eat in", "which dish is typical of"),
             ("cooks serve smoked eel", "bakers sell plum bread", "kitchens boil barley soup")),
    "weather": (("how warm is it in", "does it rain much in"),
                ("storms arrive every autumn", "summers stay dry", "fog covers the hills")),
    "trade": (("what is sold in the market of", "which goods leave"),
              ("merchants ship wool", "caravans carry salt", "carts bring copper")),
    "people": (("how many live in", "what is the population of"),
               ("nine thousand souls dwell here", "few families remain", "settlers doubled in number")),
}


@dataclass(frozen=True)
class Reading:
    """Hold what a careful reader knows of a query; the teacher of the built-in policy writes its traces from it.

    `want` states the wishes; `offers[i]` is the offer of candidate i; `signs[i]` has a character for the secondary and
    one for the primary wish (`-`, `=` or `+`); `fit` orders candidates rightly, `half` by the secondary wish alone.
    """

    want: str
    offers: tuple[str, ...]
    signs: tuple[str, ...]
    fit: tuple[float, ...]
    half: tuple[float, ...]


def query(task: str, split: str, index: int, seed: int = 0) -> Query:
    """Return the `index`-th query of a split, always the same query for the same arguments."""
    return draw(task, split, index, seed)[0]


def queries(task: str, split: str, count: int, seed: int = 0) -> list[Query]:
    """Return the first `count` queries of a split."""
    return [query(task, split, index, seed) for index in range(count)]


def draw(task: str, split: str, index: int, seed: int = 0) -> tuple[Query, Reading]:
    """Return the `index`-th query of a split with its reading. Raise ValueError for an unknown task or split."""
    if task not in TASKS or split not in SPLITS:
        raise ValueError(f"no built-in task {task!r} with split {split!r}")
    rng = random.Random(f"{seed}/{task}/{split}/{index}")
    family = {"rec": _recommendation, "router": _routing, "passage": _passages}[task.split("-")[0]]
    context, texts, relevance, reading = family(task, rng)
    candidates = tuple(Candidate(f"c{i}", text) for i, text in enumerate(texts))
    return Query(f"{task}.{split}.{index}", task, context, candidates, tuple(relevance)), reading


def _word(meanings: dict[str, str], meaning: str, rng: random.Random) -> str:
    return rng.choice(meanings[meaning].split())


def _other(rng: random.Random, options, not_this):
    return rng.choice([option for option in options if option != not_this])


def _negatives(rng: random.Random, count: int, shares: dict[str, int]) -> list[str]:
    return rng.choices(list(shares), weights=list(shares.values()), k=count)


def _recommendation(task: str, rng: random.Random):
    genres = GENRES[task]
    genre, mood = rng.choice(list(genres)), rng.choice(list(MOODS))

    def item(title: str, match: str) -> tuple[str, str]:
        """Draw (text, offer) of an item that has the wanted (mood, genre) where `match` has a plus, else another."""
        m = mood if match[0] == "+" else _other(rng, MOODS, mood)
        g = genre if match[1] == "+" else _other(rng, genres, genre)
        return f"{_word(MOODS, m, rng)} {_word(genres, g, rng)}: {title}", f"{m} {g}"

    size = TASKS[task]
    titles = [f"{a} {b}" for a in TITLES[0] for b in TITLES[1]]
    titles = rng.sample(titles, size + 5)
    history = ["++", "++", "++", "-+", "+-"]
    rng.shuffle(history)
    # Most positives miss the mood, so that a ranker that looks at the mood alone eliminates them.
    positive = rng.choice(["++", "-+", "-+", "-+"])
    shares = {"--": 5, "+-": 4, "-+": 1} if positive == "++" else {"--": 6, "+-": 4}
    signs = [positive, *_negatives(rng, size - 1, shares)]
    rng.shuffle(signs)
    items = [item(title, match) for title, match in zip(titles, signs)]
    relevance = [float(s == positive) for s in signs]
    fit = [2.0 * (s[1] == "+") + (s[0] == "+") for s in signs]
    reading = Reading(f"{mood} {genre}", tuple(offer for _, offer in items), tuple(signs), tuple(fit),
                      tuple(float(s[0] == "+") for s in signs))
    context = tuple(item(title, match)[0] for title, match in zip(titles[size:], history))
    return context, [text for text, _ in items], relevance, reading


def _routing(task: str, rng: random.Random):
    topic = rng.choice(list(TOPICS))
    skill_worth, price_worth = UTILITY[task]
    texts, offers, signs, relevance, half = [], [], [], [], []
    names = rng.sample(MODELS, TASKS[task])
    skilled = ["+"] + rng.choices("+-", weights=(2, 8), k=TASKS[task] - 1)
    rng.shuffle(skilled)
    for name, sign in zip(names, skilled):
        strength = topic if sign == "+" else _other(rng, TOPICS, topic)
        price = rng.choice((1, 2, 3))
        skill, thrift, cheap = float(sign == "+"), (3 - price) / 2, {1: "+", 2: "=", 3: "-"}[price]
        texts.append(f"good at {strength}, ${price}: {name}")
        # The utility is performance minus weighted cost, plus the weight, so that no utility is below zero.
        relevance.append(round(skill_worth * skill + price_worth * thrift, 3))
        # The objective decides which wish is primary; the primary wish stands second.
        offers.append(f"{strength} ${price}" if task == "router-cost" else f"${price} {strength}")
        signs.append(sign + cheap if task == "router-cost" else cheap + sign)
        half.append(skill if task == "router-cost" else thrift)
    reading = Reading(f"{topic} {OBJECTIVE[task]}", tuple(offers), tuple(signs), tuple(relevance), tuple(half))
    return rng.choice(TOPICS[topic]), texts, relevance, reading


def _passages(task: str, rng: random.Random):
    aspect, place = rng.choice(list(ASPECTS)), rng.choice(PLACES)
    size = TASKS[task]
    signs = ["++", *_negatives(rng, size - 1, {"+-": 6, "-+": 2, "--": 2})]
    rng.shuffle(signs)
    texts, offers = [], []
    for match in signs:
        p = place if match[0] == "+" else _other(rng, PLACES, place)
        a = aspect if match[1] == "+" else _other(rng, ASPECTS, aspect)
        texts.append(f"{p}: {rng.choice(ASPECTS[a][1])}")
        offers.append(f"{p} {a}")
    relevance = [float(s == "++") for s in signs]
    fit = [2.0 * (s[1] == "+") + (s[0] == "+") for s in signs]
    reading = Reading(f"{place} {aspect}", tuple(offers), tuple(signs), tuple(fit),
                      tuple(float(s[0] == "+") for s in signs))
    return f"{rng.choice(ASPECTS[aspect][0])} {place}", texts, relevance, reading
