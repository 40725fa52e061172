"""python -m msg_jax.main --config=RECIPE_OR_FILE[:PRESET] [--workdir=DIR] [--config.FIELD=VALUE ...]

Recipes: avp_rpo, base, sf_cavp, sync_dpo, student, joint, reward_study, vta_ldm, vta_ldm_study, evaluate.
"""

from absl import app
from absl import flags as absl_flags

from msg_jax.config import tree
from msg_jax.config.schema import Config
from msg_jax.errors import fail
from msg_jax.recipes import flags

_PROFILE = absl_flags.DEFINE_string("profile_steps", None, "A:B: trace the steps A to B - 1 of each training")
_EXPLAIN = absl_flags.DEFINE_bool("explain_sharding", False, "Print the sharding of the first training step and exit")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f"{argv[1]!r} is not a flag; settings are given as --config.FIELD=VALUE.")
    from msg_jax import programs
    from msg_jax.infra import runtime

    config = flags.config()
    if isinstance(config, Config):
        profile = _PROFILE.value or config.log.profile_steps
        explain = _EXPLAIN.value or config.log.explain_sharding
        config = tree.replace(config, log=dict(profile_steps=profile, explain_sharding=explain))
    with runtime.user_errors():
        runtime.start()
        programs.run(config, flags.workdir())


def command(argv: list[str] | None = None) -> None:
    """The command line of `python -m msg_jax.main` and of `msg-jax train`."""
    app.run(main, argv, flags_parser=flags.parse)


if __name__ == "__main__":
    command()
