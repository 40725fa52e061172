"""What a configuration can run; its field `program` says which."""

import pathlib
import re

from msg_jax.config.schema import Config, FolderEvaluation
from msg_jax.errors import UserError
from msg_jax.folders import compare, evaluate
from msg_jax.infra import runtime
from msg_jax.programs import stages, sweep


def run(config: Config | FolderEvaluation, workdir: str | pathlib.Path) -> None:
    """Run the program of `config` in the folder `workdir`. Raises UserError.

    A URL is no folder: as a path, `gs://bucket/run` would become the local folder `gs:/bucket/run`.
    """
    if re.match(r"[A-Za-z]\w+:/", str(workdir)):
        raise UserError(f"--workdir={workdir} is a URL, but a run needs a folder: mount the bucket (launch/gke.sh, xpk.sh and "
                        "tpu_pod.sh mount BUCKET at /workdir) and give a folder below the mount.")
    root = pathlib.Path(workdir)
    runtime.check_shared(root)
    if isinstance(config, FolderEvaluation):
        {"evaluate_folder": evaluate.run, "compare": compare.run}[config.program](config, root)
    else:
        {"stages": stages.run, "sweep": sweep.run}[config.program](config, root)
