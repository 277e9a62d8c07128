"""Serve a page on this machine on which one drops an image and sees what the networks say of it.

    python -m kd_jax.serve --model=PLACE [--teacher=PLACE] [--port=8000]

PLACE is what `kd_jax.predict` takes: the workdir of a run, a stored network, an exported file or a
folder of them; `--teacher=own` is the teacher of the run. The page shows both side by side, each
with its latency. `POST /predict` answers the same as JSON, described in `/openapi.json`. Only this
machine can reach the server unless `--host` says otherwise, nothing is written to disk, and SIGTERM
or Ctrl-C stops it after what it has begun. docs/serve.md says more.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence

from absl import flags

from kd_jax.inference import opening
from kd_jax.runtime import huge_pages, processor
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, run_command
from kd_jax.serve import names
from kd_jax.serve.uploads import Limits

_MODEL = flags.DEFINE_string(
    "model", None, "Directory of a run or a stored network, an exported file, or a folder of them."
)
_TEACHER = flags.DEFINE_string(
    "teacher", None, "Another such place, to compare with; own: the teacher of the run."
)
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", opening.KEPT, [opening.KEPT, "best", "last"], "As of kd_jax.predict."
)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines ask too."
)
_PORT = flags.DEFINE_integer(
    "port", 8000, "Port to listen on; 0: any that is free.", lower_bound=0, upper_bound=65_535
)
_MAX_MB = flags.DEFINE_float("max_mb", 10.0, "Largest image file, in megabytes.", lower_bound=0.001)
_MAX_MEGAPIXELS = flags.DEFINE_float(
    "max_megapixels", 30.0, "Largest image, in millions of pixels.", lower_bound=0.001,
    upper_bound=150.0,
)  # fmt: skip
_SECONDS = flags.DEFINE_float(
    "seconds", 20.0, "Time to receive an image, and again to answer.", lower_bound=0.1
)
_REQUESTS = flags.DEFINE_integer(
    "requests", 64, "Images at once, received or waiting; more are sent away.", lower_bound=1
)
_NAMES = flags.DEFINE_string(
    "names", None,
    "Further names under which it is asked for, with commas between them, such as a proxy's.",
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Open the networks, and answer until a signal."""
    del argv
    if not _MODEL.value:
        raise UserError(
            "--model is missing: expected the workdir of a run, a directory with model.json, or "
            "an exported file"
        )
    try:
        from kd_jax.serve import app, connections
    except ImportError as error:
        raise UserError(
            f"the server needs packages that are not installed here ({error}): pip install "
            "'kd_jax[serve]'"
        ) from None
    limits = Limits(
        int(_MAX_MB.value * 1e6), int(_MAX_MEGAPIXELS.value * 1e6), _SECONDS.value, _REQUESTS.value
    )
    others = names.given(_NAMES.value)
    with _listening(_HOST.value, _PORT.value) as listener:
        host, port = listener.getsockname()[:2]
        networks = opening.classifiers(
            _MODEL.value, _CHECKPOINT.value, _TEACHER.value, processor.cores(), "--teacher"
        )
        allowed = names.Names(host, (*others, _HOST.value))
        application, worker = app.create(networks, limits, allowed)
        worker.warm_up()
        for who, network in networks.items():
            logger.info("%s: %s, %s", who, network.name, network.origin)
        logger.info(
            "serving on http://%s:%d/ (%s); Ctrl-C stops it",
            f"[{host}]" if ":" in host else host,
            port,
            "only this machine can reach it" if allowed.is_local else
            "OTHER MACHINES CAN REACH IT, and there is no password",
        )  # fmt: skip
        server = connections.server(application, limits)
        # uvicorn raises the signal that stopped it once more, for whoever was there before it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        server.run(sockets=[listener])
        worker.close()
    logger.info("stopped")


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
      UserError: the address is none of this machine, or the port is taken.
    """
    try:
        (family, *_, address) = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen on --host={host} --port={port} ({reason}): take another --port, or "
            "--port=0 for one that is free; --host must be an address of this machine"
        ) from None


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
