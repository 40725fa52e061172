"""Evaluates a folder of generated clips, alone or against a folder of references: `results.json`, `table.txt`, a report.

It can be repeated whenever clips were added. Features of each clip are cached in `features/` until its files change, so a
killed evaluation continues where it was. Several processes share the clips; the first one measures. No process holds the
videos and waveforms of more than a few clips.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
import json
from typing import Any

import jax
import numpy as np

from msg_jax import storage
from msg_jax.clip import ClipSpec
from msg_jax.config import tree
from msg_jax.config.schema import FolderEvaluation
from msg_jax.convert import av_benchmark
from msg_jax.data import clips as clips_lib
from msg_jax.data import multi_event
from msg_jax.data.clips import ClipFiles, Pair, Reader
from msg_jax.errors import UserError
from msg_jax.evaluation import measurement as measurement_lib
from msg_jax.evaluation import onsets, report
from msg_jax.folders.feature_cache import Extraction, Features, write
from msg_jax.inference import backbones
from msg_jax.infra import logging, runtime
from msg_jax.infra.record import RECORD, git_revision, read_record, versions
from msg_jax.storage import Path

Job = tuple[backbones.Backbone, str, Mapping[str, Reader | Pair]]  # what computes which side of which clips

SUBJECT = ("generated", "reference", "generated_cache", "reference_cache", "ids", "events", "duration_sec")
"""The settings that say what is evaluated; a --workdir holds one such evaluation."""
TABLES = "per_clip.npz"
EVENT_GROUPS = ((1, 1), (2, 3), (4, 7), (8, None))  # of events, where each is counted
CLASS_GROUPS = ((1, 1), (2, 2), (3, 3), (4, None))  # of classes of events, as lists of clips count them
LABELS = {None: "Generated", "1": "1 event"}
_LEAST_SEC = 0.5
_SYNCHFORMER_CACHED = ("pictures.synchformer_features", "generated.synchformer_features")
_LEAST_IN_GROUP = 2


def run(config: FolderEvaluation, root: Path) -> None:
    """Evaluate `config.generated` and write the results to `root`. Raises UserError."""
    if config.runs:
        raise UserError("config.runs is for comparisons: use --config=configs/evaluate.py:compare, or leave it empty.")
    if not (config.generated or config.generated_cache):
        raise UserError("config.generated is empty: give the folder of generated clips, --config.generated=FOLDER.")
    _refuse_another(root, config)
    subject = Subject(config)
    record = {"evaluates": {name: getattr(config, name) for name in SUBJECT}}
    record |= {"git_revision": git_revision(), "versions": versions()}
    logging.write_atomically(root / RECORD, json.dumps(record, indent=1) + "\n")
    extraction = Extraction(root / "features", config.threads)
    jobs = subject.jobs()
    if jax.process_count() > 1:
        _extract_share(jobs, extraction)
        runtime.barrier(f"features {root}")
        if jax.process_index():
            return  # process 0 reads all features and writes the results
    columns = subject.columns(jobs, extraction)
    logging.write_jsonl(root / "skipped.jsonl", extraction.skipped)
    measurement = measurement_lib.Measurement(
        measurement_lib.ClipFeatures(subject.ids, columns), subject.why_not, seed=config.seed, resamples=config.bootstrap)
    rows = _rows(subject, measurement, config)
    facts = subject.facts() | {"skipped": len(extraction.skipped)}
    write(root / TABLES, **_tables(measurement))
    logging.write_atomically(root / "results.json", json.dumps({"rows": rows, "facts": facts}, indent=1) + "\n")
    shown = {
        "Real sound" if row["system"] == "real" else LABELS.get(row["event_count"], f"{row['event_count']} events"): row
        for row in rows
    }
    table = report.format_metrics(shown)
    logging.write_atomically(root / "table.txt", table + "\n")
    report.write_metrics(
        root, shown, subject.spec, intro=subject.intro, examples=subject.examples(config.examples),
        reference_onsets="true onsets" if config.events else "onsets of the real sound",
        facts=facts | {
            "git_revision": git_revision(), "versions": versions(), "config": tree.to_dict(config),
        },
    )
    logging.info("\n%s\n\nreport: %s", table, root / "report" / "index.html")


def _extract_share(jobs: Sequence[Job], extraction: Extraction) -> None:
    """Extract this process's share of every job into the cache."""
    every = slice(jax.process_index(), None, jax.process_count())
    shares = [(backbone, side, dict(list(readers.items())[every])) for backbone, side, readers in jobs]
    for _ in _extracted(shares, extraction):
        pass


def _extracted(jobs: Sequence[Job], extraction: Extraction) -> Iterator[tuple[str, str, Features]]:
    """Yield (side, clip, features) of every job, and report the progress."""
    progress = logging.Progress("evaluate", sum(len(readers) for *_, readers in jobs), "file")
    return progress.over((side, *found) for backbone, side, readers in jobs for found in extraction.of(backbone, side, readers))


def _refuse_another(root: Path, config: FolderEvaluation) -> None:
    """Raises UserError if the folder holds another evaluation or a run, which would be overwritten."""
    record = read_record(root)
    theirs = record["evaluates"] if record and "evaluates" in record else None
    if theirs is None and (record or (root / "results.json").exists() or any(root.glob(f"*/{RECORD}"))):
        raise UserError(f"{root} is the folder of a run; choose another --workdir for the evaluation.")
    for name, value in (theirs or {}).items():
        if value != getattr(config, name):
            raise UserError(f"{root} was made with config.{name}={value}, this evaluation has config.{name}="
                            f"{getattr(config, name)}: choose another --workdir, or delete that folder.")


class Subject:
    """The subject of an evaluation: the clips that both sides have, their files, and their true events."""

    def __init__(self, config: FolderEvaluation):
        self._config = config
        self.generated, self.generated_cache = _side(config, "generated")
        self.reference, self.reference_cache = _side(config, "reference")
        ours, theirs = (set(files) | {clip for clips in cache.values() for clip in clips} for files, cache in (
            (self.generated, self.generated_cache), (self.reference, self.reference_cache)))
        self.paired = bool(theirs)
        names = ours & theirs if self.paired else ours
        if not names:
            raise UserError(
                f"No file of config.generated={config.generated or config.generated_cache} has the stem of one of "
                f"config.reference={config.reference or config.reference_cache} (the first are {min(ours)} and "
                f"{min(theirs)}): rename them, or leave out the reference.")
        self.unpaired = {"generated": sorted(ours - names), "reference": sorted(theirs - names)} if self.paired else {}
        if config.ids:
            listed = multi_event.read_list(config.ids)
            if not listed.keys() & names:
                raise UserError(f"config.ids={config.ids} lists none of the {len(names)} clips.")
            self.unpaired["ids"] = sorted(listed.keys() - names)
            names &= listed.keys()
        self.ids = sorted(names)
        self._classes = {name: listed.get(name) for name in self.ids} if config.ids else {}
        self.events = multi_event.read_events(config.events) if config.events else None
        if self.events is not None and not names & set(self.events):
            raise UserError(f"config.events={config.events} has the events of none of the {len(names)} clips.")
        self._reasons: dict[str, str] = {}  # of features that are not available
        self._undefined: dict[str, dict[str, list[str]]] = {}  # clips by feature and reason
        self.duration_sec = min(config.duration_sec, clips_lib.longest_sec(
            {name: files for name, files in self.generated.items() if name in names}) or config.duration_sec)
        if self.duration_sec < _LEAST_SEC:
            raise UserError(f"The clips last {self.duration_sec:.2f} s at most, and {_LEAST_SEC} s are needed; see "
                            "config.duration_sec.")

    @property
    def spec(self) -> ClipSpec:
        """Lengths and rates of the report's examples."""
        return ClipSpec(duration_sec=self.duration_sec, mel=onsets.MEL)

    def reader(self, side: str, name: str) -> Reader | None:
        """A reader of what a backbone of that side needs of a clip; None if the clip lacks it."""
        ours, theirs = self.generated.get(name), self.reference.get(name)
        pictures = next((files.pictures for files in (theirs, ours) if files and files.pictures), None)
        if side == "generated":
            return ours and Reader(ours.sound, None, self.duration_sec)
        if side == "reference":
            return theirs and Reader(theirs.sound, None, self.duration_sec)
        if pictures is None or (side == "both" and ours is None):
            return None
        return Reader(ours.sound if ours and side == "both" else None, pictures, self.duration_sec)

    def pair(self, name: str) -> Pair | None:
        """A reader of both sounds of a clip; None if one is missing."""
        generated, reference = self.reader("generated", name), self.reader("reference", name)
        return Pair(generated, reference) if generated and reference else None

    def readers(self, side: str) -> dict[str, Reader | Pair]:
        """The readers of all clips that have what a backbone of that side needs."""
        found = {name: self.pair(name) if side == "pair" else self.reader(side, name) for name in self.ids}
        return {name: reader for name, reader in found.items() if reader}

    def jobs(self) -> list[Job]:
        """What is extracted from the clips' files."""
        config = self._config
        released, reasons = backbones.released(config.weights, self.duration_sec)
        pesq, pesq_reasons = backbones.pesq()
        self._reasons = reasons | pesq_reasons
        of_run = backbones.of_run(config.sf_cavp, config.judge, self.duration_sec)
        jobs = []
        for backbone in (*backbones.light(), *pesq, *of_run, *released):
            for side in ("generated", "reference") if backbone.side == "sound" else (backbone.side,):
                jobs.append((backbone, side, self.readers(side)))
        return jobs

    def columns(self, jobs: Sequence[Job], extraction: Extraction) -> dict[str, list]:
        """All features of the clips, one entry per clip and column."""
        columns: dict[str, list] = {}
        index = {name: position for position, name in enumerate(self.ids)}

        def put(column: str, name: str, value: np.ndarray) -> None:
            columns.setdefault(column, [None] * len(self.ids))[index[name]] = value

        for side, name, features in _extracted(jobs, extraction):
            for feature, value in features.items():
                if feature.endswith("_reason"):
                    undefined = self._undefined.setdefault(feature.removesuffix("_reason"), {})
                    undefined.setdefault(str(value), []).append(name)
                else:
                    put(f"{side}.{feature}", name, value)
        for side, cache in (("generated", self.generated_cache), ("reference", self.reference_cache)):
            for feature, clips in cache.items():
                column = _column(feature, side)
                for name in clips.keys() & index.keys():
                    put(column, name, clips[name])
        if "both.synchformer" not in columns and all(feature in columns for feature in _SYNCHFORMER_CACHED):
            cached = (columns[feature] for feature in _SYNCHFORMER_CACHED)
            for name, offsets in backbones.cached_offsets(self._config.weights, self.ids, *cached):
                put("both.synchformer", name, offsets)
        for name in index.keys() & (self.events or {}).keys():
            put("events.true", name, self._true(name))
        return columns

    def _true(self, name: str) -> np.ndarray:
        """The true events of a clip that begin within it, as an event list of one class."""
        assert self.events is not None
        return _of_one_class(np.array([each.onset_sec for each in self.events[name] if each.onset_sec < self.duration_sec]))

    def why_not(self, column: str) -> str:
        """The reason why a column is missing."""
        side, _, feature = column.partition(".")
        if side in ("reference", "pair") and not self.paired:
            return "no reference was given (config.reference)"
        if side in ("pictures", "both") and not any(self.reader(side, name) for name in self.ids):
            return "there is no video of the clips"
        if feature in self._reasons:
            return self._reasons[feature]
        sides = ("generated", "reference") if side == "pair" else (side,)
        for each in sides:
            if not (self.reference if each == "reference" else self.generated):
                return f"the {each} clips have cached features only"
        if feature in self._undefined:
            return f"it is undefined for every clip: {', '.join(self._undefined[feature])}"
        return f"none of the {' or '.join(sides)} clips could be read"

    @property
    def intro(self) -> str:
        beside = " beside the real sound of the same clips" if self.paired else ""
        return f"{len(self.ids)} generated clips of {self.duration_sec:g} s{beside}."

    def groups(self) -> dict[str, np.ndarray]:
        """Masks of clips by their number of true events, or of the classes of events that the list of clips counts."""
        bounds = EVENT_GROUPS if self.events is not None else CLASS_GROUPS
        found = {name: len(each) for name, each in self.events.items()} if self.events is not None else self._classes
        counts = np.array([found.get(name) or 0 for name in self.ids])
        groups = {}
        for least, most in bounds:
            label = f"{least}" if most == least else f"{least} or more" if most is None else f"{least} to {most}"
            mask = (counts >= least) & (counts <= (most or counts.max()))
            if mask.sum() >= _LEAST_IN_GROUP:
                groups[label] = mask
        return groups

    def facts(self) -> dict[str, Any]:
        missing = {side: _listed(names) for side, names in self.unpaired.items() if names}
        undefined = {f"{feature}_undefined": {reason: _listed(names) for reason, names in reasons.items()}
                     for feature, reasons in self._undefined.items()}
        return {
            "clips": len(self.ids), "duration_sec": round(self.duration_sec, 3),
            **{f"only_in_{side}": len(self.unpaired[side]) for side in self.unpaired},
            **({"without_a_partner": missing} if missing else {}),
            **undefined,
        }

    def examples(self, count: int) -> list[dict[str, Any]]:
        """The first readable clips, with sound and frames of both sides."""
        shown = filter(None, (self._example(name) for name in self.ids))
        return list(itertools.islice(shown, count))

    def _example(self, name: str) -> dict[str, Any] | None:
        spec, tracks = self.spec, []
        pictures = self.reader("pictures", name)
        try:
            frames = pictures and pictures.frames(spec.video_hz, 192)
            for side, label in (("reference", "real"), ("generated", "generated")):
                if reader := self.reader(side, name):
                    waveform = reader.waveform(spec.audio_hz)
                    log_mel = onsets.log_mel(waveform)
                    found = onsets.sound_onsets(onsets.flux(log_mel))
                    tracks.append({"name": label, "waveform": waveform, "mel": log_mel, "detected": _of_one_class(found[:, 0])})
        except UserError:
            return None
        if not tracks:
            return None
        annotated = self.events is not None and name in self.events
        true = self._true(name) if annotated else tracks[0]["detected"]
        return {"id": name, "caption": "", "frames": frames, "events": true, "tracks": tracks}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _column(feature: str, side: str) -> str:
    """The column of a cached feature; features of frames and captions are the same for both sides."""
    name, _, modality = feature.rpartition("_")
    places = {"audio": f"{side}.{name}", "video": f"pictures.{name}", "text": f"captions.{name}"}
    return places.get(modality, f"{side}.{feature}")


def _of_one_class(onsets_sec: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros(len(onsets_sec)), onsets_sec], axis=1)


def _side(config: FolderEvaluation, side: str) -> tuple[dict[str, ClipFiles], dict[str, dict[str, np.ndarray]]]:
    """Files and cached features of one side, by clip."""
    files = clips_lib.find_clips(storage.path(getattr(config, side))) if getattr(config, side) else {}
    cache, unused = {}, []
    if folder := getattr(config, f"{side}_cache"):
        cache, unused = av_benchmark.read_features(folder)
    for name in unused:
        logging.info("not used: %s/%s, which no metric needs", folder, name)
    return files, cache


def _rows(subject: Subject, measurement: measurement_lib.Measurement, config: FolderEvaluation) -> list[dict[str, Any]]:
    """Rows of the generated clips, of the same by number of events, and of the real clips."""
    rows = [{"system": "generated", "event_count": None} | measurement.row()]
    rows += [{"system": "generated", "event_count": label} | measurement.row(mask) for label, mask in subject.groups().items()]
    clips = measurement.clips
    real = {f"generated.{name.removeprefix('reference.')}": column for name, column in clips.columns.items()
            if name.startswith("reference.")}
    if real:
        real |= {name: column for name, column in clips.columns.items() if name.startswith(("pictures.", "events."))}
        alone = measurement_lib.Measurement(
            dataclasses.replace(clips, columns=real), lambda column: "it is the reference",
            seed=config.seed, resamples=config.bootstrap)
        row = {"system": "real", "event_count": None} | alone.row()
        others = [name for name in rows[0] if name not in row and not name.endswith("_reason")]
        rows.append(row | dict.fromkeys(others) | {f"{name}_reason": "it is not computed for real sound" for name in others})
    return rows


def _tables(measurement: measurement_lib.Measurement) -> dict[str, np.ndarray]:
    """What a later comparison resamples: each metric's terms by clip, and its jackknife values."""
    tables = {f"table/{name}": table for name, table in measurement.tables.items()}
    replicates = {f"jackknife/{name}": values for name, values in measurement.replicates.items()}
    return {"ids": np.array(measurement.clips.ids), **tables, **replicates}
