"""The command `portcullis`: thin; every verb calls one function of the library."""

from portcullis.cli.main import main

__all__ = ["main"]
