"""Other scanners' opinions, each of which can refuse a model, or a lock, and none of which can allow one.

They are run as the commands that they are, from wherever they are installed, with no keys and no environment. What
they were known to miss when this was written is in this stage's README.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from portcullis.errors import DataError, MissingDependencyError, ModelError, UsageError

SECONDS = 600
# Each with its arguments and the exit codes by which it says that it found nothing, or knows no such format.
_COMMANDS = {
    "modelscan": (("-p",), (0, 3)),
    "picklescan": (("-p",), (0,)),
}
VOICES = tuple(_COMMANDS)
# pip-audit of PyPA, by the database of PyPI or its mirror. It reads the pins of a lock and installs nothing; whatever
# else it ends by than 0 refuses: a known vulnerability, no network, a lock that it cannot read, and by --strict a
# distribution that its database does not know, which it would skip and end by 0.
AUDITOR = "pip-audit"
_AUDIT = ("--strict", "--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json", "-r")
# How a process finds the network here; it is given nothing else of the environment.
_NETWORK = ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def require_voices(voices: Iterable[str]) -> None:
    """Refuse scanners that are not known, or not there.

    Raises:
        UsageError: One is not known.
        MissingDependencyError: One is not installed.
    """
    for voice in voices:
        if voice not in _COMMANDS:
            raise UsageError(f"{voice!r} is not one of the scanners that can be asked: {', '.join(VOICES)}")
        if shutil.which(voice) is None:
            raise MissingDependencyError(f"{voice} is to be asked but not installed; run: pipx install {voice}")


def ask(voice: str, model: Path) -> str:
    """Ask another scanner about a model; returns why it refuses it, or nothing.

    Raises:
        ModelError: It did not answer in time.
        UsageError, MissingDependencyError: As `require_voices`.
    """
    require_voices([voice])
    arguments, silent = _COMMANDS[voice]
    command = [shutil.which(voice) or voice, *arguments, str(model.resolve())]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
            cwd="/",
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"{voice} gave no answer: {type(error).__name__}") from error
    return "" if done.returncode in silent else f"{voice} refuses it (exit code {done.returncode})"


def ask_auditor(lock: bytes) -> str:
    """Ask pip-audit about what a lock names; returns why it refuses it, or nothing.

    Raises:
        DataError: It did not answer in time.
        MissingDependencyError: It is not installed.
    """
    command = shutil.which(AUDITOR)
    if command is None:
        raise MissingDependencyError(f"{AUDITOR} is to be asked but not installed; run: pipx install {AUDITOR}")
    with tempfile.TemporaryDirectory(prefix="portcullis-audit-") as folder:
        path = Path(folder) / "requirements.txt"
        path.write_bytes(lock)
        given = {name: os.environ[name] for name in _NETWORK if name in os.environ}
        try:
            done = subprocess.run(
                [command, *_AUDIT, str(path), "--cache-dir", folder],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "HOME": folder, **given},
                cwd=folder,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(f"{AUDITOR} gave no answer: {type(error).__name__}") from error
    return "" if done.returncode == 0 else f"{AUDITOR} refuses the lock, or could not ask (exit code {done.returncode})"
