"""Planners find a `VisualPlan`. Each way to find one is a file in this folder, and a recipe's `plan` section names it.

Every planner class in a file of this folder is available to recipes. planner.py says what such a class defines.
"""

import importlib
import pkgutil
from typing import Annotated, Union

from pydantic import Field

from training.planners.planner import Planner


def planner_classes() -> tuple[type[Planner], ...]:
    """Returns the planner classes in the files of this folder, in the order of the file names."""
    found: list[type[Planner]] = []
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        if not module.ispkg:
            members = vars(importlib.import_module(module.name)).values()
            found += [member for member in members if _is_planner(member) and member.__module__ == module.name]
    return tuple(found)


def _is_planner(member: object) -> bool:
    """Returns whether `member` is a planner class with a name of its own, not a base class of planners."""
    return (
        isinstance(member, type)
        and issubclass(member, Planner)
        and member.model_fields["planner"].annotation is not str
    )


PLANNERS = planner_classes()
AnyPlanner = Annotated[Union[PLANNERS], Field(discriminator="planner")]  # noqa: UP007  of a list, not of names
"""The settings of any planner. The field `planner` tells which one."""
StackablePlanner = Annotated[
    Union[tuple(planner for planner in PLANNERS if not planner.combines_planners)],  # noqa: UP007
    Field(discriminator="planner"),
]
"""The settings of any planner that does not combine the plans of other planners."""
for _planner in PLANNERS:
    if _planner.combines_planners:
        _planner.model_rebuild(_types_namespace={"StackablePlanner": StackablePlanner})
