"""Labels and descriptions of systems and metrics, for tables, reports and charts."""

from collections.abc import Mapping
import math
from typing import Any, NamedTuple

Systems = Mapping[str, Mapping[str, str]]
"""Label and note of each tuned system, {name: {"label", "note"}}."""

REFERENCES = {
    "real": ("Real sound", "the recorded sound itself: the judge's upper bound"),
    "reconstructed": ("Real, through the codec", "the same, encoded and decoded: the ceiling of every generator"),
    "random_clip": ("Another clip's sound", "real sound of another video: chance"),
    "unconditional": ("No video", "the base model without conditions: chance for a generator"),
    "base": ("Base", "the generator before preference tuning"),
    "generated": ("Generated", "the clips under evaluation"),
}


class Metric(NamedTuple):
    label: str
    direction: str  # ↑ or ↓: which is better
    digits: int
    meaning: str


METRICS = {
    "event_f1": ("Event F1", "↑", 3, "detected events of the right class within ±80 ms of a true onset"),
    "onset_f1": ("Onset F1", "↑", 3, "the same without the class: high by chance in busy scenes"),
    "event_f1_40ms": ("Event F1, 40 ms", "↑", 3, "event F1 within ±40 ms: timing to one frame of video"),
    "onset_f1_40ms": ("Onset F1, 40 ms", "↑", 3, "onset F1 within ±40 ms"),
    "class_f1": ("Class F1", "↑", 3, "which classes sound in a clip, at any time"),
    "event_f1_second_judge": ("Event F1, waveform", "↑", 3, "event F1 of the waveform, by a second judge, which chose nothing"),
    "all": ("All clips", "↑", 3, "event F1"),
    "transition": ("Transition", "↑", 3, "event F1 where one source leaves and another enters"),
    "1_source": ("1 source", "↑", 3, "event F1 where one class sounds"),
    "2_sources": ("2 sources", "↑", 3, "event F1 where two classes sound"),
    "3_sources": ("3 and more", "↑", 3, "event F1 where three or more classes sound"),
    "fd_judge": ("FD (judge)", "↓", 2, "Fréchet distance to real sound in the features of the judge"),
    "sync_f1": ("Sync F1", "↑", 3, "events heard that match events seen, in class and within ±80 ms"),
    "sync_f1_40ms": ("Sync F1, 40 ms", "↑", 3, "the same within ±40 ms: one frame of video"),
    "heard_caption_f1": ("Heard as told", "↑", 3, "classes heard against those of the caption"),
    "seen_caption_f1": ("Seen as told", "↑", 3, "classes seen against those of the caption"),
    "seen_event_f1": ("Event F1, pictures", "↑", 3, "events seen in the pictures against true ones"),
    "offset_ms": ("Offset", "", 1, "mean lateness of the sound of matched events, in milliseconds"),
    "absolute_offset_ms": ("Absolute offset", "↓", 1, "its mean absolute value"),
    "fd_sound": ("FD, sound", "↓", 2, "Fréchet distance to real sound in the features of the judge"),
    "fd_picture": ("FD, pictures", "↓", 2, "the same for pictures"),
    "cost_tflop": ("Cost", "↓", 1, "10^12 operations of all trainings, candidates and scores that made it from the base"),
    "dynamic": ("Dynamic", "↑", 3, "SF-CAVP cosine of video and sound, step by step; tuned for, so no judge"),
    "semantic": ("Semantic", "↑", 3, "SF-CAVP cosine of whole clips; tuned for, so no judge"),
    "window": ("Window", "↑", 3, "SF-CAVP cosine of short windows; tuned for, so no judge"),
    "events": ("Events", "↑", 3, "agreement of sound events in video and sound; tuned for, so no judge"),
    "reward": ("Reward", "↑", 3, "weighted sum of the terms; tuned for, so no judge"),
    "segments": ("Segments", "↑", 3, "cosine of Synchformer's features of sound and pictures, in segments of .64 s"),
    "reward_reconstructed": ("Reward of real sound", "", 3, "the same for real sound, through the codec"),
    "held_out_reward": ("Held-out reward", "↑", 3, "reward of a second SF-CAVP, or DeSync, that nothing was tuned for"),
    "fd_latents": ("FD (latents)", "↓", 2, "Fréchet distance to real sound, by mean and deviation of the codec's latents"),
    "picked": ("Picked", "", 2, "the share of seeds that picked this network"),
    "offset_accuracy_9": ("Offset choice", "↑", 3, "the true offset has the highest score of 9; chance .111"),
    "dynamic_r1_64": ("Dynamic R@1 of 64", "↑", 3, "a video's own sound ranks first of 64; chance .016"),
    "semantic_r1_64": ("Semantic R@1 of 64", "↑", 3, "the same by whole-clip embeddings; chance .016"),
    "within_video_correlation": ("Within-video correlation", "↑", 3, "reward and event F1 among a video's candidates"),
    "within_video_rank_correlation": ("Within-video rank correlation", "↑", 3, "the same by ranks (Spearman)"),
    "headroom_share": ("Headroom share", "↑", 3, "gain of the reward's choice over a random one, as a share of the oracle's"),
    "correlation_semantic": ("Correlation, semantic term", "↑", 3, "the same for one term of the reward alone"),
    "correlation_dynamic": ("Correlation, dynamic term", "↑", 3, "the same for one term of the reward alone"),
    "correlation_window": ("Correlation, window term", "↑", 3, "the same for one term of the reward alone"),
    "correlation_events": ("Correlation, events term", "↑", 3, "the same for one term of the reward alone"),
    "best_beats_worst": ("Best beats worst", "↑", 3, "its top candidate is truly better than its bottom one; chance .5"),
    "best_beats_worst_half": ("Best beats worst, half", "↑", 3, "the same where top and bottom differ most"),
    "best_beats_worst_quarter": ("Best beats worst, quarter", "↑", 3, "the same where top and bottom differ most"),
    "correlation_onset_f1": ("Correlation, onset F1", "↑", 3, "reward and onset F1 among a video's candidates"),
    "rank_correlation_onset_f1": ("Rank correlation, onset F1", "↑", 3, "the same by ranks"),
    "correlation_class_f1": ("Correlation, class F1", "↑", 3, "reward and class F1 among a video's candidates"),
    "rank_correlation_class_f1": ("Rank correlation, class F1", "↑", 3, "the same by ranks"),
}
FAMILIES = {  # metrics whose name ends in their backbone's
    "fd": ("FD", "↓", 2, "Fréchet distance of the clips' features to those of the references"),
    "kid": ("KID", "↓", 4, "kernel distance of the same"),
    "kl_softmax": ("KL, softmax", "↓", 3, "from each reference's class scores to its generated clip's"),
    "kl_sigmoid": ("KL, sigmoid", "↓", 3, "the same for multi-label scores"),
    "is": ("IS", "↑", 2, "Inception Score: confident class scores that differ between clips"),
    "retrieval_r1_64": ("R@1 of 64", "↑", 3, "a clip's own reference is the nearest of 64; chance .016"),
    "onset_f1_100ms": ("Onset F1, 100 ms", "↑", 3, "onsets within 100 ms of the reference's; high by chance in busy clips"),
    "onset_f1_annotated": ("Onset F1, annotated", "↑", 3, "onsets near a true event, mean over tolerances of 50 to 800 ms"),
    "onset_f1": ("Onset F1", "↑", 3, "onsets near one in the reference, mean over tolerances of 50 to 800 ms"),
    "onset_ap": ("Onset AP", "↑", 3, "average precision of onsets by strength, mean over the same tolerances"),
    "event_f1": ("Event F1", "↑", 3, "detected events with the class and onset (±80 ms) of one in the reference"),
    "sync_score": ("SyncScore", "↑", 3, "share of the reference's onsets met within one video frame; extra ones cost nothing"),
    "av_align_1_frame": ("AV-Align, 1 frame", "↑", 3, "share of sound and motion onsets that coincide within a frame"),
    "av_align": ("AV-Align", "↑", 3, "the same, mean over windows of 50 to 800 ms"),
    "desync": ("DeSync", "↓", 3, "mean absolute offset between sound and video (spectral flux: and real sound), in seconds"),
    "stft_l1": ("STFT-L1", "↓", 3, "spectral convergence plus L1 of log magnitudes, mean over three STFT resolutions"),
    "pesq": ("PESQ", "↑", 2, "quality as speech beside the reference, 1.0 to 4.6; undefined without an utterance"),
    "ib_score": ("IB-score", "↑", 3, "cosine of the sound's and the video's embeddings"),
    "clap_score": ("CLAP score", "↑", 3, "cosine of the sound's and the caption's embeddings"),
    "semantic": ("Semantic", "↑", 3, "cosine of whole clips"),
    "dynamic": ("Dynamic", "↑", 3, "cosine of sound and video, step by step"),
    "window": ("Window", "↑", 3, "cosine of short windows"),
}
BACKBONES = {
    "logmel": "log-mel statistics", "spectral_flux": "spectral flux", "motion_energy": "motion energy", "vggish": "VGGish",
    "panns": "PANNs", "passt": "PaSST", "synchformer": "Synchformer", "imagebind": "ImageBind", "sf_cavp": "SF-CAVP",
    "judge": "judge", "waveform": "waveform at 16 kHz", "wideband": "wideband, P.862.2", "laion": "LAION", "ms": "Microsoft",
}


def describe(name: str) -> dict[str, Any]:
    """Name, label, direction, digits and meaning of a metric; an unknown name is its own label."""
    return {"name": name} | Metric(*(METRICS.get(name) or _family(name)))._asdict()


def _family(name: str) -> tuple[str, str, int, str]:
    for backbone, shown in BACKBONES.items():
        family = name.removesuffix(f"_{backbone}")
        if family != name and family in FAMILIES:
            label, direction, digits, meaning = FAMILIES[family]
            return f"{label} ({shown})", direction, digits, meaning
    return name.replace("_", " "), "", 3, ""


def system_label(name: str, systems: Systems) -> str:
    """The label of a reference or of a tuned system."""
    if name in systems:
        return systems[name]["label"]
    return REFERENCES[name][0] if name in REFERENCES else name


def system_note(name: str, systems: Systems) -> str:
    """One line about a reference or a tuned system."""
    if name in systems:
        return systems[name]["note"]
    return REFERENCES[name][1] if name in REFERENCES else ""


def number(value: Any) -> float | None:
    """A metric's number, whether it has an interval or not; None if it was not computed."""
    found = value.get("value") if isinstance(value, dict) else value
    return None if found is None or not math.isfinite(found) else float(found)
