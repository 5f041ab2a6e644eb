from pathlib import Path

import pytest

from tests.checkpoints.tiny_dense import save_tiny_dense


@pytest.fixture(scope="session")
def dense_folder(tmp_path_factory) -> Path:
    """A tiny dense model that knows nothing, with its processor, to be read only."""
    return save_tiny_dense(tmp_path_factory.mktemp("models") / "dense", biases=False)
