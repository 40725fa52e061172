"""python -m msg_jax.programs.extract_beam --config=configs/base.py:PRESET --workdir=DIR -- BEAM_OPTIONS

Extracts the features of a large data set on many workers with Apache Beam. It writes the shards of the stage `extract`, which
then only has to close its folder. Run it when codec and encoders are finished. After a failure run it again: it makes the
missing shards. It needs `pip install msg_jax[beam]`, and WORKDIR and data on storage that all workers share.

Clips that cannot be read are left out. Their reasons are in the shard and in the run's `skipped.jsonl`.
"""

from collections.abc import Iterator
import sys
from typing import Any

from absl import app

from msg_jax.config.schema import Config
from msg_jax.data.features import FeatureWriter
from msg_jax.errors import fail
from msg_jax.infra import logging, runtime
from msg_jax.recipes import flags
from msg_jax.run.run import Run
from msg_jax.stages import extract
from msg_jax.stages.prepare import SPLITS

try:
    import apache_beam as beam
except ImportError:
    fail("msg_jax.programs.extract_beam needs apache-beam: pip install 'msg_jax[beam]'.")


class WriteShard(beam.DoFn):
    """(split, shard) -> (split, shard, clips written, clips left out). Each worker loads the networks once."""

    def __init__(self, config: Config, workdir: str):
        self._config, self._workdir = config, workdir

    def setup(self) -> None:
        logging.plain_terminal()
        self._run = Run.create(self._config, self._workdir)
        self._extract = extract.extractor(self._run)
        self._sources = {}

    def process(self, element: tuple[str, int]) -> Iterator[tuple[str, int, int, int]]:
        split, shard = element
        if split not in self._sources:
            self._sources[split] = extract.source(self._run, split)
        source = self._sources[split]
        writer = FeatureWriter(self._run.folder("extract") / split, len(source), self._run.config.extract.shard_clips)
        for missing, indices in writer.missing:
            if missing == shard:
                read = extract.reader(self._run, source, indices)
                written, skipped = extract.write_shard(self._run, self._extract, read, writer, shard, indices)
                yield split, shard, written, skipped


def missing_shards(run: Run) -> list[tuple[str, int]]:
    """The shards that are not written yet."""
    found = []
    for split in SPLITS:
        folder = run.folder("extract") / split
        writer = FeatureWriter(folder, len(extract.source(run, split)), run.config.extract.shard_clips)
        found += [(split, shard) for shard, _ in writer.missing]
    return found


def pipeline(root: beam.Pipeline, config: Config, workdir: str) -> Any:
    """Write all missing shards; yield (split, (clips written, clips left out)) of each split."""
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
    config, workdir = flags.config(), flags.workdir()
    if not isinstance(config, Config):
        fail("--config must be that of a run, for example configs/base.py.")
    with runtime.user_errors(), beam.Pipeline(argv=argv[1:]) as root:
        _ = pipeline(root, config, workdir) | beam.Map(
            lambda row: print(f"{row[0]}: {row[1][0]} clips written, {row[1][1]} left out", file=sys.stderr)
        )


if __name__ == "__main__":
    logging.plain_terminal()
    app.run(main, flags_parser=flags.parse)
