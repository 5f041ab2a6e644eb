"""The base of all settings that a user writes, and the types of values that many of them have."""

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed. Larger ones are none to NumPy."""
NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
"""Pattern of a name that is also the name of a file or folder. It leads into no other folder."""
Name = Annotated[str, Field(pattern=NAME, max_length=100)]
"""Such a name. With what is put around it, it is no longer than file systems take."""


class Settings(BaseModel):
    """Settings that a user writes. They are closed to keys that they do not know, and do not change once read.

    Numbers are finite, and `true` and `false` are no numbers. The string below a field says what it means.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, given: Any) -> Any:
        for name, field in cls.model_fields.items() if isinstance(given, dict) else ():
            if _holds_boolean(given.get(name)) and not _takes_boolean(field.annotation):
                raise ValueError(
                    f"{name}: got {given[name]!r:.100}, allowed: neither true nor false, also written yes and "
                    "no, on and off; put quotes around a text"
                )
        return given


def _holds_boolean(value: Any) -> bool:
    """Returns whether a value is a boolean, or a list or a mapping of which one is."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
    return any(isinstance(one, bool) for one in values)


def _takes_boolean(annotation: Any) -> bool:
    """Returns whether a type may hold a boolean. A section's own fields are looked at when the section is."""
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation is bool or is_section or any(map(_takes_boolean, get_args(annotation)))
