"""Ingestion: raw files into a data set, strictly, with the digests of what was read and of what it says."""
