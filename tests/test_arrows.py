"""Who may import whom (docs/DESIGN.md), read from the source. A room is a folder of msg_jax, or a file beside them."""

import ast
import graphlib
import pathlib
import re

import pytest

from msg_jax.recipes import presets

ROOT = pathlib.Path(__file__).parents[1] / "msg_jax"
ANYONE = {"clip", "errors", "storage", ""}  # every room may import these; "" is msg_jax/__init__.py
ALLOWED = {
    # Contracts and leaves
    "": {"api"}, "clip": set(), "errors": set(), "storage": set(), "tables": set(), "types": set(),
    "config": set(),
    "data": set(),
    # Networks and what is computed with them
    "models": {"types"},
    "losses": {"types"},
    "preference": {"models", "types"},
    "evaluation": {"data", "tables", "types"},
    "infra": {"types"},
    "convert": {"models", "types"},
    "networks": {"config", "convert", "evaluation", "losses", "models", "preference", "types"},
    "inference": {"config", "convert", "data", "evaluation", "infra", "losses", "models", "networks", "preference", "types"},
    # Training
    "train": {"config", "infra", "types"},
    "run": {"config", "convert", "data", "inference", "infra", "networks", "train", "types"},
    "tasks": {"config", "data", "inference", "infra", "losses", "models", "networks", "run", "train", "types"},
    "stages": {"data", "evaluation", "inference", "infra", "losses", "models", "networks", "preference", "run", "tasks",
               "train", "types"},
    "methods": {"config", "data", "evaluation", "infra", "losses", "preference", "run", "tasks", "types"},
    # Evaluation
    "studies": {"config", "data", "evaluation", "inference", "infra", "losses", "methods", "models", "networks", "preference",
                "run", "types"},
    "folders": {"config", "convert", "data", "evaluation", "inference", "infra"},
    # Commands
    "recipes": {"config", "convert", "methods"},
    "programs": {"config", "convert", "data", "folders", "infra", "methods", "networks", "recipes", "run", "stages", "studies",
                 "tables"},
    "main": {"config", "infra", "programs", "recipes"},
    "generate": {"inference", "infra"},
    "weights": {"convert"},
    "api": {"data", "inference", "infra"},
    "app": {"api", "data", "infra"},
    "doctor": {"convert", "infra", "tables"},
    "compile": {"config", "convert", "inference", "infra", "methods", "networks", "programs", "recipes", "run",
                "stages", "tasks", "train"},
    "cli": {"app", "compile", "doctor", "generate", "main", "weights"},
}
WITHOUT_JAX = ("data", "config", "clip", "errors", "storage", "tables")


def _modules() -> dict[str, pathlib.Path]:
    """Every module of the package by its dotted name."""
    paths = {path.relative_to(ROOT.parent).with_suffix(""): path for path in sorted(ROOT.rglob("*.py"))}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


MODULES = _modules()


def _imports(name: str) -> set[str]:
    """The dotted names that a module imports, from inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _modules_of(names: set[str]) -> set[str]:
    """The package's modules among imported names; `msg_jax.clip.ClipSpec` is of `msg_jax.clip`."""
    found = set()
    for name in names:
        if name.split(".")[0] == "msg_jax":
            while name not in MODULES:
                name = name.rpartition(".")[0]
            found.add(name)
    return found


def _room(name: str) -> str:
    return [*name.split("."), ""][1]


GRAPH = {name: _modules_of(_imports(name)) for name in MODULES}
ARROWS = {(_room(name), _room(other)) for name, others in GRAPH.items() for other in others}


@pytest.mark.parametrize("name", MODULES)
def test_a_file_imports_only_the_rooms_it_may(name):
    room = _room(name)
    assert room in ALLOWED, f"{room} is a room that docs/DESIGN.md does not know"
    assert {_room(other) for other in GRAPH[name]} <= ALLOWED[room] | ANYONE | {room}


def test_every_allowed_arrow_is_used():
    assert [(room, other) for room, others in ALLOWED.items() for other in others if (room, other) not in ARROWS] == []
    assert set(ALLOWED) == {_room(name) for name in MODULES}


def test_rooms_make_no_circle():
    rooms = {room: {other for one, other in ARROWS if one == room != other} for room in ALLOWED}
    list(graphlib.TopologicalSorter(rooms).static_order())  # raises CycleError, naming the circle


def test_files_make_no_circle():
    list(graphlib.TopologicalSorter(GRAPH).static_order())


def test_data_loads_without_jax():
    for name in MODULES:
        if _room(name) in WITHOUT_JAX:
            libraries = {other.split(".")[0] for other in _imports(name)}
            assert not libraries & {"jax", "flax", "optax", "orbax"}, name
            assert {_room(other) for other in GRAPH[name]} <= set(WITHOUT_JAX) | {""}, name


def test_evaluation_knows_no_arm_by_name():
    """Labels of arms come from the methods, so that a new arm needs no change elsewhere."""
    arms = set(presets.ARMS | presets.study_arms(steps=150))
    inside = re.compile(rf"\b({'|'.join(arm for arm in arms if '_' in arm)})\b")  # the others are plain English
    for name, path in MODULES.items():
        if _room(name) in ("evaluation", "studies", "programs"):
            tree = ast.parse(path.read_text())
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    assert node.value not in arms and not inside.search(node.value), f"{name}:{node.lineno}"
