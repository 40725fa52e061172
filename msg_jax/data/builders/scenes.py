"""Write procedural scenes as a TFDS data set of ArrayRecord files, so that training does not render them again."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from msg_jax.clip import ClipSpec
from msg_jax.data.scenes import CLASS_NAMES, MAX_EVENTS, SPLITS, make_scene

_SHARD = 512  # scenes


@dataclasses.dataclass(kw_only=True)
class ScenesConfig(tfds.core.BuilderConfig):
    """The parameters of the data set. Its name, and so its folder, encodes all of them."""

    clip: ClipSpec
    seed: int
    sizes: Mapping[str, int]


def record_features(clip: ClipSpec) -> tfds.features.FeaturesDict:
    """The features of a stored record. The waveform is int16; `TfdsSource` converts it to float32."""

    def tensor(shape, dtype):
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "video": tensor((clip.video_frames, clip.video_px, clip.video_px, 3), np.uint8),
            "clip_video": tensor((clip.clip_video_frames, clip.clip_video_px, clip.clip_video_px, 3), np.uint8),
            "waveform": tensor((clip.audio_samples,), np.int16),
            "caption": tfds.features.Text(),
            "events": tensor((MAX_EVENTS, 3), np.float32),
            "has_events": tfds.features.Scalar(np.bool_),
        }
    )


def _example(index: int, split: str, config: ScenesConfig) -> tuple[int, dict]:
    """(index, stored record) of one scene."""
    scene = make_scene(config.seed, split, index, config.clip)
    return index, scene | {"waveform": np.round(scene["waveform"] * 32767.0).astype(np.int16)}


class Scenes(tfds.core.ShardBasedBuilder):
    """Procedural multi-event scenes with exact event times (`msg_jax.data.scenes`); scene i of a split is record i.

    Built shard by shard: TFDS's usual builder holds a split in memory, and needs TensorFlow from 1 GB on.
    """

    VERSION = tfds.core.Version("1.0.0")  # increase it whenever `make_scene` changes its scenes

    def __init__(self, *, map_scenes: Callable[..., Iterable] = map, **kwargs):
        super().__init__(**kwargs)
        self._map_scenes = map_scenes

    @property
    def _config(self) -> ScenesConfig:
        assert isinstance(self.builder_config, ScenesConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        config = self._config
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=record_features(config.clip),
            metadata=tfds.core.MetadataDict(
                class_names=list(CLASS_NAMES), clip=config.clip.to_dict(), seed=config.seed
            ),
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable[[], Iterable]]]:
        config = self._config
        total = sum(config.sizes.values())
        progress = tqdm.tqdm(total=total, desc=f"scenes {config.name}", unit="scene", mininterval=1.0, disable=None)

        def shard(split: str, indices: range) -> Iterable[tuple[int, dict]]:
            for example in self._map_scenes(functools.partial(_example, split=split, config=config), indices):
                yield example
                progress.update()

        return {
            split: [functools.partial(shard, split, range(size)[at : at + _SHARD]) for at in range(0, size, _SHARD)]
            for split, size in config.sizes.items()
        }


def prepare_scenes(data_dir: str, clip: ClipSpec, seed: int, sizes: Mapping[str, int]) -> str:
    """Writes the scenes below `data_dir`, unless they exist, and returns their folder, for `TfdsSource`.

    `sizes` is the number of scenes of each split. An interrupted build is never mistaken for a finished one.
    """
    fingerprint = hashlib.sha256(json.dumps(clip.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
    name = "_".join([f"clip{fingerprint}", f"seed{seed}", *(str(sizes[split]) for split in SPLITS)])
    config = ScenesConfig(name=name, clip=clip, seed=seed, sizes={split: sizes[split] for split in SPLITS})
    make_builder = functools.partial(Scenes, config=config, data_dir=data_dir, file_format="array_record")
    builder = make_builder()
    if builder.is_prepared():
        return str(builder.data_path)
    if sum(sizes.values()) < _SHARD:  # too few to be worth starting processes
        builder.download_and_prepare()
        return str(builder.data_path)
    # spawn: a forked process may hang, because JAX runs threads
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        make_builder(map_scenes=functools.partial(pool.map, chunksize=16)).download_and_prepare()
    return str(builder.data_path)
