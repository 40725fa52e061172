"""A TFDS data set with the features of a record, as a random-access source."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from msg_jax import storage
from msg_jax.clip import ClipSpec
from msg_jax.data.scenes import MAX_EVENTS
from msg_jax.errors import UserError


class TfdsSource:
    """Records of one split of a TFDS data set stored as ArrayRecord.

    `path_or_name` is the folder that holds `dataset_info.json`, or a registered name below `data_dir`. A folder in a bucket is
    copied to the cache first (`storage.cached`).

    The waveform may be stored as int16 or float32. Class names come from the metadata entry `class_names`.

    Raises UserError if the data set or the split does not exist, or if a feature is missing or disagrees with `clip`.
    """

    def __init__(self, path_or_name: str, clip: ClipSpec, split: str, data_dir: str | None = None):
        self.spec, self.split = clip, split
        self.skipped: list[dict] = []
        builder = _open(path_or_name, data_dir)
        if split not in builder.info.splits:
            raise UserError(f"{path_or_name} has no split {split!r}, only {sorted(builder.info.splits)}; choose one of these")
        _check(path_or_name, builder.info.features, clip)
        self.class_names = tuple((builder.info.metadata or {}).get("class_names", ()))
        self._records = builder.as_data_source(split)  # pyright: ignore[reportCallIssue] a decorator hides its signature

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        record = self._records[index]
        waveform = record["waveform"]
        if waveform.dtype == np.int16:
            waveform = waveform.astype(np.float32) / np.float32(32767.0)
        return {
            "id": record["id"].decode(),
            "video": record["video"],
            "clip_video": record["clip_video"],
            "waveform": waveform,
            "caption": record["caption"].decode(),
            "events": record["events"],
            "has_events": bool(record["has_events"]),
        }


def _open(path_or_name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    folder = storage.path(path_or_name)
    if (folder / "dataset_info.json").exists():
        return tfds.builder_from_directory(str(storage.cached(folder)))
    try:
        builder = tfds.builder(path_or_name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UserError(
            f"tfds:{path_or_name} is neither a folder with a dataset_info.json nor a data set known to TFDS; "
            "give the folder of the version, such as DATA_DIR/name/config/1.0.0"
        ) from error
    if not builder.is_prepared():
        raise UserError(f"the data set {path_or_name} is not built in {builder.data_path}; build it or set data_dir")
    return builder


def _check(name: str, features: Any, clip: ClipSpec) -> None:
    """Raises UserError unless `features` are those of a record of `clip`."""
    text = ((), (np.object_,))
    expected = {
        "id": text,
        "video": ((clip.video_frames, clip.video_px, clip.video_px, 3), (np.uint8,)),
        "clip_video": ((clip.clip_video_frames, clip.clip_video_px, clip.clip_video_px, 3), (np.uint8,)),
        "waveform": ((clip.audio_samples,), (np.int16, np.float32)),
        "caption": text,
        "events": ((MAX_EVENTS, 3), (np.float32,)),
        "has_events": ((), (np.bool_,)),
    }
    for field, (shape, dtypes) in expected.items():
        if field not in features:
            raise UserError(f"{name} has no feature {field!r}; build it with {', '.join(expected)}")
        stored = features[field]
        if tuple(stored.shape) != shape:
            raise UserError(
                f"{name}: {field} has shape {tuple(stored.shape)} but the configured clip asks for {shape}; change config.clip "
                "or build the data set again"
            )
        if stored.np_dtype not in dtypes:
            wanted = " or ".join(np.dtype(dtype).name for dtype in dtypes)
            raise UserError(
                f"{name}: {field} is stored as {np.dtype(stored.np_dtype).name} but must be {wanted}; build the data set again"
            )
