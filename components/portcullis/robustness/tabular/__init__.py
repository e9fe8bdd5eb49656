"""Models of tables: what may change in a row, a search that sees probabilities only, and the judgement."""

from portcullis.robustness.tabular.judge import TabularReport, TabularSettings, judge_black_box
from portcullis.robustness.tabular.threat import TabularThreat, parse_threat, read_threat

__all__ = ["TabularReport", "TabularSettings", "TabularThreat", "judge_black_box", "parse_threat", "read_threat"]
