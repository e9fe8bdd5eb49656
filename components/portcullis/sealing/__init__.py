"""Encryption at rest: sealed files, sealed directories and the recipients who can open them (docs/sealed-format.md)."""
