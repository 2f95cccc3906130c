"""Say a candidate without any context: what is subtracted from `likely` where common texts should not win."""

from ranker.decisions.likely import parse, right, texts  # noqa: F401

SHOWS = ("noun",)
