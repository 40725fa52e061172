"""python -m msg_jax.main --config=configs/avp_rpo.py[:PRESET] [--workdir=DIR] [--config.FIELD=VALUE ...]"""

import re

from absl import app, flags
from ml_collections import config_flags

from msg_jax.errors import fail

_CONFIG = config_flags.DEFINE_config_file("config", None, "Stage config, e.g. configs/avp_rpo.py:smoke", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept (default: runs/PRESET)")
_PROFILE = flags.DEFINE_string("profile_steps", None, "A:B: writes a profiler's trace of the steps A to B - 1 of each training")
_EXPLAIN = flags.DEFINE_bool("explain_sharding", False, "Says how the first training step lies on the mesh, and ends")


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with every mistake in a flag or a config told in one sentence and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS.config is None:
            fail("--config is required, for example --config=configs/avp_rpo.py:smoke.")
        _ = flags.FLAGS.config.stages  # a config file that could not be loaded says so when it is first read
        return rest
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections quotes one message inside another, a whole traceback at worst: its last line is what was wrong.
        text = str(error).replace("\\n", "\n").replace("\\'", "'").strip(" '\"\n")
        several = "Traceback" in text or "Attempted" in text
        sentence = text.splitlines()[-1].strip() if several else " ".join(text.split())
        if isinstance(error, KeyError | AttributeError) and text.isidentifier():
            fail(f"--config has no field {text}.")
        fail(re.sub(r"^(\w+)' Did you mean (.*) instead of .*", r"--config has no field \1: did you mean \2?", sentence))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f"{argv[1]!r} is not a flag; settings are given as --config.FIELD=VALUE.")
    from msg_jax import stages  # after the flags: a mistake in them is told before jax is loaded
    from msg_jax.infra import runtime

    config = _CONFIG.value
    if "log" in config:  # an evaluation trains nothing
        config.log.update(profile_steps=_PROFILE.value or config.log.profile_steps, explain_sharding=_EXPLAIN.value)
    with runtime.sentences():
        runtime.start()
        stages.run(config, _WORKDIR.value or f"runs/{config.preset}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
