"""Preflight: mint the run's nonce under a policy that verifies, before anything else happens."""
