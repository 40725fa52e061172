"""The plan: which stage needs which, and `run`, which makes whatever is missing."""

import pathlib
import time

from ml_collections import ConfigDict

from msg_jax.errors import UserError
from msg_jax.infra import logging
from msg_jax.stages import avp_rpo, base, candidates, codec, encoders, evaluate, extract, judge, prepare, sf_cavp
from msg_jax.stages.common import Run, Stage, ensure, read_record


def plan(config: ConfigDict) -> dict[str, Stage]:
    """Every stage that this config can run, by name; a preference arm is a stage."""
    encoder_needs = ("sf_cavp",) if config.encoders.kind == "sf_cavp" else ("codec",)
    stages = [
        Stage("prepare", prepare.make),
        Stage("codec", codec.make, ("prepare",), ("codec",)),
        Stage("judge", judge.make, ("prepare",), ("judge",)),
        Stage("sf_cavp", sf_cavp.make, ("prepare",), ("sf_cavp",)),
        Stage("encoders", encoders.make, encoder_needs, ("encoders",)),
        Stage("extract", extract.make, ("codec", "encoders"), ("extract",)),
        Stage("base", base.make, ("extract",), ("base",), seeded=True),
    ]
    judge_needs = ("base", "sf_cavp", "judge")
    stages.append(Stage("candidates", candidates.make, judge_needs, ("preference",), seeded=True))
    for name, arm in config.arms.items():
        needs = ("base",) if arm.ranking == "none" else (*judge_needs, "candidates")
        stages.append(Stage(name, avp_rpo.arm(name), needs, ("preference", f"arms.{name}"), seeded=True))
    evaluate_needs = ("judge", "sf_cavp", "base", *config.arms)
    stages.append(Stage("evaluate", evaluate.make, evaluate_needs, ("evaluate", "arms")))
    return {stage.name: stage for stage in stages}


def run(config: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Runs `config.stages` and first whichever stages they need and `workdir` lacks."""
    begun = time.monotonic()
    this = Run.create(config, workdir)
    stages = plan(config)
    digests: dict[tuple[str, int | None], str] = {}

    def make(name: str, seed: int | None) -> str:
        stage = stages[name]
        if not stage.seeded:
            seed = None
        if (name, seed) not in digests:
            upstream = {
                f"{need}" if not (stages[need].seeded and seed is None) else f"seed_{each}/{need}": make(need, each)
                for need in stage.needs
                for each in (config.seeds if stages[need].seeded and seed is None else (seed,))
            }
            digests[name, seed] = ensure(this, stage, seed, upstream)
        return digests[name, seed]

    for name in config.stages:
        if name not in stages:
            raise UserError(f"config.stages names {name!r}: there is no such stage; choose from {', '.join(stages)}.")
        for seed in config.seeds:
            make(name, seed)
    _summary(this, digests, time.monotonic() - begun)


def _summary(this: Run, digests: dict, seconds: float) -> None:
    logging.info("\n%-36s %9s  %s", "stage", "seconds", "result")
    for name, seed in digests:
        folder = this.folder(name, seed)
        logging.info("%-36s %9.1f  %s", folder.relative_to(this.root), read_record(folder)["seconds"], digests[name, seed][:16])
    logging.info("%-36s %9.1f  %s\n", "this call", seconds, this.root)
    table = this.root / "table.txt"
    if ("evaluate", None) in digests and table.exists():
        logging.info("%s", table.read_text())
        logging.info("report: %s", this.root / "report" / "index.html")
