"""What numbers must be, wherever they are given."""

import dataclasses
from typing import TYPE_CHECKING

from iwae.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

COUNTED = 2**31 - 1
"""What an int32 counts to."""


def require(condition: bool, message: str) -> None:
    """`InputError` with this message unless the condition holds."""
    if not condition:
        raise InputError(message)


def check_counts(section: "DataclassInstance") -> None:
    """`InputError` for a whole number in it, or in a list in it, that is not counted to."""
    for f in dataclasses.fields(section):
        for number in _whole_numbers(getattr(section, f.name)):
            require(
                number <= COUNTED,
                f"{f.name} = {number} was given, but whole numbers go up to {COUNTED:,}; give a "
                f"smaller one.",
            )


def _whole_numbers(value: object) -> list[int]:
    if isinstance(value, tuple):
        return [number for part in value for number in _whole_numbers(part)]
    return [value] if type(value) is int else []


def check_at_least_one(name: str, value: int) -> None:
    """`InputError` for a setting below 1."""
    flag = name.replace("_", "-")
    require(value >= 1, f"{name} = {value} was given, but --{flag} must be at least 1.")


def check_draws(k: int, name: str = "k") -> None:
    """`InputError` for fewer draws than 1, or more than can be counted."""
    require(
        k >= 1, f"{name} = {k} was given, but at least 1 draw is needed; give {name} = 1 or more."
    )
    up_to = f"draws are counted up to {COUNTED:,}"
    require(k <= COUNTED, f"{name} = {k} was given, but {up_to}; give fewer.")


def check_seed(seed: int) -> None:
    """`InputError` unless 0 ≤ seed < 2^32."""
    range_ = "a seed is a whole number from 0 to 2^32 - 1"
    require(0 <= seed < 2**32, f"seed = {seed} was given, but {range_}.")
