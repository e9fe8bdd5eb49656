"""Peers whose requirements conflict with ours live in environments of their own below build/peers."""

import subprocess
import sys
from pathlib import Path

PEERS = Path("build/peers")


def peer_python(name: str, *requirements: str) -> Path:
    """Return the interpreter of a peer's environment, made on first use."""
    home = PEERS / name
    python = home / "bin" / "python"
    done = home / ".installed"
    if not done.exists() or done.read_text() != "\n".join(requirements):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements], check=True
        )
        done.write_text("\n".join(requirements))
    return python
