"""What a configuration can run; its field `program` says which."""

import os

from msg_jax import storage
from msg_jax.config.schema import Config, FolderEvaluation
from msg_jax.folders import compare, evaluate
from msg_jax.infra import runtime
from msg_jax.programs import stages, sweep


def run(config: Config | FolderEvaluation, workdir: str | os.PathLike) -> None:
    """Run the program of `config` in the folder `workdir`, on a disk or in a bucket. Raises UserError."""
    root = storage.path(workdir)
    storage.check_bucket(root)
    runtime.check_shared(root)
    if isinstance(config, FolderEvaluation):
        {"evaluate_folder": evaluate.run, "compare": compare.run}[config.program](config, root)
    else:
        {"stages": stages.run, "sweep": sweep.run}[config.program](config, root)
