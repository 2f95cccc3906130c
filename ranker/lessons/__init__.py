"""Lessons: what is done to training queries before they are drawn. A lesson is one file here.

`data.lessons` lists them: `[{name: NAME, option: value}, ...]`, done in that order. A file NAME.py holds a dataclass
`Options` and

    lesson(source, fit, options) -> Source

`source` is what the lesson before made of the training queries, `fit` the training queries themselves (a list, the only
ones that a lesson may fit anything on). Validation and test queries never pass through. An example:

    @dataclass
    class Options:
        least: int = setting(3, low=2)  # candidates

    def lesson(source, fit, options):
        return replace(source, items=[query for query in source.items if len(query.ids) >= options.least])
"""

CONTRACT = {"lesson": ("source", "fit", "options")}
OPTIONAL = {}
