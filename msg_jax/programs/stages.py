"""The program `stages`: make the target stages of a run, and whatever they need."""

import time

from msg_jax.config.schema import Config
from msg_jax.errors import UserError
from msg_jax.infra import logging
from msg_jax.infra.record import read_record
from msg_jax.programs import checks
from msg_jax.programs.plan import Digests, maker, needed, plan
from msg_jax.run.run import Run
from msg_jax.run.stage import Stage
from msg_jax.storage import Path
from msg_jax.tables import aligned


def run(config: Config, root: Path) -> None:
    """Make `config.stages` in `root`; finished stages are not made again. Raises UserError on settings that cannot run."""
    begun = time.monotonic()
    checks.check(config)
    this, stages = Run.create(config, root), plan(config)
    for name in config.stages:
        if name not in stages:
            raise UserError(f"config.stages names {name!r}, which is not a stage: choose from {', '.join(stages)}.")
    ahead = needed(stages, config.stages)
    if any(stages[name].weights for name in ahead):
        assert this.released is not None
        logging.info("%-13s released files in %s", "weights", this.released.folder)
    checks.check_batches(config, (name for name in ahead if not _is_finished(this, stages[name])), this.mesh)
    digests: Digests = {}
    make = maker(this, stages, digests)
    for name in config.stages:
        for seed in config.seeds:
            make(name, seed)
    _summarise(this, digests, time.monotonic() - begun)


def _is_finished(run: Run, stage: Stage) -> bool:
    """Whether the stage need not be made again, for any seed."""
    seeds = run.config.seeds if stage.seeded else (None,)
    return all((read_record(run.folder(stage.name, seed)) or {}).get("finished", False) for seed in seeds)


def _summarise(this: Run, digests: Digests, seconds: float) -> None:
    rows = [["stage", "seconds", "digest"]]
    for name, seed in digests:
        folder = this.folder(name, seed)
        record = read_record(folder)
        assert record is not None
        rows.append([str(folder.relative_to(this.root)), f"{record['seconds']:.1f}", digests[name, seed][:16]])
    rows.append(["this call", f"{seconds:.1f}", str(this.root)])
    logging.info("\n%s\n", aligned(rows))
    table = this.root / "table.txt"
    if ("evaluate", None) in digests and table.exists():
        logging.info("%s", table.read_text())
        logging.info("report: %s", this.root / "report" / "index.html")
