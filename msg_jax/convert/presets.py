"""Identify the released network of a checkpoint."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from msg_jax.convert.weights import Tensors
from msg_jax.errors import UserError

Config = TypeVar("Config")


def choose(
    config: Config | str | None, presets: Mapping[str, Config], tensors: Tensors, name: str,
    shape: Callable[[Config], tuple[int, ...]], source: str,
) -> Config:
    """Return `config` itself, the preset of that name, or, for None, the preset that fits the shape of tensor `name`.

    `shape` maps a preset to the shape of that tensor. Raises UserError if no preset fits.
    """
    if isinstance(config, str):
        if config not in presets:
            raise UserError(f"unknown preset {config!r}: choose one of {', '.join(presets)}")
        return presets[config]
    if config is not None:
        return config
    found = getattr(tensors.get(name), "shape", None)
    for preset in presets.values():
        if shape(preset) == found:
            return preset
    known = ", ".join(f"{shape(preset)} in {label}" for label, preset in presets.items())
    raise UserError(f"{source} is no released network of this kind: its tensor {name} has shape {found}, not {known}")
