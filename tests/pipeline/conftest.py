"""What tests of several rooms set up."""

from collections.abc import Iterator

import pytest
from s3_server import Faults, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Faults]]:
    """An S3 server on loopback: its address, and the faults that it is told to have."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with s3_server() as (url, faults):
        yield url, faults
