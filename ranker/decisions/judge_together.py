"""Judge chains that came to different decisions, side by side: points from 0 to 10 (AoR's global stage)."""

from ranker.decisions.judge_alone import parse, right  # noqa: F401  a JSON object of points by chain

TOLD = ("chains",)
