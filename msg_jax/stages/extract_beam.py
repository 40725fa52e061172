"""python -m msg_jax.stages.extract_beam --config=configs/base.py:PRESET --workdir=DIR -- BEAM_OPTIONS

Decoding and feature extraction of a large data set on many workers: fills the shards of the stage `extract`, which then finds
nothing missing and only closes its folder. Start it once the codec and the encoders stand; run it again after any failure, it
makes what is missing. Needs apache-beam (requirements-beam.txt), and WORKDIR and data on storage that all workers see.

Clips that cannot be read are left out and named with their reason: in the shard, and in `skipped.jsonl` of the run.
"""

from collections.abc import Iterator
import sys

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from msg_jax.data.features import FeatureWriter
from msg_jax.errors import fail
from msg_jax.infra import logging, runtime
from msg_jax.stages import extract
from msg_jax.stages.common import Run
from msg_jax.stages.prepare import SPLITS

try:
    import apache_beam as beam
except ImportError:
    fail("msg_jax.stages.extract_beam needs apache-beam: pip install -r requirements-beam.txt.")


class WriteShard(beam.DoFn):
    """(split, shard) -> (split, shard, clips written, clips left out). The networks are loaded once by each worker."""

    def __init__(self, config: ConfigDict, workdir: str):
        self._config, self._workdir = config.to_json(), workdir

    def setup(self) -> None:
        import json

        logging.plain_terminal()
        self._run = Run.create(ConfigDict(json.loads(self._config)), self._workdir)
        self._extract = extract.Extractor(self._run)
        self._sources = {}

    def process(self, element: tuple[str, int]) -> Iterator[tuple[str, int, int, int]]:
        split, shard = element
        if split not in self._sources:
            self._sources[split] = self._run.source(split)
        source = self._sources[split]
        writer = FeatureWriter(self._run.folder("extract") / split, len(source), self._run.config.extract.shard_clips)
        for missing, indices in writer.missing:
            if missing == shard:
                written, skipped = extract.write_shard(self._run, self._extract, source, writer, shard, indices)
                yield split, shard, written, skipped


def missing_shards(run: Run) -> list[tuple[str, int]]:
    """Every shard that is not there yet."""
    found = []
    for split in SPLITS:
        folder = run.folder("extract") / split
        writer = FeatureWriter(folder, len(run.source(split)), run.config.extract.shard_clips)
        found += [(split, shard) for shard, _ in writer.missing]
    return found


def pipeline(root: beam.Pipeline, config: ConfigDict, workdir: str) -> beam.PCollection:
    """Writes all missing shards; gives (split, clips written, clips left out) of each split."""
    shards = missing_shards(Run.create(config, workdir))
    return (
        root
        | "shards" >> beam.Create(shards)
        | "spread" >> beam.Reshuffle()
        | "extract" >> beam.ParDo(WriteShard(config, workdir))
        | "counts" >> beam.Map(lambda done: (done[0], (done[2], done[3])))
        | "sum" >> beam.CombinePerKey(lambda counts: tuple(map(sum, zip(*counts))) or (0, 0))
    )


def main(argv: list[str]) -> None:
    config, workdir = flags.FLAGS.config, flags.FLAGS.workdir or f"runs/{flags.FLAGS.config.preset}"
    logging.plain_terminal()
    with runtime.sentences(), beam.Pipeline(argv=argv[1:]) as root:
        _ = pipeline(root, config, workdir) | beam.Map(
            lambda row: print(f"{row[0]}: {row[1][0]} clips written, {row[1][1]} left out", file=sys.stderr)
        )


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Stage config", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where the run is kept (default: runs/PRESET)")
    app.run(main)
