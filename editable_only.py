"""The build backend: setuptools, for editable installs alone.

The checkout is the product. A wheel would put `data`, `training`, `modeling` and `checkpoints` at the top of somebody's
site-packages, without `train.py`, the recipes and the demo's model.
"""

from typing import NoReturn

from setuptools.build_meta import build_editable, get_requires_for_build_editable, prepare_metadata_for_build_editable

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
]


def _refuse(*arguments: object, **settings: object) -> NoReturn:
    raise SystemExit("error: Squint runs from its checkout and makes no package; in the checkout, pip install -e .")


build_sdist = build_wheel = get_requires_for_build_sdist = get_requires_for_build_wheel = _refuse
