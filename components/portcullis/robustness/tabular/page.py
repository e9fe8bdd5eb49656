"""What a page shows of a table's judgement besides figures: what may change, feature by feature."""

from collections.abc import Mapping, Sequence

import numpy as np

from portcullis.evidence.statement import Figure
from portcullis.report import paragraph, section, table
from portcullis.robustness.tabular.threat import DIRECTIONS, TabularThreat


def tabular_details(threat: TabularThreat, columns: Sequence[str], figures: Mapping[str, Figure]) -> list[str]:
    """Return the HTML of what may change and what came of it, for `portcullis.report.gate_page`.

    Args:
        threat: What may change.
        columns: The features' names, in order.
        figures: As of `portcullis.robustness.tabular.TabularReport`.
    """
    ways = {number: name for name, number in DIRECTIONS.items()}
    rows = [
        (
            columns[place],
            f"{threat.epsilon[place]:g}",
            ways[int(threat.direction[place])],
            f"{threat.low[place]:g} to {threat.high[place]:g}",
            "whole" if threat.whole[place] else "any",
        )
        for place in map(int, np.flatnonzero(threat.epsilon))
    ]
    groups = [", ".join(columns[place] for place in group) for group in threat.groups if threat.swaps]
    samples = int(figures["samples"])
    whole = round(float(figures["robust_accuracy"]) * samples)
    return [
        section("What may change in a row"),
        *([table(("feature", "by at most", "direction", "within", "numbers"), rows)] if rows else []),
        *(
            [table((f"one-hot groups, of which {threat.swaps} may change",), [(it,) for it in groups])]
            if groups
            else []
        ),
        paragraph(
            f"All other features stay as they are. {whole} of {samples} rows are classified correctly and withstood "
            f"the search, which asked the model about {int(figures['queries']):,} rows."
        ),
        paragraph(
            "PASSED means that this search found no more. It sees the model's probabilities only, and bounds hold as "
            "they are declared, not as they would be in life.",
            kind="dim",
        ),
    ]
