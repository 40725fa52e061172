"""The command `msg-jax`.

    msg-jax train     --config=RECIPE[:PRESET] [--workdir=DIR] [--config.FIELD=VALUE ...]
    msg-jax generate  VIDEO_OR_FOLDER ... --checkpoint=DIR --out=DIR [--FLAG=VALUE ...]
    msg-jax evaluate  --config.generated=DIR [--config.reference=DIR] [--workdir=DIR]
    msg-jax weights   get VARIANT [--to=DIR] [--accept-licence]
    msg-jax app       --checkpoint=DIR | --weights=DIR [--FLAG=VALUE ...]
    msg-jax compile   --config=RECIPE[:PRESET] --topology=NAME [--stage=NAME,...] [--mesh=...] [--batch=N] [--json=FILE]
    msg-jax doctor    [--weights=DIR]

`msg-jax COMMAND --help` lists the flags of a command.
"""

from collections.abc import Sequence
import sys

import msg_jax
from msg_jax.errors import fail

COMMANDS = ("train", "generate", "evaluate", "weights", "app", "compile", "doctor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    name, *arguments = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
    elif name == "--version":
        print(msg_jax.__version__)
    elif name == "generate":
        from msg_jax import generate

        return generate.main(arguments)
    elif name == "weights":
        from msg_jax import weights

        return weights.main(arguments)
    elif name == "app":
        from msg_jax.app import command

        return command.main(arguments)
    elif name == "doctor":
        from msg_jax import doctor

        return doctor.main(arguments)
    elif name == "compile":
        from msg_jax import compile as compiling

        compiling.command([f"msg-jax {name}", *arguments])
    elif name in COMMANDS:
        from msg_jax import main as program

        if name == "evaluate" and not any(argument.startswith("--config=") for argument in arguments):
            arguments = ["--config=evaluate", *arguments]
        sys.argv = [f"msg-jax {name}", *arguments]  # absl reads it
        program.command()
    else:
        fail(f"{name!r} is not a command: use one of {', '.join(COMMANDS)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
