"""Rankers: strategies that turn asks into a full ranking. A ranker is one file here.

A file NAME.py holds a dataclass `Options` and

    rank(query, rng, options)              a generator: yields an Ask or a list of Asks (answered in parallel), receives
                                           an Answer or a list of them, returns candidate ids best first, or (id, score)
                                           pairs
    calls(n, options) -> int               the most asks that n candidates can cost
    sampled_asks(query, rng, size, options) -> list[Ask]
                                           asks about a training query, drawn at random: mostly one, with `size`
                                           candidates (None: as many as the ranker likes)

An answer with `ok` False must not be acted on. An ask may name a `role`, who answers it, want several `samples` at a
`temperature` (from the number `sample` on), and tell texts. A text that is yielded is a note, such as a fall-back;
notes are counted in results.json. An option of type dict may be a ranker section:
`plugins.load("ranker", options.first)`. Optional: `TRAINED_FOR`, the names of options that a checkpoint fits, of whose
change an evaluation tells. An example, the best by one ask and the rest as given:

    @dataclass
    class Options:
        pass

    def rank(query, rng, options):
        answer = yield Ask(query, query.ids, "pick")
        best = answer.value[0] if answer.ok else query.ids[0]
        return [best, *(c for c in query.ids if c != best)]

    def calls(n, options):
        return 1

    def sampled_asks(query, rng, size, options):
        return [Ask(query, tuple(rng.sample(query.ids, size or len(query.ids))), "pick")]
"""

DEFAULT = "elimination"
CONTRACT = {"rank": ("query", "rng", "options"), "calls": ("n", "options"),
            "sampled_asks": ("query", "rng", "size", "options"), "TRAINED_FOR": None}
OPTIONAL = {"TRAINED_FOR": ()}
