"""python -m msg_jax.data.builders.vggsound --videos=FOLDER --csv=vggsound.csv --data_dir=FOLDER [--clip=MMAUDIO_44K]

Write VGGSound (Chen et al. 2020) as a TFDS data set of ArrayRecord files, from a folder of downloaded videos and the
official csv. Then train with --config.data.source=tfds:DATA_DIR/vggsound/NAME/1.0.0. TensorFlow is not needed.

Some 6 % of the videos are no longer online. Others have no sound, show one still picture or are too short. The build skips
them and lists each such row of the csv in `skipped.jsonl` beside the records.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
import csv
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from msg_jax import clip as clip_lib
from msg_jax.clip import ClipSpec
from msg_jax.data import media
from msg_jax.data.builders.scenes import record_features
from msg_jax.data.scenes import MAX_EVENTS, SPLITS
from msg_jax.errors import UnreadableError, UserError, fail

_SHARD = 256  # rows of the csv
VALIDATION_SHARE = 0.02  # of the official training split, by a hash of the video's id


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the csv: ten seconds of a video, from `start_sec` on."""

    youtube_id: str
    start_sec: int
    label: str
    split: str

    @property
    def name(self) -> str:
        """The customary name of the clip."""
        return f"{self.youtube_id}_{self.start_sec:06d}"


def read_rows(path: str | os.PathLike) -> list[Row]:
    """Reads the official csv (youtube id, start seconds, label, train or test; no header).

    A share of the training rows becomes the validation split, all clips of a video together. Raises UserError, naming the
    line, for a malformed row.
    """
    rows, path = [], pathlib.Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, fields in enumerate(csv.reader(file), 1):
                if len(fields) != 4 or not fields[1].isdecimal() or fields[3] not in ("train", "test"):
                    raise UserError(
                        f"{path} line {number} is not id,start seconds,label,train or test; use VGGSound's own csv"
                    )
                split = fields[3]
                if split == "train" and _hash(fields[0]) < VALIDATION_SHARE:
                    split = "validation"
                rows.append(Row(fields[0], int(fields[1]), fields[2], split))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); give VGGSound's own csv") from error
    return rows


def _hash(text: str) -> float:
    """A hash of the text in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32


def find_video(folder: pathlib.Path, row: Row) -> tuple[pathlib.Path, float]:
    """The file of a clip, and the second at which the clip begins in it.

    ID_SSSSSS.mp4 holds the clip, ID.mp4 the whole video. Raises UnreadableError if neither exists.
    """
    for stem, start_sec in ((row.name, 0.0), (row.youtube_id, float(row.start_sec))):
        for suffix in media.VIDEO_SUFFIXES:
            path = folder / f"{stem}{suffix}"
            if path.exists():
                return path, start_sec
    raise UnreadableError(str(folder / f"{row.name}.mp4"), "the file does not exist")


def read_clip(folder: pathlib.Path, row: Row, clip: ClipSpec) -> dict:
    """Reads the first window of a row's clip as a record. Raises UnreadableError, with the reason, if it is unusable."""
    path, start_sec = find_video(folder, row)
    grids = [
        media.FrameGrid(clip.video_hz, clip.video_px, clip.video_frames),
        media.FrameGrid(clip.clip_video_hz, clip.clip_video_px, clip.clip_video_frames),
    ]
    try:
        info = media.probe(path)
        if not info.has_audio:
            raise UserError(f"{path} has no audio stream")
        if info.duration_sec - start_sec + 1 / info.video_hz < clip.duration_sec:
            raise UserError(f"{path} ends {max(info.duration_sec - start_sec, 0):.2f} s into the clip, before one window of "
                            f"{clip.duration_sec:g} s")
        video, clip_video = media.read_video(path, grids, start_sec)
        waveform = media.read_audio(path, start_sec, clip.audio_samples, clip.audio_hz)
    except UserError as error:
        raise UnreadableError(str(path), str(error)) from error
    if not waveform.any():
        raise UnreadableError(str(path), "its sound is silence")
    if (video == video[:1]).all():
        raise UnreadableError(str(path), "it shows one still picture")
    return {
        "id": row.name, "video": video, "clip_video": clip_video, "waveform": waveform, "caption": row.label,
        "events": np.full((MAX_EVENTS, 3), -1, np.float32), "has_events": False,
    }


@dataclasses.dataclass(kw_only=True)
class VGGSoundConfig(tfds.core.BuilderConfig):
    """The parameters of the data set. Its name has a hash of clip and csv."""

    clip: ClipSpec
    videos: str
    rows: tuple[Row, ...]


def _example(row: Row, config: VGGSoundConfig) -> tuple[Row, dict | None, dict | None]:
    """(row, stored record, None), or (row, None, {"path", "reason"}) if the clip is unusable."""
    try:
        record = read_clip(pathlib.Path(config.videos), row, config.clip)
    except UnreadableError as error:
        return row, None, error.row
    return row, record | {"waveform": np.round(record["waveform"] * 32767.0).astype(np.int16)}, None


class VGGSound(tfds.core.ShardBasedBuilder):
    """VGGSound clips with their label as caption, built shard by shard."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, map_rows: Callable[..., Iterable] = map, **kwargs):
        super().__init__(**kwargs)
        self._map_rows = map_rows
        self.skipped: list[dict] = []

    @property
    def _config(self) -> VGGSoundConfig:
        assert isinstance(self.builder_config, VGGSoundConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        config = self._config
        return tfds.core.DatasetInfo(
            builder=self, description=self.__doc__, features=record_features(config.clip),
            metadata=tfds.core.MetadataDict(class_names=[], clip=config.clip.to_dict(), csv_rows=len(config.rows)),
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable[[], Iterable]]]:
        config = self._config
        progress = tqdm.tqdm(total=len(config.rows), desc="vggsound", unit="clip", mininterval=5.0, disable=None)

        def shard(rows: Sequence[Row]) -> Iterable[tuple[str, dict]]:
            for row, example, skipped in self._map_rows(functools.partial(_example, config=config), rows):
                progress.update()
                if skipped is not None:
                    self.skipped.append({"id": row.name, "split": row.split} | skipped)
                else:
                    yield row.name, example

        by_split = {split: [row for row in config.rows if row.split == split] for split in SPLITS}
        return {
            split: [functools.partial(shard, rows[at : at + _SHARD]) for at in range(0, len(rows), _SHARD)]
            for split, rows in by_split.items() if rows
        }


def prepare_vggsound(
    data_dir: str | os.PathLike, videos: str | os.PathLike, csv_path: str | os.PathLike, clip: ClipSpec, processes: int = 1
) -> str:
    """Builds the data set, unless it exists, with `skipped.jsonl` beside its records; returns their folder.

    Raises UserError if `videos` is not a folder, if the csv is malformed, or if no clip is in the folder.
    """
    if not pathlib.Path(videos).is_dir():
        raise UserError(f"{videos} is not a folder; give the folder of the downloaded videos")
    rows = tuple(read_rows(csv_path))
    contents = json.dumps([clip.to_dict(), [dataclasses.astuple(row) for row in rows]], sort_keys=True)
    name = f"clip{hashlib.sha256(contents.encode()).hexdigest()[:8]}"
    config = VGGSoundConfig(name=name, clip=clip, videos=str(videos), rows=rows)
    make = functools.partial(VGGSound, config=config, data_dir=str(data_dir), file_format="array_record")
    builder = make()
    if builder.is_prepared():
        return str(builder.data_path)
    if not any(_exists(pathlib.Path(videos), row) for row in rows):
        raise UserError(f"none of the {len(rows)} clips of {csv_path} is in {videos}; name the files ID_SSSSSS.mp4 or ID.mp4")
    if processes == 1:
        builder.download_and_prepare()
    else:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            builder = make(map_rows=functools.partial(pool.map, chunksize=4))
            builder.download_and_prepare()
    report = pathlib.Path(builder.data_path) / "skipped.jsonl"
    report.write_text("".join(json.dumps(row) + "\n" for row in builder.skipped))
    print(f"{len(rows) - len(builder.skipped)} of {len(rows)} clips written; see {report} for the others")
    return str(builder.data_path)


def _exists(videos: pathlib.Path, row: Row) -> bool:
    try:
        return bool(find_video(videos, row))
    except UnreadableError:
        return False


CLIPS: Mapping[str, ClipSpec] = {
    name: value for name, value in vars(clip_lib).items() if isinstance(value, ClipSpec)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", required=True)
    parser.add_argument("--csv", required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--clip", choices=sorted(CLIPS), default="MMAUDIO_44K")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    try:
        clip = CLIPS[arguments.clip]
        print(prepare_vggsound(arguments.data_dir, arguments.videos, arguments.csv, clip, arguments.processes))
    except UserError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
