"""What finds what the built-in recognisers do not, as a plan says: rules, encoded identifiers, detectors."""

from collections.abc import Sequence
from typing import Any

from portcullis.pii.detector_scan import DetectorFinder
from portcullis.pii.detectors import load_detector
from portcullis.pii.encoded import EncodedFinder
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.rule_scan import RuleFinder
from portcullis.pii.scan import Finder, Found, scan_values


def text_finders(plan: MaskingPlan) -> Sequence[Finder]:
    """Return what finds by form: the plan's rules, and identifiers and rules in encoded text."""
    rules = (RuleFinder({rule: plan.kinds.index(name) for name, rule in plan.rules.items()}),) if plan.rules else ()
    recall = plan.detection == "recall"

    def search(texts: Any, column: str) -> Found:
        found = scan_values(texts, plan.entities, column=column, recall=recall, finders=rules)
        return found.values, found.starts, found.ends, found.ranks

    return (*rules, EncodedFinder(search))


def detector_finders(plan: MaskingPlan) -> Sequence[Finder]:
    """Return the detectors that a plan names.

    Raises:
        ConfigError: As `load_detector`; so are the others.
        DataError: As `load_detector`.
        MissingDependencyError: As `load_detector`.
    """
    ranks = {entity: rank for rank, entity in enumerate(plan.kinds)}
    return [DetectorFinder(load_detector(choice), ranks) for choice in plan.detectors.values()]
