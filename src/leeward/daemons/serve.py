"""The service's composition root: `leeward serve`.

Owns: putting vault, engine, verbs and routes together, and listening. Must not know: any of them
inside.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from leeward.agent.identity import DirectoryLock
from leeward.api.access import load_token
from leeward.api.app import build_app
from leeward.core.errors import Unavailable
from leeward.daemons.places import private_directory
from leeward.daemons.settings import Settings
from leeward.daemons.signals import StopSignal
from leeward.observability.log import get_logger
from leeward.workflows.service import open_service

log = get_logger()

TOKEN_FILE = "api-token"
_BACKLOG = 256
_GRACE_SECONDS = 2


def create_app(settings: Settings) -> FastAPI:
    """Return the app, its service started: jobs an earlier process left go on.

    One per process and data directory; ending the app stops the service. Raises: InvalidRequest,
    Unavailable; Conflict when another service has the data directory.
    """
    directory = private_directory(settings.service_data)
    lock = DirectoryLock(directory / "lock", owner="service")
    try:
        token = load_token(directory / TOKEN_FILE)
        service = open_service(directory, settings.service.database_url)
    except BaseException:
        lock.release()
        raise

    def stop() -> None:
        service.stop()
        lock.release()

    try:
        service.start()
    except BaseException:
        stop()
        raise
    return build_app(service, token, on_end=stop)


def run_service(
    settings: Settings, *, on_ready: Callable[[str, str], None] = lambda url, token: None
) -> None:
    """Serve until SIGTERM or SIGINT. Raises: Unavailable when the port is taken, InvalidRequest.

    on_ready: called with the URL at which this machine reaches the service, and the token.
    """
    listener = _listen(settings.service.host, settings.service.port)
    StopSignal()  # uvicorn raises the signal that ended it once more: it must not kill us then
    try:
        app = create_app(settings)
        on_ready(_local_url(settings), load_token(settings.service_data / TOKEN_FILE))
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        log.info("service_ready", host=settings.service.host, port=settings.service.port)
        uvicorn.Server(config).run(sockets=[listener])
        log.info("service_stopped")
    finally:
        listener.close()


def _local_url(settings: Settings) -> str:
    host = settings.service.host
    if host in ("", "0.0.0.0", "::"):  # everywhere, so here too
        host = "127.0.0.1"
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{settings.service.port}"


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, taken before anything else starts: who is second changes
    nothing."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"cannot listen on {host} port {port}: {(error.strerror or str(error)).lower()}",
            hint="another service there? choose a port with service.port or LEEWARD_SERVICE__PORT",
        ) from error
    return listener
