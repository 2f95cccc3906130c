"""Decisions: what an ask wants, and how its words are read. A decision is one file here and its template in prompts/.

A file NAME.py holds

    parse(inside, ask) -> Answer    reads the text inside the answer tags, by the functions of `answers.py`; it never
                                    guesses
    right(ask) -> str               what stands inside the tags where somebody knows the relevance

and may hold

    template(ask) -> str            the name of its prompt (default: NAME)
    all_right(ask) -> list[str]     every right answer, where several are (default: the one of `right`)
    TOLD = ("chains",)              texts that its asks tell by name (`Ask.told`), fields of its template
    ALTERNATIVES = ("0", "1")       answers whose probabilities the policy gives beside the one it wrote
                                    (`Answer.scores`)
    texts(ask) -> list[str]         nothing is written: the log-probabilities of these texts as completions are the
                                    answer (`Answer.scores`, sums over tokens and end; `Answer.lengths`)
    SHOWS = ("context", "pool")     fields that its template must have

The template prompts/NAME.txt must show {context} and {pool}, or what SHOWS says. An example, with a template
of those two fields:

    from ranker import answers

    def parse(inside, ask):
        return answers.some(answers.named(inside, ask, one=False), ask, most=2)

    def right(ask):
        return answers.written(ask, answers.by_relevance(ask)[:2])
"""

CONTRACT = {"parse": ("inside", "ask"), "right": ("ask",), "template": ("ask",), "texts": ("ask",),
            "all_right": ("ask",)}
OPTIONAL = {"template": None, "all_right": None, "TOLD": (), "ALTERNATIVES": (), "texts": None,
            "SHOWS": ("context", "pool")}
HAS_OPTIONS = False  # rankers name decisions, a config does not
