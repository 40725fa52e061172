"""Prepares the data: writes the procedural scenes once, or indexes a folder, and reports skipped files."""

import json

from msg_jax.infra import logging
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.storage import Path

SPLITS = ("train", "validation", "test")


def make(run: Run, folder: Path, seed: int | None) -> str:
    sources = {split: run.source(split) for split in SPLITS}
    skipped = {(row["path"], row["reason"]): row for source in sources.values() for row in source.skipped}
    logging.write_jsonl(run.root / "skipped.jsonl", skipped.values())
    for row in skipped.values():
        logging.info("skipped %s: %s", row["path"], row["reason"])
    facts = {
        "source": run.config.data.source,
        "clips": {split: len(source) for split, source in sources.items()},
        "skipped": len(skipped),
        "class_names": list(sources["train"].class_names),
    }
    logging.write_atomically(folder / "data.json", json.dumps(facts, indent=1) + "\n")
    logging.info("%-13s %s", "", ", ".join(f"{count} {split}" for split, count in facts["clips"].items()))
    return text_digest(json.dumps(facts))
