"""Arrange the candidates in question in the order in which another ranker shall read them."""

from ranker.decisions.order import parse, right  # noqa: F401  every candidate once, the best first
