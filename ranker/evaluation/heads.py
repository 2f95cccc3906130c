"""What stands above the table of an evaluation: what was ranked, how, and what speaks against the numbers."""

from collections.abc import Sequence

from ranker.data import Query


def of_queries(args, config, orders: Sequence[Sequence[Query]], models, level: float, warnings: Sequence[str]) -> str:
    """Say above the table what was ranked and how."""
    source = ", ".join(args.data) or config.data.test or f"{config.data.train}, the {args.split} split"
    warm = config.llm.api and config.llm.temperature
    decoding = f"temperature {config.llm.temperature:g}" if warm else "greedy decoding"
    how = f"{config.ranker['name']}, {decoding}, " if models else ""
    strict = " Strict: a query with an answer that could not be read counts 0." if models else ""
    unlabelled = sum(not q.labelled for q in orders[0])
    said = f"{len(orders[0])} queries of {source}; {how}{args.orders} candidate order(s), seed {config.run.seed}.\n"
    said += f"{unlabelled} of them have no labels: they are ranked and not measured.\n" if unlabelled else ""
    said += f"The untrained base was asked in {args.base}.\n" if args.base else ""
    if unlabelled == len(orders[0]):
        return said.rstrip() + warned(warnings)
    return (f"{said}{relevance_words(level)}; nDCG has linear gain, its ideal over the query's candidates.\n"
            f"On average a positive stands at place {place(orders):.1f} of the order given.{strict}{warned(warnings)}")


def of_run(args, config, models: Sequence[str], count: int, absent: int, unjudged: int, level: float,
           warnings: Sequence[str]) -> str:
    """Say above the table what was judged and how."""
    by = " and ".join(filter(None, (args.replay and f"{args.replay} replayed",
                                    models and f"ranked by {', '.join(models)}")))
    how = f"{by} with {' '.join(f'{k}={v}' for k, v in config.ranker.items())}" if by else "the run as it is"
    if not args.qrels:
        return f"{count} queries of {args.run}, {how}; nothing is measured without --qrels.{warned(warnings)}"
    strict = "\nStrict: a query with an answer that could not be read counts 0." if by else ""
    return (f"{count} judged queries of {args.qrels}, {how}; {absent} of them are not in the run and count 0,"
            f" {unjudged} of the run's have no judgements and are left out.\n{relevance_words(level)}; nDCG has"
            f" linear gain, its ideal over all judged documents.{strict}{warned(warnings)}")


def place(orders: Sequence[Sequence[Query]]) -> float:
    """Return the mean place of the positives, from 1: half of the pool's size where nothing leaks through the order."""
    places = [q.ids.index(c) + 1 for order in orders for q in order if q.labelled for c in q.positives]
    return sum(places) / len(places)


def relevance_words(level: float) -> str:
    """Return what counts as relevant, in words."""
    counts = f"relevance from {level:g} on" if level else "the best grade of a query"
    return f"MRR, AP, Hit, Recall and P count {counts} as relevant"


def warned(warnings: Sequence[str]) -> str:
    """Return the lines of a report's head that say what speaks against its numbers."""
    return "".join(f"\nWARNING {warning}." for warning in warnings)
