"""Run a function on untrusted bytes in a child process that has no keys, no environment, no network and no new files.

    answer = run_isolated("portcullis.supply_chain.convert:convert", [untrusted, target], {"limit": 7}, seconds=60)

The child imports the function's module, prepares what it may need, is handed files that are already open, and then
locks itself in with a seccomp filter: from there on it can open no file, make no socket, start no process and signal
nobody but itself. It answers with JSON on a pipe, and the parent believes nothing else. So whatever the bytes make a
parser do, the keys, which the same user could read, stay out of its reach; the parent signs after the child is gone.

What the filter allows is a list; everything else fails with EPERM. Kernels without seccomp are refused.
"""

import contextlib
import ctypes
import errno
import importlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, NoReturn

from portcullis import errors
from portcullis.errors import ModelError, PortcullisError, UsageError

MAX_ANSWER_BYTES = 4 << 20
MAX_MESSAGE = 500
_FILES_FROM = 3  # after stdin, stdout, stderr
# The child finds what the parent finds, also where a package is not installed but on the path.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from portcullis.isolation import serve_parent; "
    "serve_parent()"
)

# Linux: what may be called on x86_64 and on aarch64 (asm/unistd_64.h, asm-generic/unistd.h).
_ALLOWED = {
    "brk": (12, 214),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "close": (3, 57),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "fstat": (5, 80),
    "fsync": (74, 82),
    "ftruncate": (77, 46),
    "futex": (202, 98),
    "getpid": (39, 172),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "gettid": (186, 178),
    "lseek": (8, 62),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "newfstatat": (262, 79),  # how glibc asks for the size of an open file
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "read": (0, 63),
    "readv": (19, 65),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "set_robust_list": (273, 99),
    "sigaltstack": (131, 132),
    "write": (1, 64),
    "writev": (20, 66),
}
# What else a driver of an accelerator is asked with, once it is open.
_DEVICE = {"ioctl": (16, 29), "poll": (7, 73), "ppoll": (271, 73)}  # aarch64 has ppoll only
# How an accelerator's driver and its devices are found; nothing else of the environment is handed on.
_DEVICE_ENVIRONMENT = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_CLONE, _CLONE3, _TGKILL, _SECCOMP = (56, 220), (435, 435), (234, 131), (317, 277)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_…
_CLONE_THREAD = 0x10000
# Classic BPF (linux/bpf_common.h) and what a filter may answer (linux/seccomp.h).
_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian
_INSTRUCTION_BYTES = 8
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1


def run_isolated(
    function: str,
    files: Sequence[BinaryIO],
    arguments: Mapping[str, Any],
    *,
    seconds: float,
    memory: int = 4 << 30,
    writes: int = 0,
    prepare: str = "",
) -> Any:
    """Call a function in a locked child process.

    Args:
        function: "package.module:name", never a name that came from outside. It is called with the files, as unbuffered
            binary files in this order, and with the arguments by name; what it needs is imported when its module is.
        files: Open files; the child works at their positions and with their access mode.
        arguments: Keyword arguments, as JSON has them.
        seconds: Wall-clock limit.
        memory: Most bytes of memory that the child may map beyond what it maps when its modules are loaded.
        writes: Largest size in bytes that a file may get by its writing.
        prepare: "package.module:name" of what is called with the same arguments before the child is locked in, and must
            touch nothing untrusted: it imports what is imported on first use. It returns whether it opened a device,
            an accelerator's, which the child may then go on using.

    Returns:
        What the function returned, as JSON has it.

    Raises:
        RefusedError: Whatever error of this tree the function raised.
        ModelError: The child was killed for time or memory, crashed, or answered with anything but an answer.
        UsageError: This system cannot lock a process in.
    """
    supported_machine()
    request = {
        "function": function,
        "arguments": dict(arguments),
        "files": len(files),
        "seconds": seconds,
        "memory": memory,
        "writes": writes,
        "prepare": prepare,
    }
    device = {name: os.environ[name] for name in _DEVICE_ENVIRONMENT if prepare and name in os.environ}
    path = json.dumps([os.path.abspath(entry) for entry in sys.path if entry])  # noqa: PTH100
    with contextlib.ExitStack() as stack:
        numbers = [stack.enter_context(_duplicate(file)).fileno() for file in files]
        with subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _START, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=numbers,
            env={**device, "LC_ALL": "C.UTF-8", "PATH": os.defpath},
            cwd="/",
            start_new_session=True,
        ) as child:
            try:
                answer = _converse(child, json.dumps({**request, "numbers": numbers}).encode(), seconds)
            finally:
                child.kill()
    return _believe(answer, child.wait())


def supported_machine() -> tuple[int, int]:
    """Return the column of the table of system calls, and the audit number, of this machine.

    Raises:
        UsageError: It is neither Linux on x86_64 nor on aarch64.
    """
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in _MACHINES:
        raise UsageError("untrusted files are opened in a locked process, which needs Linux on x86_64 or aarch64")
    return _MACHINES[machine]


def _duplicate(file: BinaryIO) -> BinaryIO:
    # A descriptor of its own, inherited under its own number; the position is shared with the caller's.
    return os.fdopen(os.dup(file.fileno()), "rb", buffering=0)


def _converse(child: subprocess.Popen[bytes], request: bytes, seconds: float) -> bytes:
    """Hand over the request; return what the child answers until it closes its side, within time and size."""
    deadline = time.monotonic() + seconds
    if child.stdin is None or child.stdout is None:
        raise UsageError("the child has no pipes")
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(request)
        child.stdin.close()
    answer = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
            raise ModelError(f"an untrusted file was not parsed within {seconds:g} seconds")
        part = os.read(child.stdout.fileno(), 1 << 16)
        answer += part
        if len(answer) > MAX_ANSWER_BYTES:
            raise ModelError("an untrusted file made its parser answer more than is allowed")
        if not part:
            return bytes(answer)


def _believe(answer: bytes, code: int) -> Any:
    """Return the answer, or raise the error that it speaks of, if it is an answer at all."""
    if code < 0 and not answer:
        raise ModelError(f"an untrusted file brought its parser down ({signal.Signals(-code).name})")
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise ModelError("an untrusted file brought its parser down (no answer)") from error
    if isinstance(document, dict) and set(document) == {"result"}:
        return document["result"]
    if isinstance(document, dict) and set(document) == {"error", "message"}:
        kind = getattr(errors, str(document["error"]), None)
        message = "".join(it if it.isprintable() else "?" for it in str(document["message"])[:MAX_MESSAGE])
        if isinstance(kind, type) and issubclass(kind, PortcullisError):
            raise kind(message)
    raise ModelError("an untrusted file brought its parser down (no answer)")


def serve_parent() -> NoReturn:
    """Be the child: read one request, lock in, work, answer, exit."""
    request = json.load(sys.stdin.buffer)
    try:
        function = _named(request["function"])
        device = bool(request["prepare"]) and _named(request["prepare"])(**request["arguments"]) is True
        files = [os.fdopen(number, "r+b" if _writable(number) else "rb", buffering=0) for number in request["numbers"]]
        _limit(request)
        lock_in(device=device)
        answer = {"result": function(*files, **request["arguments"])}
    except PortcullisError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        answer = {"error": "ModelError", "message": "an untrusted file needs more memory than is allowed"}
    sys.stdout.buffer.write(json.dumps(answer).encode())
    sys.stdout.buffer.flush()
    os._exit(0)


def _named(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _writable(number: int) -> bool:
    import fcntl

    return bool(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE)


def _limit(request: Mapping[str, Any]) -> None:
    mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115, PTH123
    seconds = int(request["seconds"]) + 1
    for what, most in (
        (resource.RLIMIT_AS, mapped + request["memory"]),
        (resource.RLIMIT_CPU, seconds * (os.cpu_count() or 1)),
        (resource.RLIMIT_FSIZE, request["writes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def lock_in(*, device: bool = False) -> None:
    """Lock this process in, for good.

    Args:
        device: Let it go on using a device that is open.

    Raises:
        UsageError: The kernel has no seccomp filters, or forbids them.
    """
    column, architecture = supported_machine()
    program = _filter(column, architecture, os.getpid(), {**_ALLOWED, **_DEVICE} if device else _ALLOWED)
    instructions = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxP", len(program) // _INSTRUCTION_BYTES, ctypes.addressof(instructions))
    filter_program = ctypes.create_string_buffer(described, len(described))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, int(signal.SIGKILL)), (_PR_SET_DUMPABLE, 0), (_PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))):
            raise UsageError("this system cannot lock a process in (prctl); untrusted files stay closed")
    # With TSYNC the filter holds for the threads too that libraries started when they were loaded.
    call = (_SECCOMP[column], _SET_MODE_FILTER, _FLAG_TSYNC)
    if libc.syscall(*map(ctypes.c_long, call), ctypes.byref(filter_program)):
        reason = os.strerror(ctypes.get_errno())
        raise UsageError(f"this system cannot lock a process in (seccomp: {reason}); untrusted files stay closed")


def _filter(column: int, architecture: int, pid: int, calls: Mapping[str, tuple[int, int]]) -> bytes:
    """Return the filter as instructions of 8 bytes."""
    allowed = sorted({numbers[column] for numbers in calls.values()})
    # A jump counts the instructions that it skips.
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, architecture, skip_if=1),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    for number in allowed:
        program += [_instruction(_JUMP_EQUAL, number, skip_unless=1), _instruction(_RETURN, _ALLOW)]
    program += [
        # glibc falls back from clone3, whose flags no filter can see, to clone.
        _instruction(_JUMP_EQUAL, _CLONE3[column], skip_unless=1),
        _instruction(_RETURN, _ERRNO | errno.ENOSYS),
        # Threads, no processes.
        _instruction(_JUMP_EQUAL, _CLONE[column], skip_unless=4),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_JUMP_ANY_BIT, _CLONE_THREAD, skip_unless=1),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _ERRNO | errno.EPERM),
        # abort(): a signal to itself.
        _instruction(_JUMP_EQUAL, _TGKILL[column], skip_unless=3),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_JUMP_EQUAL, pid, skip_unless=1),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _ERRNO | errno.EPERM),
    ]
    return b"".join(program)


def _instruction(code: int, value: int, *, skip_if: int = 0, skip_unless: int = 0) -> bytes:
    return struct.pack("<HBBI", code, skip_if, skip_unless, value)
