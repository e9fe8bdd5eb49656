"""Counts by column and entity as figures of a statement: `masked:EMAIL:note` is how many were masked there."""

from collections.abc import Mapping

from portcullis.evidence.statement import Figure

# More would make evidence larger than it may be; then the sums alone are stated.
MOST_PAIRS = 1_000

Counts = Mapping[str, Mapping[str, int]]
"""By column, by entity, how many; those that are none may be left out."""


def pair_figures(kind: str, counts: Counts) -> dict[str, int]:
    """Return a figure for each column and entity that has any; none at all where there would be more than 1,000."""
    figures = {
        f"{kind}:{entity}:{column}": count
        for column, entities in counts.items()
        for entity, count in entities.items()
        if count
    }
    return figures if len(figures) <= MOST_PAIRS else {}


def pairs_in(kind: str, figures: Mapping[str, Figure]) -> dict[str, dict[str, int]]:
    """Return the counts that `pair_figures` put into figures."""
    counts: dict[str, dict[str, int]] = {}
    for name, figure in figures.items():
        stated, _, rest = name.partition(":")
        entity, colon, column = rest.partition(":")
        if stated == kind and colon and isinstance(figure, int):
            counts.setdefault(column, {})[entity] = figure
    return counts
