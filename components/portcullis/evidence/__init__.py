"""Signed evidence: statements, envelopes, the policy, and the verification of the chain they form."""
