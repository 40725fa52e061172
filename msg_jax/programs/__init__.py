"""What a configuration can run; its field `program` says which."""

import pathlib

from msg_jax.config.schema import Config, FolderEvaluation
from msg_jax.folders import compare, evaluate
from msg_jax.programs import stages, sweep


def run(config: Config | FolderEvaluation, workdir: str | pathlib.Path) -> None:
    """Run the program of `config` in the folder `workdir`. Raises UserError."""
    root = pathlib.Path(workdir)
    if isinstance(config, FolderEvaluation):
        {"evaluate_folder": evaluate.run, "compare": compare.run}[config.program](config, root)
    else:
        {"stages": stages.run, "sweep": sweep.run}[config.program](config, root)
