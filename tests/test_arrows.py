"""Who may import whom (docs/DESIGN.md), read from the source."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "msg_jax"
ANYONE = {"clip", "errors", ""}
ALLOWED = {
    "clip": set(), "errors": set(),
    "types": set(),
    "data": {"data"},
    "models": {"models", "types"},
    "losses": {"losses", "types"},
    "sampling": {"losses", "types"},
    "preference": {"preference", "sampling", "models", "losses", "types"},
    "evaluation": {"evaluation", "data", "models", "losses", "types"},
    "infra": {"infra", "types"},
    "convert": {"convert", "models", "types"},
    "train": {"infra", "types"},
    "networks": {"convert", "models", "losses", "sampling", "evaluation", "preference", "types"},
    "system": {"sampling", "models", "infra", "convert", "networks", "types"},
    "generate": {"system", "data", "infra", "types"},
    "doctor": {"convert", "infra", "types"},
    "stages": {"stages", "train", "sampling", "data", "models", "losses", "preference", "evaluation", "infra", "networks",
               "system", "convert", "types"},
    "main": {"stages", "infra"},
}


def _imports(path: pathlib.Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        rooms |= {[*name.split("."), ""][1] for name in names if name.split(".")[0] == "msg_jax"}
    return rooms


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_the_rooms_it_may(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    assert room in ALLOWED, f"{room} is a room that docs/DESIGN.md does not know"
    assert _imports(path) <= ALLOWED[room] | ANYONE | {room}


def test_data_loads_without_jax():
    for path in (ROOT / "data").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("jax", "flax", "optax") for name in names), path
