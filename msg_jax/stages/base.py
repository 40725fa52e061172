"""Trains the base model on extracted features: by default an MM-DiT with conditional flow matching."""


from msg_jax.data.features import FeatureSource
from msg_jax.infra import checkpoint, logging
from msg_jax.run.run import Run
from msg_jax.stages import alignment
from msg_jax.storage import Path
from msg_jax.tasks.flow import FlowTask


def make(run: Run, folder: Path, seed: int | None) -> str:
    section, initial = run.config.base, None
    assert seed is not None
    if section.initial == "released":
        initial = run.load_released("mmdit")
        if not section.steps:
            logging.info("%-13s is the released network, unchanged", "base")
            return checkpoint.export(folder / "params", initial)
    source = FeatureSource(run.folder("extract") / "train")
    kept = alignment.best(run, source) if section.keep_share < 1 else None
    task = FlowTask(run, source, section, seed, initial, kept=kept, ema_decay=section.ema_decay)
    state = run.fit(task, section, folder, seed=seed)
    return checkpoint.export(folder / "params", task.result(state))
