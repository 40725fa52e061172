"""The flags `--config=NAME_OR_FILE[:PRESET]`, `--config.SECTION.FIELD=VALUE` and `--workdir`."""

import functools
import pathlib
import re

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from msg_jax.config import tree
from msg_jax.config.schema import Config, FolderEvaluation
from msg_jax.errors import UserError, fail
from msg_jax.methods import KINDS
from msg_jax.recipes.runs import RECIPES


class _Parser(ConfigFileFlagParser):
    """Loads a recipe by name, or by the path of a file with a `get_config`, for ml_collections to override."""

    def parse(self, path: str) -> ConfigDict:
        name, _, preset = path.partition(":")
        if name in RECIPES:
            config = RECIPES[name](*([preset] if preset else []))
        elif name.endswith(".py") and pathlib.Path(name).exists():
            config = super().parse(path)
        else:
            raise UserError(f"--config={path} is neither a file nor a recipe: use one of {', '.join(RECIPES)}.")
        if not isinstance(config, Config | FolderEvaluation):
            raise UserError(f"{name}: get_config must return a msg_jax.config.schema.Config.")
        return ConfigDict(tree.to_dict(config) | {"root": type(config).__name__}).lock()


_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe or config file, e.g. avp_rpo:smoke or configs/avp_rpo.py")
flags.FLAGS["config"].parser = _Parser("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run (default: runs/PRESET)")


def parse(argv: list[str]) -> list[str]:
    """absl's flag parser. A mistake in a flag or a setting ends the process with one sentence and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is None:
            fail("--config is required, for example --config=avp_rpo:smoke.")
        config()
        return rest
    except UserError as error:
        fail(str(error))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        fail(_sentence(error))


@functools.cache
def config() -> Config | FolderEvaluation:
    """The configuration with its overrides, read-only. Raises UserError."""
    values = _CONFIG.value.to_dict()
    root = {"Config": Config, "FolderEvaluation": FolderEvaluation}[values.pop("root")]
    return tree.from_dict(root, values, KINDS)


def workdir() -> str:
    return _WORKDIR.value or f"runs/{config().preset}"


def _sentence(error: Exception) -> str:
    """One sentence from ml_collections' messages, which quote each other or hold a traceback."""
    text = str(error).replace("\\n", "\n").replace("\\'", "'").strip(" '\"\n")
    nested = "Traceback" in text or "Attempted" in text
    sentence = text.splitlines()[-1].strip() if nested else " ".join(text.split())
    if isinstance(error, KeyError | AttributeError) and text.isidentifier():
        return f"--config has no field {text}."
    return re.sub(r"^(\w+)' Did you mean (.*) instead of .*", r"--config has no field \1: did you mean \2?", sentence)
