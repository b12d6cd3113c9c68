"""Validation of numbers that users give."""

import dataclasses
from typing import TYPE_CHECKING

from iwae.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

COUNTED = 2**31 - 1
"""The largest int32."""


def require(condition: bool, message: str) -> None:
    """`InputError` with this message unless the condition holds."""
    if not condition:
        raise InputError(message)


def check_counts(section: "DataclassInstance") -> None:
    """`InputError` if a whole number in its fields, or in tuples of these, exceeds an int32."""
    for f in dataclasses.fields(section):
        for number in _whole_numbers(getattr(section, f.name)):
            require(
                number <= COUNTED,
                f"{f.name} = {number} was given, but whole numbers can be at most {COUNTED:,}; "
                f"give a smaller one.",
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
    """`InputError` for fewer importance samples than 1, or more than an int32 can count."""
    require(k >= 1, f"{name} = {k} was given, but it must be at least 1; give {name} = 1 or more.")
    require(
        k <= COUNTED,
        f"{name} = {k} was given, but it can be at most {COUNTED:,}; give fewer.",
    )


def check_seed(seed: int) -> None:
    """`InputError` unless 0 ≤ seed < 2^32."""
    range_ = "a seed is a whole number from 0 to 2^32 - 1"
    require(0 <= seed < 2**32, f"seed = {seed} was given, but {range_}.")
