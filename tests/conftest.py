"""What every test may use."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: workers that share cores would spin on each other

import signal
from pathlib import Path

import pytest
from hypothesis import settings

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit that it is ignored

settings.register_profile("curvverify", deadline=None)  # the machine may be busy
settings.load_profile("curvverify")


@pytest.fixture(scope="session")
def shared_path() -> Path:
    """The folder of benchmark files beside the checkout; the test is skipped where there is none."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder
