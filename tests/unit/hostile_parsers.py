"""What a parser does that hostile bytes have subverted; run in the locked child by test_isolation.py."""

import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from portcullis.errors import ModelError
from portcullis.files import write_all

PARENT = os.getppid()


def _refused(attempt):
    try:
        attempt()
    except OSError as error:
        return f"{type(error).__name__}: {error.errno}"
    return "allowed"


def escape(untrusted, key, folder):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fork.restype = ctypes.c_int

    def system_call(number, *arguments):
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), "refused")

    return {
        "read the key": _refused(lambda: Path(key).open()),
        "write a file": _refused(lambda: Path(folder, "left-behind").open("w")),
        "list a folder": _refused(lambda: list(Path(folder).iterdir())),
        "delete a file": _refused(lambda: Path(key).unlink()),
        "rename a file": _refused(lambda: Path(key).rename(Path(folder, "moved"))),
        "make a socket": _refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
        "make a local socket": _refused(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)),
        "start a program": _refused(lambda: subprocess.run(["/bin/true"], check=False)),
        "fork": _refused(os.fork),
        "fork by clone": _refused(lambda: system_call(56 if os.uname().machine == "x86_64" else 220, 17, 0, 0, 0, 0)),
        "become another program": _refused(lambda: os.execv("/bin/true", ["true"])),
        "signal the parent": _refused(lambda: os.kill(PARENT, signal.SIGTERM)),
        "trace the parent": _refused(
            lambda: system_call(101 if os.uname().machine == "x86_64" else 117, 16, PARENT, 0, 0)
        ),
        "see the environment": _refused(lambda: Path(f"/proc/{PARENT}/environ").open()),
        "unlock itself": _refused(lambda: system_call(317 if os.uname().machine == "x86_64" else 277, 1, 0, 0)),
    }


def work(untrusted, target, *, times):
    lines = []
    thread = threading.Thread(target=lambda: lines.append(untrusted.read()))
    thread.start()
    thread.join()
    target.write(lines[0] * times)
    return {"environment": sorted(os.environ), "folder": os.environ.get("HOME"), "read": len(lines[0])}


def hang(untrusted):
    while True:
        time.sleep(0.01)


def hoard(untrusted):
    return len(bytearray(3 << 30))


def crash(untrusted):
    ctypes.string_at(0)


def leave(untrusted):
    os._exit(0)


def raise_value_error(untrusted):
    raise ValueError("untrusted")


def raise_model_error(untrusted):
    raise ModelError("line one\nline \x1b[31mtwo")


def overwrite(untrusted, target):
    write_all(target, b"x" * 100)


def chatter(untrusted):
    return "x" * (8 << 20)


def forge(untrusted, answer):
    os.write(1, answer.encode())
    os._exit(0)


PREPARED = []


def prepare(known):
    PREPARED.append(Path(known).read_text())


def prepared(untrusted, known):
    (before,) = PREPARED
    return {"before": before, "after": _refused(lambda: Path(known).open()), "environment": sorted(os.environ)}
