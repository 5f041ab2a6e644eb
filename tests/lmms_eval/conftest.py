"""Tests with lmms-eval, which `make test-lmms-eval` installs in an environment of its own. Elsewhere they are not there."""

import os
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("lmms_eval") else ["test_*.py"]
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
