"""The privacy ledger: who spent how much of a data set's privacy budget, over all runs, in an append-only record."""
