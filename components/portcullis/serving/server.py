"""The process around the application: its socket, its timeouts, its end, and what it keeps from other processes."""

import contextlib
import ctypes
import os
import resource
import signal
import socket
from asyncio import Transport
from pathlib import Path

from portcullis.errors import DeploymentError, MissingDependencyError, UsageError
from portcullis.files import write_bytes

try:
    import uvicorn
    from starlette.types import ASGIApp
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ModuleNotFoundError as error:
    raise MissingDependencyError(f"serving needs {error.name}: pip install 'kfp-portcullis[serve]'") from error

BACKLOG = 128
IDLE_SECONDS = 5  # for a request's head to arrive, on a new connection as after an answer
DRAIN_SECONDS = 20  # for pending requests at the end; below the 30 s that Kubernetes grants by default
MAX_CONNECTIONS = 512  # beyond it uvicorn answers 503 by itself

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def serve(
    app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, fd: int | None = None, ready_file: Path | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, let pending requests finish, and return.

    Call it in the main thread. The process leaves no core dump and cannot be traced by others of its user from here on.

    Args:
        app: The ASGI application.
        host: Address to listen on.
        port: TCP port; 0 lets the system choose.
        fd: A bound TCP socket inherited from the parent, instead of `host` and `port`.
        ready_file: Where to write the bound port (decimal, one line) once connections are queued, before any is served.

    Raises:
        UsageError: The address or descriptor cannot be listened on.
        DeploymentError: The process cannot be hardened.
    """
    harden_process()
    with listening_socket(host, port, fd) as listener:
        server = uvicorn_server(app)
        # uvicorn handles signals only while it runs, and then raises them again. As PID 1, which the kernel spares
        # signals without a handler, the process would miss one that comes earlier; any other would die of the second.
        before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            if ready_file is not None:
                write_bytes(ready_file, f"{listener.getsockname()[1]}\n".encode())
            server.run(sockets=[listener])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listening_socket(host: str, port: int, fd: int | None = None) -> socket.socket:
    """Return a TCP socket that queues connections already; arguments and errors as for `serve`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(family) if fd is None else socket.socket(fileno=fd))
            # Accepted sockets inherit it. asyncio sets it on sockets with an explicit IPPROTO_TCP only, and without it
            # Nagle's algorithm and delayed ACKs cost 40 ms per answer, whose head and body are two writes.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if fd is None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((host, port))
            listener.listen(BACKLOG)
            undo.pop_all()
            return listener
    except (OSError, OverflowError, TypeError, ValueError) as error:
        where = f"{host} port {port}" if fd is None else f"descriptor {fd}"
        raise UsageError(f"cannot listen on {where}: {error}") from error


def uvicorn_server(app: ASGIApp) -> uvicorn.Server:
    """Configure uvicorn: HTTP/1.1 only, no access log, no trust in proxy headers, bounded in time and connections."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            workers=1,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )


def harden_process() -> None:
    """Forbid core dumps and ptrace by other processes of the user, either of which would reveal keys and weights.

    Sources: setrlimit(2) RLIMIT_CORE, prctl(2) PR_SET_DUMPABLE.

    Raises:
        DeploymentError: The system does not allow it.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        refused = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0
    except (OSError, ValueError, AttributeError) as error:
        raise DeploymentError(f"cannot forbid core dumps and tracing of the server: {error}") from error
    if refused:
        raise DeploymentError(f"cannot forbid tracing of the server: {os.strerror(ctypes.get_errno())}")


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a deadline for each request's head.

    uvicorn starts its keep-alive timer after an answer only, and stops it at the next byte. A client that sends nothing
    or a byte now and then (slowloris) would so hold a connection for ever. Here the timer runs from the start, and only
    a complete head stops it (in `handle_events`). After an early answer (413) it runs while the rest is dropped.
    """

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override] # as in the base class
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        self.conn.receive_data(data)
        self.handle_events()
