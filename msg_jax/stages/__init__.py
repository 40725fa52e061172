"""The plan: which stage needs which, and `run`, which makes whatever is missing."""

from collections.abc import Callable, Iterable
import pathlib
import time

from ml_collections import ConfigDict

from msg_jax import networks
from msg_jax.errors import UserError
from msg_jax.infra import logging
from msg_jax.stages import (
    alignment,
    avp_rpo,
    base,
    candidates,
    codec,
    encoders,
    evaluate,
    evaluate_folder,
    extract,
    figures,
    judge,
    prepare,
    reward_study,
    sf_cavp,
    sound_events,
    sweep,
)
from msg_jax.stages.common import Run, Stage, ensure, read_record

Digests = dict[tuple[str, int | None], str]
"""Of the stages made or found, by name and seed."""


def plan(config: ConfigDict) -> dict[str, Stage]:
    """Every stage that this config can run, by name; a preference arm is a stage. Raises UserError on an arm that cannot be."""
    avp_rpo.check_arms(config)
    encoder_needs = {
        "separate": ("codec",), "sf_cavp": ("sf_cavp",),
    }.get(config.encoders.kind, ("prepare",))
    encoder_sections = ("encoders", "sf_cavp") if config.encoders.kind == "second_sf_cavp" else ("encoders",)

    def files(field: str, *kinds: str) -> tuple[str, ...]:
        return kinds if networks.is_released(config, field) else ()

    encoder_files = files("encoders.kind", "clip", "synchformer")
    augment = ("augment",) if "augment" in config else ()
    filtered = ("alignment",) if config.base.get("keep_share", 1.0) < 1 and config.base.keep_by == "alignment" else ()
    # The file of an MM-DiT also brings the features of the empty text, and the mean and deviation of the latents.
    null_text, statistics = files("encoders.kind", "mmdit"), files("codec.kind", "mmdit")
    stages = [
        Stage("prepare", prepare.make, alone=True),
        Stage("codec", codec.make, ("prepare",), ("codec",), weights=files("codec.kind", "vae", "bigvgan")),
        Stage("judge", judge.make, ("prepare",), ("judge",)),
        Stage("sf_cavp", sf_cavp.make, ("prepare",), ("sf_cavp",)),
        Stage("sound_events", sound_events.make, ("sf_cavp",), ("sound_events",)),
        Stage("encoders", encoders.make, encoder_needs, encoder_sections, weights=encoder_files),
        Stage("extract", extract.make, ("codec", "encoders"), ("extract", *augment), weights=null_text),
        Stage("alignment", alignment.make, ("sf_cavp", "extract"), ("reward",)),
        Stage("base", base.make, ("extract", *filtered), ("base",), seeded=True, weights=null_text or statistics),
        Stage("figures", figures.make, ("judge", "base"), ("evaluate",), seeded=True),
    ]
    reward = ("sf_cavp", "sound_events") if config.sound_events.kinds else ("sf_cavp",)
    judge_needs = ("base", *reward, "judge")
    decisive = tuple(f"preference.{name}" for name in candidates.DECISIVE)
    stages.append(Stage("candidates", candidates.make, judge_needs, (*decisive, "reward"), seeded=True))
    for name, arm in config.arms.items():
        ranks = arm.ranking not in ("none", "rules", "merged")
        needs = list(judge_needs) if ranks else ["base"]
        if ranks and not candidates.changes_candidates(arm):
            needs.append("candidates")
        needs += [origin for origin in avp_rpo.made_from(arm).values() if origin != "base"]
        sections = ("preference", f"arms.{name}", *(("reward",) if ranks else ()))
        stages.append(Stage(name, avp_rpo.arm(name), tuple(needs), sections, seeded=True))
    evaluate_needs = ("judge", *reward, "base", *config.arms)
    stages.append(Stage("evaluate", evaluate.make, evaluate_needs, ("evaluate", "arms", "reward")))
    if "reward_study" in config:
        stages.append(Stage("reward_study", reward_study.make, judge_needs, ("reward_study", "reward")))
    return {stage.name: stage for stage in stages}


def run(config: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Runs `config.stages` and first whichever stages they need and `workdir` lacks; or an evaluation (configs/evaluate.py)."""
    if "generated" in config:
        evaluate_folder.run(config, workdir)
        return
    if "sweep" in config:
        sweep.run(config, workdir, plan, _maker)
        return
    begun = time.monotonic()
    this = Run.create(config, workdir)
    networks.check(config, this.clip)
    stages = plan(config)
    for name in config.stages:
        if name not in stages:
            raise UserError(f"config.stages names {name!r}: there is no such stage; choose from {', '.join(stages)}.")
    if any(stages[name].weights for name in _needed(stages, config.stages)):
        logging.info("%-13s released files in %s", "weights", this.released.folder)
    if not config.data.source:
        raise UserError("config.data.source is not given: --config.data.source=folder:PATH, or tfds:NAME_OR_FOLDER.")
    digests: Digests = {}
    make = _maker(this, stages, digests)
    for name in config.stages:
        for seed in config.seeds:
            make(name, seed)
    _summary(this, digests, time.monotonic() - begun)


def _maker(this: Run, stages: dict[str, Stage], digests: Digests | None = None) -> Callable[[str, int | None], str]:
    """A function that makes a stage for a seed, and first all that it needs; `digests` are filled with what there is."""
    digests = {} if digests is None else digests

    def make(name: str, seed: int | None) -> str:
        stage = stages[name]
        if not stage.seeded:
            seed = None
        if (name, seed) not in digests:
            upstream = {
                f"{need}" if not (stages[need].seeded and seed is None) else f"seed_{each}/{need}": make(need, each)
                for need in stage.needs
                for each in (this.config.seeds if stages[need].seeded and seed is None else (seed,))
            }
            digests[name, seed] = ensure(this, stage, seed, upstream)
        return digests[name, seed]

    return make


def _needed(stages: dict[str, Stage], names: Iterable[str]) -> set[str]:
    """These stages and all that they need."""
    return {each for name in names for each in (name, *_needed(stages, stages[name].needs))}


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
