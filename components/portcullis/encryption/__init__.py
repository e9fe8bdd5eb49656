"""Seal a model that its gates passed for the serving recipient."""
