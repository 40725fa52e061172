"""python -m benchmarks.beside_av_benchmark --av_benchmark=CHECKOUT [--clips=64] [--seconds=8] [--json=FILE]

The metrics of one folder of clips, by av-benchmark's own code and by ours, with the same random weights.

Needs PyTorch, torchaudio, torchlibrosa, resampy and soundfile beside msg_jax, and a checkout of av-benchmark
(https://github.com/hkchengrex/av-benchmark). Compares what both compute from sound files: FD of PANNs and of VGGish, KL and IS
of PANNs. av-benchmark reads, extracts and measures with its own data set, networks and metrics. Only its entry point is not
called, because that loads every other network too. The packages of those need not be installed. Exits with code 1 if a metric
differs by more than one thousandth.
"""

import argparse
import itertools
import json
import os
import pathlib
import sys
import tempfile
import types
from typing import Any

import numpy as np

from benchmarks import evaluation
from msg_jax import programs
from msg_jax.config import tree
from msg_jax.convert import bundle
from msg_jax.recipes import runs

TOLERANCE = 1e-3
FILES = {name: bundle.EVALUATION[name][0].name for name in ("panns", "vggish")}
SIDES = ("generated", "reference")


def _stand_in(name: str, **contents: Any) -> None:
    """Let `import name` succeed where the package is not installed."""
    try:
        __import__(name)
    except ImportError:
        for each in itertools.accumulate(name.split("."), "{}.{}".format):
            sys.modules.setdefault(each, types.ModuleType(each))
        vars(sys.modules[name]).update(contents)


class Theirs:
    """av-benchmark's networks, data set and metrics. `weights` gets a state dict of random numbers for each network."""

    def __init__(self, checkout: pathlib.Path, weights: pathlib.Path):
        sys.path.insert(0, str(checkout))
        _stand_in("pytorchvideo.data.clip_sampling", ConstantClipsPerVideoSampler=None)  # these two are for ImageBind
        _stand_in("torchvision.transforms.v2")
        import soundfile
        import torch
        import torchaudio

        def load(path):  # recent releases of torchaudio read no file without torchcodec
            sound, hz = soundfile.read(path, dtype="float32", always_2d=True)
            return torch.from_numpy(sound.T), hz

        torchaudio.load = load
        from av_bench import metrics, panns
        from av_bench.data.audio_dataset import AudioDataset
        from av_bench.panns import models
        from av_bench.vggish.vggish import VGGish

        self._torch, self._metrics, self._data = torch, metrics, AudioDataset
        torch.manual_seed(0)
        self._vggish = VGGish(pretrained=False, postprocess=False).eval()
        self._draw(self._vggish.state_dict())
        torch.save(self._vggish.state_dict(), weights / FILES["vggish"])
        options = dict(window_size=512, hop_size=160, mel_bins=64, fmin=50, fmax=8000, classes_num=527)
        state = models.Cnn14_no_specaug(sample_rate=16_000, **options).state_dict()
        self._draw(state)
        cache = weights / ".cache" / "audioldm_eval" / "ckpt"  # where av-benchmark looks, below HOME
        cache.mkdir(parents=True)
        torch.save({"model": state}, weights / FILES["panns"])
        (cache / FILES["panns"]).symlink_to(weights / FILES["panns"])
        (cache / "Cnn14_mAP=0.431.pth").touch()  # otherwise it downloads both
        home, os.environ["HOME"] = os.environ["HOME"], str(weights)
        self._panns = panns.Cnn14(["2048", "logits"], 16_000, **options).eval()
        os.environ["HOME"] = home

    def _draw(self, state: dict[str, Any]) -> None:
        """Draw random weights that neither shrink the signal nor leave a term of the normalisation at its default."""
        for name, tensor in state.items():
            if name.startswith(("spectrogram_extractor", "logmel_extractor")):  # no weights: transforms
                continue
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif name.endswith("weight") and tensor.ndim > 1:
                self._torch.nn.init.kaiming_normal_(tensor)

    def measure(self, root: pathlib.Path, seconds: float) -> dict[str, float]:
        """The metrics by our names."""
        panns, vggish = {}, {}
        for side in SIDES:
            data = self._data(sorted((root / side).glob("*.wav")), audio_length=seconds, sr=16_000)
            with self._torch.inference_mode():
                sounds = [data[i][0].float() for i in range(len(data))]
                found = [self._panns(sound) for sound in sounds]
                vggish[side] = self._torch.cat([self._vggish(sound)[0] for sound in sounds]).numpy()
            panns[side] = {name: self._torch.cat([each[name] for each in found]) for name in ("2048", "logits")}
        metrics = self._metrics
        embeddings = {"panns": {side: panns[side]["2048"].numpy() for side in SIDES}, "vggish": vggish}
        row = {f"fd_{name}": float(metrics.compute_fd(*(each[side] for side in SIDES))) for name, each in embeddings.items()}
        divergence = metrics.compute_kl([panns["generated"]["logits"]], panns["reference"]["logits"])
        row |= {f"{name}_panns": value for name, value in divergence.items()}
        score = metrics.compute_isc(panns["generated"], "logits", rng_seed=2020, samples_shuffle=True, splits=10)
        row |= {"is_panns": score["inception_score_mean"], "is_panns_std": score["inception_score_std"]}
        return row


def ours(root: pathlib.Path, weights: pathlib.Path, seconds: float) -> dict[str, float]:
    """The metrics of `evaluate`."""
    folders = {side: str(root / side) for side in SIDES}
    programs.run(tree.replace(runs.evaluate(), **folders, weights=str(weights), duration_sec=seconds, examples=0), root / "out")
    found = json.loads((root / "out" / "results.json").read_text())["rows"][0]
    row = {name: value["value"] if isinstance(value, dict) else value for name, value in found.items()}
    return row | {"is_panns_std": found["is_panns"]["std"]}


def main(argv: list[str] | None = None) -> None:
    flags = argparse.ArgumentParser(usage=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    flags.add_argument("--av_benchmark", type=pathlib.Path, required=True)
    flags.add_argument("--clips", type=int, default=64)
    flags.add_argument("--seconds", type=float, default=8.0)
    flags.add_argument("--json", type=pathlib.Path, help="also write the table to this file")
    args = flags.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "weights").mkdir()
        evaluation.make_pairs(root, args.clips, args.seconds, video=False)
        theirs = Theirs(args.av_benchmark, root / "weights").measure(root, args.seconds)
        mine = ours(root, root / "weights", args.seconds)
    table = {
        name: {"theirs": value, "ours": mine[name], "difference": mine[name] / value - 1} for name, value in theirs.items()
    }
    print(f"{'metric':<18} {'theirs':>12} {'ours':>12} {'difference':>11}")
    for name, row in table.items():
        print(f"{name:<18} {row['theirs']:>12.6g} {row['ours']:>12.6g} {row['difference']:>+11.1e}")
    if args.json:
        args.json.write_text(json.dumps(table, indent=1))
    sys.exit(int(np.max(np.abs([row["difference"] for row in table.values()])) > TOLERANCE))


if __name__ == "__main__":
    main()
