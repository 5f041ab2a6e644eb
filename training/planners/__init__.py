"""Planners: one file for each way to find a `VisualPlan`. A recipe's `plan` section names one.

The planner in each file of this folder is one that recipes may name. CONTRIBUTING.md says how to add one.
"""

import importlib
import pkgutil
from typing import Annotated, Union

from pydantic import Field

from training.planners.planner import Planner


def planner_classes() -> tuple[type[Planner], ...]:
    """Returns the planners in the files of this folder, in the order of the file names."""
    found: list[type[Planner]] = []
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        if not module.ispkg:
            members = vars(importlib.import_module(module.name)).values()
            found += [member for member in members if _is_planner(member) and member.__module__ == module.name]
    return tuple(found)


def _is_planner(member: object) -> bool:
    """Whether it is a planner that has a name, not a base of planners."""
    return (
        isinstance(member, type)
        and issubclass(member, Planner)
        and member.model_fields["planner"].annotation is not str
    )


PLANNERS = planner_classes()
AnyPlanner = Annotated[Union[PLANNERS], Field(discriminator="planner")]  # noqa: UP007  of a list, not of names
"""Any planner, told by its field `planner`."""
PartPlanner = Annotated[
    Union[tuple(planner for planner in PLANNERS if not planner.made_of_others)],  # noqa: UP007
    Field(discriminator="planner"),
]
"""Any planner that finds a plan of its own."""
for _planner in PLANNERS:
    if _planner.made_of_others:
        _planner.model_rebuild(_types_namespace={"PartPlanner": PartPlanner})
