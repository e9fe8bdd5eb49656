"""`python -m portcullis.serving`: the server process of an admitted model."""

import argparse
import sys
from pathlib import Path

from portcullis.errors import PortcullisError
from portcullis.serving.stage import serve_admitted


def main() -> int:
    """Serve until told to stop; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(prog="python -m portcullis.serving", description=main.__doc__)
    parser.add_argument("--sealed", type=Path, required=True, help="directory of the sealed model")
    parser.add_argument("--admission", type=Path, required=True, help="the admission")
    parser.add_argument("--evidence", type=Path, required=True, help="the bundle of evidence")
    parser.add_argument("--trust", type=Path, help="trust store (default: the one that PORTCULLIS_TRUST names)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0 lets the system choose")
    parser.add_argument("--ready-file", type=Path, help="where to write the bound port")
    arguments = parser.parse_args()
    try:
        serve_admitted(**vars(arguments))
    except PortcullisError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
