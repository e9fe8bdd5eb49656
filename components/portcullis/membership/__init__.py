"""Membership inference: whether a model tells which rows it learnt from."""
