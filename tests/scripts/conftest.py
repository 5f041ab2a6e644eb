from collections.abc import Callable
from functools import partial

import pytest

from tests.conftest import Done


@pytest.fixture
def run(request, run_script) -> Callable[..., Done]:
    """Runs `python scripts/NAME.py arguments ...`, where the test stands in test_NAME.py."""
    return partial(run_script, request.path.name.removeprefix("test_"))
