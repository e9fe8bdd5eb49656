"""`python -m portcullis.cli`: the command `portcullis`."""

from portcullis.cli import main

main()
