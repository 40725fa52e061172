"""Backbones of an evaluation: signal statistics, the networks of a run, and released networks.

A backbone turns one clip into named arrays. Its name is part of its metrics' names (evaluation/measurement.py).
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import importlib.metadata
import importlib.util
import pathlib

import jax
import numpy as np

from msg_jax import networks, storage
from msg_jax.clip import MMAUDIO_16K, ClipSpec
from msg_jax.config import tree
from msg_jax.config.schema import Config
from msg_jax.convert import bundle, from_torch, weights
from msg_jax.data import frontends, mel
from msg_jax.data.clips import Held, Pair, Reader, stamp
from msg_jax.errors import UserError
from msg_jax.evaluation import detector, events, onsets, waveforms
from msg_jax.inference import desync
from msg_jax.inference.desync import DeSync
from msg_jax.infra import checkpoint, logging
from msg_jax.infra.record import RECORD, read_record
from msg_jax.models import sf_cavp, synchformer
from msg_jax.types import Module, Params

MOTION_PX = 48


@dataclasses.dataclass(frozen=True)
class Backbone:
    """`extract` computes features of one clip.

    `side` says what it reads: the sound of either side, the frames (`pictures`), sound and frames together (`both`), or the
    sounds of both sides together (`pair`). Where a feature is undefined for a clip, the text `FEATURE_reason` takes its place.
    `version` identifies everything but the clip that the features depend on. `threads`: whether several may run at once.
    """

    name: str
    side: str  # sound | pictures | both | pair
    version: str
    extract: Callable[..., dict[str, np.ndarray]]  # of a Pair for a pair, else of a Reader or of what is Held
    threads: bool = False
    pictures: Callable[..., np.ndarray] | None = None  # of `both`: what it knows of the frames, which `extract` then takes too


def light() -> list[Backbone]:
    """Backbones without weights: log-mel statistics, spectral flux, motion energy, STFT distance."""
    version = f"{onsets.MEL} 1"
    return [
        Backbone("signal", "sound", version, _signal, threads=True),
        Backbone("motion", "pictures", f"{onsets.MOTION_HZ} {MOTION_PX} 1", _motion, threads=True),
        Backbone("stft", "pair", f"{waveforms.HZ} {waveforms.RESOLUTIONS} 1", _stft, threads=True),
    ]


def _signal(clip: Reader | Held) -> dict[str, np.ndarray]:
    """`logmel` (2 M,): mean and standard deviation over time of each log-mel band; `flux` (T,): its spectral flux."""
    log_mel = onsets.log_mel(clip.waveform(onsets.MEL.audio_hz))
    return {"logmel": onsets.statistics(log_mel).astype(np.float32), "flux": onsets.flux(log_mel).astype(np.float32)}


def _motion(clip: Reader | Held) -> dict[str, np.ndarray]:
    return {"motion": onsets.motion_energy(clip.frames(onsets.MOTION_HZ, MOTION_PX, squash=True))}


def _stft(clip: Pair) -> dict[str, np.ndarray]:
    return {"stft": np.array(waveforms.stft_distance(*clip.waveforms(waveforms.HZ)))}


def pesq() -> tuple[list[Backbone], dict[str, str]]:
    """PESQ, or the reason why it is not available."""
    if importlib.util.find_spec("pesq") is None:
        return [], {"pesq": "it needs the package pesq: pip install 'msg_jax[pesq]'"}
    return [Backbone("pesq", "pair", f"{importlib.metadata.version('pesq')} 1", _pesq)], {}


def _pesq(clip: Pair) -> dict[str, np.ndarray]:
    try:
        return {"pesq": np.array(waveforms.pesq(*clip.waveforms(waveforms.HZ)))}
    except ValueError as undefined:
        return {"pesq_reason": np.array(str(undefined))}


# The networks of a run


def of_run(sf_cavp_folder: str, judge_folder: str, duration_sec: float) -> list[Backbone]:
    """SF-CAVP and the judge from the folders of their stages, if given.

    They read a clip in consecutive windows of the run's clip length. Raises UserError if a folder is not such a stage, or if
    the clips are shorter than a window.
    """
    found = []
    if sf_cavp_folder:
        found.append(_sf_cavp(*_stage(sf_cavp_folder, "sf_cavp", duration_sec)))
    if judge_folder:
        found.append(_judge(*_stage(judge_folder, "judge", duration_sec)))
    return found


def _stage(folder: str, name: str, duration_sec: float):
    path = storage.path(folder)
    record = read_record(path)
    if record is None or record["stage"] != name or not record["finished"]:
        raise UserError(f"config.{name}={folder} is not the folder of a finished {name} stage ({RECORD}): give one, or none.")
    if not checkpoint.is_complete(path / "params"):
        raise UserError(f"config.{name}={folder} holds no network, because that run's data had no event truth: leave it out.")
    clip = ClipSpec.from_dict(record["clip_spec"])
    if duration_sec < clip.duration_sec:
        raise UserError(f"config.{name}={folder} was trained on clips of {clip.duration_sec:g} s, and the clips here last "
                        f"{duration_sec:g} s; leave it out.")
    return tree.from_dict(Config, record["config"]), clip, checkpoint.load(path / "params"), record["digest"]


def _windows(values: np.ndarray, hz: float, clip: ClipSpec, size: int) -> np.ndarray:
    """Consecutive windows (W, size, ...) of `clip.duration_sec`, the last one padded with zeros."""
    step = clip.duration_sec * hz
    count = int((len(values) + 1e-6) // step)
    starts = [round(i * step) for i in range(count)]
    padded = np.pad(values, [(0, size), *[(0, 0)] * (values.ndim - 1)])
    return np.stack([padded[start : start + size] for start in starts])


def _log_mels(reader: Reader | Held, clip: ClipSpec) -> np.ndarray:
    windows = _windows(reader.waveform(clip.audio_hz), clip.audio_hz, clip, clip.audio_samples)
    return np.stack([mel.log_mel(window, clip.mel) for window in windows])


def _sf_cavp(config: Config, clip: ClipSpec, params, digest: str) -> Backbone:
    model = networks.reward_model(config, clip)
    unweighted = sf_cavp.RewardWeights(semantic=0.0, dynamic=0.0, window=0.0, events=0.0)  # the terms are reported apart

    @jax.jit
    def embed(frames, log_mels):
        video = model.apply({"params": params}, networks.to_unit(frames), method="encode_video")
        audio = model.apply({"params": params}, log_mels, method="encode_audio")
        return sf_cavp.score(video, audio, unweighted), video.semantic.mean(axis=0), audio.semantic.mean(axis=0)

    def extract(reader: Reader | Held) -> dict[str, np.ndarray]:
        frames = _windows(reader.frames(clip.video_hz, clip.video_px), clip.video_hz, clip, clip.video_frames)
        scores, video, audio = jax.tree.map(np.asarray, embed(frames, _log_mels(reader, clip)))
        terms = {f"sf_cavp_{name}": np.asarray(scores[name].mean()) for name in sf_cavp.TERMS}
        return terms | {"sf_cavp_video": video, "sf_cavp_audio": audio}

    return Backbone("sf_cavp", "both", digest, extract)


def _judge(config: Config, clip: ClipSpec, params, digest: str) -> Backbone:
    classes = len(params["Dense_0"]["bias"])
    model = networks.judge(tuple(map(str, range(classes))))
    detect = jax.jit(functools.partial(detector.detect, model, params))

    def extract(reader: Reader | Held) -> dict[str, np.ndarray]:
        probability, embedding = jax.tree.map(np.asarray, detect(_log_mels(reader, clip)))
        lists = events.decode_events(probability, clip.mel.frames_hz, config.judge.threshold, config.judge.min_gap_sec)
        starts = np.arange(len(lists)) * clip.duration_sec
        found = np.concatenate([listed + np.array([0, start]) for listed, start in zip(lists, starts)])
        return {"judge": embedding, "judge_events": found}

    return Backbone("judge", "sound", digest, extract)


# Released networks

FEATURES = {"vggish": ("vggish",), "panns": ("panns", "panns_logits"), "synchformer": ("synchformer",)}


LEAST_SEC = {"vggish": 0.98, "panns": 0.5, "synchformer": desync.LEAST_SEC}
"""The shortest clip that a network can read."""


def released(
    folder: str, duration_sec: float, sizes: synchformer.SynchformerConfig | None = None
) -> tuple[list[Backbone], dict[str, str]]:
    """The released networks whose files are in a folder, and the reason for each feature that is not available.

    `sizes` are those of the Synchformer, by default of the released one.

    Raises UserError if the folder does not exist, or if a file is not the network that its name says.
    """
    if folder and not pathlib.Path(folder).is_dir():
        raise UserError(f"config.weights={folder} is not a folder: give the folder of released files, or none.")
    found, reasons = [], {}
    for name, files in bundle.EVALUATION.items():
        path = _file(folder, name)
        if path is not None and duration_sec >= LEAST_SEC[name]:
            found.append(_synchformer(path, sizes) if name == "synchformer" else _RELEASED[name](path))
            continue
        if path is not None:
            short = f"it needs {LEAST_SEC[name]} s, and the clips last {duration_sec:.2f} s"
            reasons |= dict.fromkeys(FEATURES[name], short)
            continue
        wanted = " or ".join(file.name for file in files)
        where = f"{folder} has no {wanted}" if folder else f"it needs {wanted} in config.weights"
        reasons |= dict.fromkeys(FEATURES[name], f"{where} ({bundle.DOCUMENT})")
    return found, reasons


def _file(folder: str, name: str) -> pathlib.Path | None:
    """The first of a network's files that is in the folder."""
    found = (bundle.find(pathlib.Path(folder), file) for file in bundle.EVALUATION[name] if folder)
    return next(filter(None, found), None)


def _vggish(path: pathlib.Path) -> Backbone:
    model, variables, digest = _network("vggish", path)
    apply = jax.jit(model.apply)

    def extract(reader: Reader | Held) -> dict[str, np.ndarray]:
        return {"vggish": np.asarray(apply(variables, frontends.vggish_examples(reader.waveform(frontends.VGGISH_HZ))))}

    return Backbone("vggish", "sound", digest, extract)


def _panns(path: pathlib.Path) -> Backbone:
    model, variables, digest = _network("panns", path)
    apply = jax.jit(model.apply)

    def extract(reader: Reader | Held) -> dict[str, np.ndarray]:
        log_mel = frontends.panns_log_mel(reader.waveform(model.config.mel.audio_hz), model.config.mel)
        embedding, logits = apply(variables, log_mel[None])
        return {"panns": np.asarray(embedding[0]), "panns_logits": np.asarray(logits[0])}

    return Backbone("panns", "sound", digest, extract)


def _synchformer(path: pathlib.Path, sizes: synchformer.SynchformerConfig | None) -> Backbone:
    network = DeSync(path, sizes)

    def pictures(reader: Reader | Held) -> np.ndarray:
        return network.encode_video(reader.frames(MMAUDIO_16K.video_hz, network.video_px))

    def extract(reader: Reader | Held, video: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """`synchformer` (2,): offset in seconds between sound and frames, in the first and in the last 4.8 s."""
        audio = network.encode_audio(reader.waveform(frontends.SYNCHFORMER_HZ))
        return {"synchformer": network.offsets_sec(pictures(reader) if video is None else video, audio)}

    return Backbone("synchformer", "both", stamp(path), extract, pictures=pictures)


def cached_offsets(
    folder: str, ids: Sequence[str], video: Sequence[np.ndarray | None], audio: Sequence[np.ndarray | None]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (clip, offsets (2,)) from cached Synchformer features, if the released network's file is in `folder`."""
    path = _file(folder, "synchformer")
    if path is None:
        return
    network = DeSync(path)
    for name, frames, sound in zip(ids, video, audio):
        if frames is not None and sound is not None and min(len(frames), len(sound)) >= synchformer.WINDOW_SEGMENTS:
            yield name, network.offsets_sec(frames, sound)


_RELEASED = {"vggish": _vggish, "panns": _panns}


def _network(kind: str, path: pathlib.Path) -> tuple[Module, Params, str]:
    """A released network, its variables, and the stamp of its file."""
    logging.info("reading %s", path)
    model, variables = from_torch(kind, weights.read_checkpoint(path), source=str(path))
    return model, jax.tree.map(jax.numpy.asarray, variables), stamp(path)
