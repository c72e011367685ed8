"""What every test relies on."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_acts() -> None:
    """Also where the tests run in the background of a script, whose shell has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
