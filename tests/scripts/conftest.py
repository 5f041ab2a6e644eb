from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.checkpoints.tiny_dense import save_tiny_dense
from tests.conftest import Done


@pytest.fixture
def run(request, run_script) -> Callable[..., Done]:
    """Runs `python scripts/NAME.py arguments ...`, where the test stands in test_NAME.py."""
    return partial(run_script, request.path.name.removeprefix("test_"))


@pytest.fixture(scope="session")
def dense_folder(tmp_path_factory) -> Path:
    """A tiny dense model with its processor, to be read only."""
    return save_tiny_dense(tmp_path_factory.mktemp("models") / "dense")
