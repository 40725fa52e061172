"""Conversions of the configuration tree: dataclasses, nested dicts, and changes to either.

Errors name the field as the command line does, `config.base.hidden`.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import functools
import types
import typing
from typing import Any, Literal, TypeVar

from msg_jax.config.schema import Arm, Config, Preference
from msg_jax.errors import UserError

T = TypeVar("T")
ArmKinds = Mapping[str, type[Arm]]


def to_dict(value: Any) -> Any:
    """Dataclasses and mappings as nested dicts; an arm's dict also has its `kind`. Other values stay as they are."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": value.kind} | fields if isinstance(value, Arm) else fields
    if isinstance(value, Mapping):
        return {name: to_dict(each) for name, each in value.items()}
    return value


def from_dict(cls: type[T], values: Mapping[str, Any], arms: ArmKinds | None = None, path: str = "config") -> T:
    """The inverse of `to_dict`; fields that `values` lack keep their defaults.

    `arms` maps an arm's `kind` to its type; None leaves the arms out, for readers that only need the networks' settings.
    Raises UserError on an unknown field, a value of the wrong type, or a choice that does not exist.
    """
    if cls is Config and arms is None:
        values = {name: value for name, value in values.items() if name != "arms"}
    return cls(**_checked(cls, values, arms, path))


def replace(value: T, path: str = "config", **changes: Any) -> T:
    """A copy of a dataclass with other fields; a dict given for a dataclass field changes fields of that one.

    Raises UserError as `from_dict` does.

    >>> replace(Config(), data=dict(train=96)).data.train
    96
    """
    changes = {
        name: replace(getattr(value, name), f"{path}.{name}", **change)
        if isinstance(change, Mapping) and dataclasses.is_dataclass(getattr(value, name, None)) else change
        for name, change in changes.items()
    }
    return dataclasses.replace(value, **_checked(type(value), changes, None, path))  # type: ignore[type-var]


def preference_of(config: Config, arm: str) -> Preference:
    """The `preference` section with the arm's own changes."""
    return replace(config.preference, f"config.arms.{arm}.changes", **config.arms[arm].changes)


def _checked(cls: type, values: Mapping[str, Any], arms: ArmKinds | None, path: str) -> dict[str, Any]:
    known = _types(cls)
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, list(known), n=1)
            raise UserError(f"{path} has no field {name}" + (f": did you mean {close[0]}?" if close else "."))
    return {name: _value(known[name], value, arms, f"{path}.{name}") for name, value in values.items()}


@functools.cache
def _types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _value(kind: Any, value: Any, arms: ArmKinds | None, path: str) -> Any:
    """`value` as the type `kind`: JSON's lists become tuples, whole numbers become floats where a float is wanted."""
    origin, parameters = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in parameters:
            raise UserError(f"{path}={value!r} is not a choice: use one of {', '.join(map(repr, parameters))}.")
        return value
    if kind is Arm and not isinstance(value, Arm):
        return _arm(value, arms or {}, path)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return from_dict(kind, value, arms, path)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, (tuple, list)):
        return tuple(_value(parameters[0], each, arms, path) for each in value)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {name: _value(parameters[1], each, arms, f"{path}.{name}") for name, each in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Any:
        return _with_tuples(value)
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    wanted = getattr(kind, "__name__", str(kind)) if not isinstance(kind, types.GenericAlias) else str(kind)
    raise UserError(f"{path}={value!r} is not of the type {wanted}.")


def _with_tuples(value: Any) -> Any:
    """Nested dicts with tuples instead of lists."""
    if isinstance(value, Mapping):
        return {name: _with_tuples(each) for name, each in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _arm(value: Any, arms: ArmKinds, path: str) -> Arm:
    if not isinstance(value, Mapping) or value.get("kind") not in arms:
        kind = value.get("kind") if isinstance(value, Mapping) else value
        raise UserError(f"{path}.kind={kind!r} is not a method: use one of {', '.join(arms)}.")
    return from_dict(arms[value["kind"]], {name: each for name, each in value.items() if name != "kind"}, arms, path)
