"""What finds what the built-in recognisers do not, as a plan says: rules, encoded identifiers, detectors."""

from collections.abc import Sequence
from typing import Any

from portcullis.pii.detector_scan import DetectorFinder
from portcullis.pii.detectors import load_detector
from portcullis.pii.encoded import EncodedFinder
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.rule_scan import RuleFinder
from portcullis.pii.scan import Finder, Found, scan_values


def rule_finders(plan: MaskingPlan) -> Sequence[Finder]:
    """Return what finds what the plan's rules say, if it has any."""
    rules = {rule: plan.kinds.index(name) for name, rule in plan.rules.items()}
    return (RuleFinder(rules),) if rules else ()


def encoded_finder(plan: MaskingPlan, rules: Sequence[Finder]) -> EncodedFinder:
    """Return what finds identifiers, and what rules find, in encoded text."""
    recall = plan.detection == "recall"

    def search(texts: Any, column: str) -> Found:
        found = scan_values(texts, plan.entities, column=column, recall=recall, finders=rules)
        return found.values, found.starts, found.ends, found.ranks

    return EncodedFinder(search)


def detector_finders(plan: MaskingPlan) -> Sequence[Finder]:
    """Return the detectors that a plan names.

    Raises:
        ConfigError: As `load_detector`; so are the others.
        DataError: As `load_detector`.
        MissingDependencyError: As `load_detector`.
    """
    ranks = {entity: rank for rank, entity in enumerate(plan.kinds)}
    return [DetectorFinder(load_detector(choice), ranks) for choice in plan.detectors.values()]
