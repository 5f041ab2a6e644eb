"""Tests with lmms-eval. `make test-lmms-eval` installs it in an environment of its own; elsewhere they are left out."""

import os
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("lmms_eval") else ["test_*.py"]
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
