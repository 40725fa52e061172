"""How the package uses its configuration, read from the source."""

import ast
from collections.abc import Mapping
import dataclasses
import pathlib
import typing

from msg_jax import methods
from msg_jax.config.schema import Arm, Config, FolderEvaluation
from msg_jax.infra import guard

ROOT = pathlib.Path(__file__).parents[2] / "msg_jax"
TREES = {path.relative_to(ROOT): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def _sections() -> dict[type, dict[str, typing.Any]]:
    """Every dataclass of the schema, with the types of its fields by name."""
    found, left = {}, [Config, FolderEvaluation, *methods.KINDS.values()]
    while left:
        kind = left.pop()
        if dataclasses.is_dataclass(kind) and kind not in found:
            hints = typing.get_type_hints(kind)
            found[kind] = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
            left += [each for hint in found[kind].values() for each in (hint, *typing.get_args(hint))]
    return found


SECTIONS = _sections()
VALUES = {  # fields whose own content may be searched: `name in config.arms`
    name for fields in SECTIONS.values() for name, hint in fields.items()
    if hint is str or (typing.get_origin(hint) or int) in (tuple, Mapping)
}
READ_AS_DICTS = {"SFCAVPLossWeights"}  # sections that functions take as dicts: their fields are keys
NAMES = {  # what code calls a section that it reads, beside `section` and the section's own name
    "Config": {"config"}, "FolderEvaluation": {"config", "_config"}, "Optimizer": {"config"}, "Reward": {"weights"},
    "StudiedReward": {"entry"}, "Guard": {"limits", "_limits"}, "ClipSpec": {"self"}, "MelSpec": {"self", "spec"},
}


def _chain(node: ast.AST) -> list[str]:
    """The names of `self.run.config.base`; [] for other expressions, such as `record["config"]["base"]`."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = _chain(node.value)
        return [*before, node.attr] if before else []
    return []


def _is_config(node: ast.AST) -> bool:
    return any("config" in name or name == "section" for name in _chain(node))


def _asks(node: ast.AST) -> bool:
    """Whether an expression asks if a config has a field."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
        return _is_config(node.func.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        asks = node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
        return asks and _is_config(node.args[0])
    if isinstance(node, ast.Compare):
        places = [place for test, place in zip(node.ops, node.comparators) if isinstance(test, ast.In | ast.NotIn)]
        return any(_is_config(place) and _chain(place)[-1] not in VALUES for place in places)
    return False


def test_what_counts_as_asking():
    asking = ("config.get('a')", "self.run.config.base.get('a', 3)", "'a' in config", "'a' not in run.config.base",
              "hasattr(section, 'a')", "getattr(self.config, 'a', None)", "'a' in section")
    fine = ("record['config'].get('a')", "'a' in record['config']", "name in config.arms", "'motion' in config.base.features",
            "getattr(config, name)", "options.get('a')", "for_config()", "'a' in rows")
    for sources, expected in ((asking, True), (fine, False)):
        for source in sources:
            assert any(map(_asks, ast.walk(ast.parse(source)))) is expected, source


def test_nobody_asks_whether_a_config_has_a_field():
    assert [f"{path}:{node.lineno}" for path, tree in TREES.items() for node in ast.walk(tree) if _asks(node)] == []


def test_only_the_flags_know_config_dicts():
    found = {
        str(path) for path, tree in TREES.items() for node in ast.walk(tree)
        if "ConfigDict" in (getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "name", ""))
        or (isinstance(node, ast.Import | ast.ImportFrom) and "ml_collections" in ast.unparse(node))
    }
    assert found == {"recipes/flags.py"}


def test_every_field_is_read():
    """As an attribute of something named as its section is, outside the rooms that define settings."""
    attributes, keys = set(), set()
    for path, tree in TREES.items():
        if path.parts[0] in ("config", "recipes"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and _chain(node.value):
                attributes.add((_chain(node.value)[-1], node.attr))
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                keys.add(node.slice.value)
    unread = set()
    for kind, fields in SECTIONS.items():
        names = {"section"} | NAMES.get(kind.__name__, set()) | {
            name for others in SECTIONS.values() for name, hint in others.items() if kind in (hint, *typing.get_args(hint))
        }
        if issubclass(kind, Arm):
            names |= {"self", "method", "arm"}
        for name in fields:
            read = name in keys if kind.__name__ in READ_AS_DICTS else any((each, name) in attributes for each in names)
            unread |= set() if read else {f"{kind.__name__}.{name}"}
    assert unread == {"Config.preset", "FolderEvaluation.preset"}  # the default --workdir, recipes/flags.py


def test_the_guard_s_settings_are_its_limits():
    """`run/run.py` passes the section as keyword arguments."""
    fields = {each.name: each.default for each in dataclasses.fields(guard.Limits)}
    assert fields == dataclasses.asdict(Config().guard)
