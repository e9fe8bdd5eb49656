"""What a row's nearest neighbours say of its label."""

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
        shares: Votes (N, k) of each row's neighbours, itself left out; each row adds up to 1.
        thresholds: For each class (k,), the mean share of its own votes: what such a row gets as a rule.
    """

    points: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: int
    neighbours: int
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
        shares = _votes(points, labels, classes, neighbours, asked=everyone, voters=everyone)
        own = shares[everyone, labels]
        thresholds = np.array([own[labels == label].mean() for label in range(classes)])
        return cls(points, labels, classes, neighbours, shares, thresholds)

    @property
    def accuracy(self) -> float:
        """The share of rows that their neighbours call by their own label, 0..1."""
        return float((self.shares.argmax(axis=1) == self.labels).mean())

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
        shares = _votes(self.points, self.labels, self.classes, self.neighbours, asked=suspects, voters=voters)
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
) -> NDArray[np.float64]:
    """Return the share of each class (len(asked), k) among the nearest voters of each row that is asked about."""
    if len(voters) <= neighbours:
        raise InconclusiveError(f"{len(voters)} rows are too few for a vote of {neighbours} neighbours")
    others, shares = points[voters], np.empty((len(asked), classes))
    lengths = (others**2).sum(axis=1)
    step = max(1, _CELLS // len(voters))
    for start in range(0, len(asked), step):
        block = asked[start : start + step]
        # Squared distances, but for each row's own length, which orders nothing.
        distances = lengths - 2 * (points[block] @ others.T)
        distances[block[:, None] == voters[None]] = np.inf
        nearest = labels[voters[np.argpartition(distances, neighbours - 1, axis=1)[:, :neighbours]]]
        ballots = nearest + classes * np.arange(len(block))[:, None]
        counts = np.bincount(ballots.ravel(), minlength=classes * len(block))
        shares[start : start + step] = counts.reshape(len(block), classes) / neighbours
    return shares
