"""The budget gate: what all runs together spent of a data set's privacy, judged by the ledger itself."""
