"""What a row's nearest neighbours say of it: whether they call it by its label, and how near they are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import InconclusiveError

_CELLS = 1 << 24  # distances that are in memory at a time


@dataclass(frozen=True)
class Neighbourhood:
    """Points with their labels, and the votes that each gets from its nearest others.

    Attributes:
        points: Features (N, D) in 0..1.
        labels: Class indices (N,), integers in [0, k).
        classes: k.
        neighbours: How many nearest rows vote.
        radii: How far the last of each row's neighbours is, itself left out, (N,).
        shares: Their votes (N, k); each row adds up to 1.
        thresholds: For each class (k,), the mean share of its own votes: what such a row gets as a rule.
    """

    points: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: int
    neighbours: int
    radii: NDArray[np.float32]
    shares: NDArray[np.float64]
    thresholds: NDArray[np.float64]

    @classmethod
    def of(
        cls, points: NDArray[np.float32], labels: NDArray[np.int64], *, classes: int, neighbours: int
    ) -> "Neighbourhood":
        """Let every row's neighbours vote. The cost grows with the square of the number of rows.

        Args:
            points: Features (N, D) in 0..1.
            labels: Class indices (N,); every class has a row.
            classes: How many classes there are.
            neighbours: How many nearest rows vote.

        Raises:
            InconclusiveError: There are not more rows than voters.
        """
        everyone = np.arange(len(points))
        shares, radii = _votes(points, labels, classes, neighbours, asked=everyone, voters=everyone)
        own = shares[everyone, labels]
        thresholds = np.array([own[labels == label].mean() for label in range(classes)])
        return cls(points, labels, classes, neighbours, radii, shares, thresholds)

    @property
    def accuracy(self) -> float:
        """The share of rows that their neighbours call by their own label, 0..1."""
        return float((self.shares.argmax(axis=1) == self.labels).mean())

    def crowded(self, share: float) -> NDArray[np.int64]:
        """Find the rows whose neighbours are nearer than a share of the usual distance, the median of all rows'.

        The distance to the k-th neighbour is a measure of density (Loftsgaarden and Quesenberry 1965,
        doi:10.1214/aoms/1177700079), so a flood of copies that differ a little shows as a crowd. Where half of the rows
        have k copies to the bit no row is: those are for `portcullis.quality.rows.copies` to count.

        Returns:
            Their indices.
        """
        return np.flatnonzero(self.radii < share * np.median(self.radii))

    def issues(self) -> NDArray[np.int64]:
        """Find the rows that their neighbours confidently call by another label.

        This is the confident joint's off-diagonal of confident learning (Northcutt, Jiang and Chuang 2021,
        arXiv:1911.00068), with k nearest neighbours, each row left out, as the out-of-sample model: a row counts for a
        class when its share of votes reaches that class's mean share among its own rows.

        Returns:
            Their indices.
        """
        return np.flatnonzero(self._called_otherwise(self.shares, self.labels))

    def reclassified(self, suspects: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find those of some rows of one class that all other rows confidently call by another label.

        This is the exclusionary reclassification of Chen et al. 2018 (arXiv:1811.03728, section 4.2), with nearest
        neighbours in place of a model trained without the suspects: rows of a class's own kind are still recognised
        when some of their like are gone; rows that a trigger alone holds in it fall to the class that they came from.

        Args:
            suspects: Indices, each once; they do not vote.

        Returns:
            Their indices.

        Raises:
            InconclusiveError: Too few others are left to vote.
        """
        voters = np.setdiff1d(np.arange(len(self.labels)), suspects)
        shares, _ = _votes(self.points, self.labels, self.classes, self.neighbours, asked=suspects, voters=voters)
        return suspects[self._called_otherwise(shares, self.labels[suspects])]

    def _called_otherwise(self, shares: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        confident = np.where(shares >= self.thresholds, shares, -1.0)
        called: NDArray[np.bool_] = (confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != labels)
        return called


def _votes(
    points: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    neighbours: int,
    *,
    asked: NDArray[np.int64],
    voters: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the share of each class (len(asked), k) among each row's nearest voters, and how far the last is."""
    if len(voters) <= neighbours:
        raise InconclusiveError(f"{len(voters)} rows are too few for a vote of {neighbours} neighbours")
    others, shares, radii = points[voters], np.empty((len(asked), classes)), np.empty(len(asked), dtype=np.float32)
    lengths = (others**2).sum(axis=1)
    step = max(1, _CELLS // len(voters))
    for start in range(0, len(asked), step):
        block = asked[start : start + step]
        own = (points[block] ** 2).sum(axis=1, keepdims=True)
        squares = np.maximum(own + lengths - 2 * (points[block] @ others.T), 0)
        squares[block[:, None] == voters[None]] = np.inf
        nearest = np.argpartition(squares, neighbours - 1, axis=1)[:, :neighbours]
        radii[start : start + step] = np.sqrt(np.take_along_axis(squares, nearest, axis=1).max(axis=1))
        ballots = labels[voters[nearest]] + classes * np.arange(len(block))[:, None]
        counts = np.bincount(ballots.ravel(), minlength=classes * len(block))
        shares[start : start + step] = counts.reshape(len(block), classes) / neighbours
    return shares, radii
