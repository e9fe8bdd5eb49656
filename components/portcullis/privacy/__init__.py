"""Differential privacy: noise on declared columns of a table, with the epsilon of what was implemented."""
