"""A plan per checkpoint: how few passes draw pictures as good as those of the full plan, measured and not copied.

    prompts -> half to search with, half held out -> the full plan draws all, tokens are kept (drawings) -> plans draw
    the same pictures from the same tokens, cheapest first, and are scored in pairs (search, judging) -> the held-out
    half decides -> windows and pictures timed (clock) -> plan with its evidence, HTML report

No torch, and nothing of the export: a bundle is tuned where it runs. See `tuning.tune`.
"""

from runtime.text.prompts import read_prompts
from tuning.config import TuneConfig
from tuning.scorers import CommandScorer, Scorer
from tuning.tune import TuneResult, tune

__all__ = ["CommandScorer", "Scorer", "TuneConfig", "TuneResult", "read_prompts", "tune"]
