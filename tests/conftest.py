"""What all tests share: no network, no accelerator unless asked for, few threads, and the folder of real data."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch, transformers or deepspeed are imported; what the caller has set stays.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(name, value)

# A suite started in the background ignores Ctrl-C, and its children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: a shared machine is slow at times. The same examples at every run, so that a failure repeats.
settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("house")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the tree."""
    return ROOT


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data; a test that needs it is skipped where it is absent."""
    folder = Path(os.environ.get("VLP_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder (set VLP_TEST_DATA to one)")
    return folder
