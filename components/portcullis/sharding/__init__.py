"""Joining what the shards of a step made into one data set."""
