"""Judges the numbers of a release: absolute bounds, the candidate against the stable revision, A/B tests.

Pure and without numpy, because sums over blocks are few. How sure the judgements are is measured in
``benchmarks/analysis.py``.
"""

from __future__ import annotations

from shipctl.release.analysis.ab import AbState, Values, judge_ab
from shipctl.release.analysis.judge import judge
from shipctl.release.analysis.power import plan_lines
from shipctl.release.analysis.state import AnalysisState

__all__ = ["AbState", "AnalysisState", "Values", "judge", "judge_ab", "plan_lines"]
