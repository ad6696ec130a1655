"""Starts the server: `python -m serving`. Settings come from CONVMAE_* environment variables; see serving/settings.py.

The BentoML service runs in this process under uvicorn, without BentoML's process manager: one process less, a bad
bundle ends it with one sentence, and after SIGTERM nothing holds the listening socket open behind the server's back.
"""

import errno
import logging
import os
import signal
import socket
import sys

from convmae_deploy.backends.base import describe_backend
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.printing import printable
from convmae_deploy.program import unusable
from serving import bentoml_settings
from serving.api.models import Predictors, batching_backends, open_predictors
from serving.settings import Settings, warn_of_variables

logger = logging.getLogger("convmae_serving")

LOCALHOST = ("127.0.0.1", "::1")  # clients try both, whatever the system's list of names says
NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def main() -> int:
    """Runs until a signal; 0 after a clean end, 1 with one sentence when the server cannot start."""
    fill_standard_streams()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name in ("python_multipart", "uvicorn.error"):  # what clients do wrong is told to them, not to the log
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        settings, _ = bentoml_settings.load()
        warn_of_variables(os.environ)
        predictors = open_predictors(settings)
        listeners = bind(settings)
    except ConvMAEError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {unusable(error)}", file=sys.stderr)
        return 1
    # Imported only now: BentoML takes a second to import, and a mistake in the settings should not wait for it.
    import uvicorn
    from bentoml._internal.configuration.containers import BentoMLContainer

    from serving import service
    from serving.http.protocol import LimitedProtocol

    service.predictors.put(predictors)
    del predictors  # only the service knows them now: a model that is replaced is not to stay in memory
    config = uvicorn.Config(
        service.SERVICE.to_asgi(),
        http=LimitedProtocol,
        ws="none",
        access_log=False,
        proxy_headers=False,  # the application has a setting for them
        backlog=BentoMLContainer.api_server_config.backlog.get(),
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
    )

    class Announcing(uvicorn.Server):
        """Says where it listens once it does."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            announce(service.predictors, listeners, settings.root_path)

    server = Announcing(config)
    # uvicorn raises the signal again when it is done; by then this process has nothing left to clean up but its status.
    # A signal that comes before uvicorn's own handlers are in place ends the server as one after that does.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    server.run(sockets=listeners)
    # A job, a load or a device that nothing can interrupt: Python would wait for its thread, or end under its feet.
    if service.api.pool.running or service.api.repository.busy or not service.predictors.close(0.0):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def bind(settings: Settings) -> list[socket.socket]:
    """Sockets bound to the host and port of the settings, not yet listening: one for each address of the host.

    Raises:
        ConvMAEError: no address is to be had, or one is taken.
    """
    host, port = settings.host, settings.port
    try:
        found = [
            one
            for name in (LOCALHOST if host.lower() == "localhost" else (host,))
            for one in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "that is no name of a host"
        raise ConvMAEError(f"cannot listen on {host}:{port} ({reason}); check CONVMAE_HOST") from None
    listeners: list[socket.socket] = []
    missing = ""
    for family, address in sorted({(family, target[0]) for family, _, _, _, target in found}):
        try:
            listeners.append(_listener(family, str(address), port))
            port = listeners[0].getsockname()[1]  # all have the one that the first was given
        except OSError as error:
            missing = error.strerror or str(error)
            if error.errno not in NO_SUCH_ADDRESS:  # such as ::1, as which `localhost` is known without IPv6 too
                for listener in listeners:
                    listener.close()
                advice = "choose another CONVMAE_HOST or CONVMAE_PORT"
                raise ConvMAEError(f"cannot listen on {host}:{port} ({missing}); {advice}") from None
    if not listeners:
        raise ConvMAEError(f"cannot listen on {host}:{port} ({missing}); choose another CONVMAE_HOST")
    return listeners


def _listener(family: int, address: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # `::` is for IPv4 too, whatever the system's default
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        listener.bind((address, port))
    except OSError:
        listener.close()
        raise
    return listener


def fill_standard_streams() -> None:
    """Puts the null device where a standard stream is closed.

    The next file or connection would else get its number, and with it what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # Python has found them closed
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def announce(predictors: Predictors, listeners: list[socket.socket], root_path: str) -> None:
    """Prints the addresses, each model's name, and the licence of its weights."""
    names = [listener.getsockname()[:2] for listener in listeners]
    shown = [f"http://{f'[{host}]' if ':' in host else host}:{port}" for host, port in names]
    behind = f", behind a proxy under {root_path}" if root_path else ""
    lines = [f"ConvMAE server on {' and '.join(shown)}  (page at /, interface at /docs{behind}, Ctrl+C to stop)"]
    batching = batching_backends(predictors)
    for name, predictor in predictors.items():
        manifest = predictor.manifest
        batches = f" in batches of up to {batching[name].sizes[-1]}" if name in batching else ""
        lines.append(
            f"  {name}: {manifest.task}, {len(manifest.classes)} classes; "
            f"runs in {describe_backend(predictor.backend)}{batches}"
        )
        lines.append(f"  licence of its weights: {printable(manifest.licence.name)}")
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:  # a pipe that nobody reads any more, or a full disk, is no reason not to answer
        logger.warning("standard output cannot be written (%s), and is left alone", error.strerror)
        sys.stdout = open(os.devnull, "w")  # else what is left in the buffer fails again at the end


if __name__ == "__main__":
    if len(sys.argv) > 1:
        given = " ".join(sys.argv[1:])
        sys.exit(f"error: python -m serving takes no arguments, got {given}; set CONVMAE_* variables")
    sys.exit(main())
