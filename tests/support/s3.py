"""A real S3 server of the test run's own, spoken to over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["CREDENTIALS", "s3_server"]

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_CONFIG_FILE": "/dev/null",
}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's server on a free port; gives its URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
