"""`membart serve`: look for a port, say where the page is, answer until Ctrl-C."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pretrain.errors import UserError
from tools import models

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI


def serve(
    model: models.Model,
    overrides: models.Overrides = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8765,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let --host be another address than this machine's own.")
    ] = False,
    device: models.Device = "",
) -> None:
    """Talk with a fine-tuned model on a local web page that shows what its memory holds."""
    with open_door(model, overrides, port, host, allow_remote, device) as (server, door):
        print("Ctrl-C ends", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[door])


@contextmanager
def open_door(
    model: Path, overrides: list[str] | None, port: int, host: str, allow_remote: bool, device: str
) -> Iterator[tuple[uvicorn.Server, socket.socket]]:
    """A server with its model, and the socket that it is to answer at; says where that is.

    Raises:
        UserError: an address for others without `allow_remote`, a taken port, no such model or device.
    """
    from tools.finetuning import load_fitted
    from tools.serve.app import LOCAL, make_app

    if host not in LOCAL and not allow_remote:
        raise UserError(
            "others could talk with the model there, and nobody is asked who he is",
            where=f"--host {host}",
            mend="an SSH tunnel to 127.0.0.1, or --allow-remote if that is wanted",
        )
    with listen(host, port) as door:
        server = make_server(make_app(load_fitted(model, overrides, device), names(host)))
        number = door.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{number}/")
        if host in LOCAL:
            print(f"from another machine: ssh -L {number}:{shown}:{number} {socket.gethostname()}")
        else:
            print(f"warning: whoever reaches {shown}:{number} can use this server", file=sys.stderr)
        yield server, door


def names(host: str) -> tuple[str, ...]:
    """The names by which a browser may call a server that listens at `host`."""
    from tools.serve.app import LOCAL

    return LOCAL if host in LOCAL else (*LOCAL, host, socket.gethostname(), socket.getfqdn())


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: the address is not this machine's, or the port is taken.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        door = socket.socket(family, kind)
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(address)
            door.listen()
        except OSError:
            door.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot listen there: {reason}", where=f"{host}:{port}", mend="another --port"
        ) from None
    return door


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server that ends on SIGINT and SIGTERM; a reply that is being made has three seconds left."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=120,  # a person thinks longer than the five seconds of the default
            timeout_graceful_shutdown=3,
        )
    )
