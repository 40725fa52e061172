"""python benchmarks/beside_mmaudio.py --mmaudio=CHECKOUT [--precision=float32] [--share=1] [--repeats=1] [--json=FILE]

CPU seconds of PyTorch's MMAudio and of ours for one video of eight seconds: small_16k, 25 guided steps, random weights.

Needs PyTorch, torchvision, open_clip and omegaconf beside msg_jax, and a checkout of MMAudio. Each part is called once to warm
up (for ours: to compile), then both take turns. The table has the least CPU seconds of a turn, all threads together. The peer
takes 40 frames, or all segments, at once, as its demo.py does.

--precision is what the networks of both compute in; the peer's demo.py has bfloat16 unless --full_precision. --share takes
this share of frames and segments and multiplies their seconds accordingly.
"""

import argparse
from collections.abc import Callable
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks import inference
from msg_jax import networks
from msg_jax.convert import bundle
from msg_jax.data import media, media_writer
from msg_jax.data.frame_grid import FrameGrid
from msg_jax.inference import frozen

VARIANT = bundle.VARIANTS["small_16k"]
PEER_FRAMES_AT_ONCE = 40
PARTS = ("frames", "clip_image", "synchformer", "clip_text", "mmdit", "vae", "bigvgan")


def ours(part: str, share: float, folder: pathlib.Path) -> tuple[Callable[[], Any], float]:
    """(a call, how many of it make up a video)."""
    clip = VARIANT.clip
    if part == "frames":
        grids = [
            FrameGrid(clip.video_hz, clip.video_px, clip.video_frames),
            FrameGrid(clip.clip_video_hz, clip.clip_video_px, clip.clip_video_frames, squash=True),
        ]
        return lambda: media.read_video(folder / "clip.mp4", grids), 1
    case = inference.cases(VARIANT)[part]()
    variables = inference.RandomBundle(VARIANT).load(case.kind, *case.prefixes)
    if case.kind in ("clip", "synchformer"):
        variables = frozen.rounded(variables, networks.compute_dtype())
    call = jax.jit(case.call)
    turns = max(1, round(share * case.calls)) if part in ("clip_image", "synchformer") else 1
    return lambda: [jax.block_until_ready(call(variables, *case.inputs)) for _ in range(turns)], case.calls / turns


def peers(part: str, share: float, folder: pathlib.Path, dtype: Any) -> tuple[Callable[[], Any], float]:
    """The same of PyTorch's MMAudio."""
    from mmaudio import eval_utils
    from mmaudio.ext.autoencoder.vae import get_my_vae
    from mmaudio.ext.bigvgan.bigvgan import _bigvgan_vocoder_path
    from mmaudio.ext.bigvgan.models import BigVGANVocoder
    from mmaudio.ext.synchformer import Synchformer
    from mmaudio.model.networks import small_16k
    from mmaudio.model.utils.features_utils import patch_clip
    from omegaconf import OmegaConf
    import open_clip
    import torch

    clip = VARIANT.clip
    if part == "frames":
        return lambda: eval_utils.load_video(folder / "clip.mp4", clip.duration_sec, load_all_frames=False), 1
    if part in ("clip_image", "clip_text"):
        with torch.device("meta"):  # to draw a billion weights takes longer than to use them
            model = open_clip.create_model("ViT-H-14-378-quickgelu", device="meta")
        model = patch_clip(model).to_empty(device="cpu").to(dtype).eval()
        for tensor in model.state_dict(keep_vars=False).values():
            tensor.fill_(0.01)
        model.attn_mask.fill_(0)
        if part == "clip_text":
            tokens = torch.zeros(1, clip.text_tokens, dtype=torch.long)
            return lambda: model.encode_text(tokens, normalize=True), 1
        count = max(1, round(share * clip.clip_video_frames))
        frames = torch.zeros(count, 3, clip.clip_video_px, clip.clip_video_px, dtype=dtype)
        chunks = frames.split(PEER_FRAMES_AT_ONCE)
        return lambda: [model.encode_image(chunk, normalize=True) for chunk in chunks], clip.clip_video_frames / count
    if part == "synchformer":
        sync = Synchformer().to(dtype).eval()
        count = max(1, round(share * clip.sync_segments))
        px = clip.video_px
        segments = torch.zeros(count, 1, clip.sync_segment_frames, 3, px, px, dtype=dtype)
        return lambda: sync(segments), clip.sync_segments / count
    if part == "mmdit":
        net = small_16k().to(dtype).eval()

        def features(tokens, width):
            return torch.zeros(1, tokens, width, dtype=dtype)

        conditions = net.preprocess_conditions(features(64, 1024), features(192, 768), features(77, 1024))
        empty, x, t = net.get_empty_conditions(1), features(250, 20), torch.zeros(1, dtype=dtype)
        return lambda: net.ode_wrapper(t, x, conditions, empty, inference.GUIDANCE), inference.STEPS
    if part == "vae":
        vae = get_my_vae("16k").eval()
        vae.remove_weight_norm()
        latents = torch.zeros(1, clip.latent_channels, clip.latent_tokens, dtype=dtype)
        vae = vae.to(dtype)
        return lambda: vae.decode(latents), 1
    vocoder = BigVGANVocoder(OmegaConf.load(_bigvgan_vocoder_path)).eval()
    vocoder.remove_weight_norm()
    vocoder, log_mel = vocoder.to(dtype), torch.zeros(1, clip.mel.bands, clip.mel_frames, dtype=dtype)
    return lambda: vocoder(log_mel), 1


def least_cpu_sec(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The least CPU seconds of each, after one call to warm up, in turn."""
    found = {name: [] for name in calls}
    for turn in range(1 + repeats):
        for name, call in calls.items():
            begun = time.process_time()
            call()
            if turn:
                found[name].append(time.process_time() - begun)
    return {name: min(seconds) for name, seconds in found.items()}


def measure(part: str, share: float, repeats: int, precision: str) -> dict[str, Any]:
    import torch

    with tempfile.TemporaryDirectory() as name, torch.inference_mode(), networks.computing_in(precision):
        folder = pathlib.Path(name)
        if part == "frames":
            pictures = np.random.default_rng(0).integers(0, 256, (VARIANT.clip.video_frames, 9, 16, 3), np.uint8)
            silence = np.zeros(VARIANT.clip.audio_samples, np.float32)
            large = pictures.repeat(40, 1).repeat(40, 2)
            (folder / "clip.mp4").write_bytes(media_writer.encode_video(large, VARIANT.clip.video_hz, silence, 16000))
        (peer, peer_calls) = peers(part, share, folder, getattr(torch, precision))
        (own, own_calls) = ours(part, share, folder)
        seconds = least_cpu_sec({"peer": peer, "ours": own}, repeats)
    return {"part": part, "peer_sec": peer_calls * seconds["peer"], "ours_sec": own_calls * seconds["ours"]}


def main(argv: list[str] | None = None) -> None:
    flags = argparse.ArgumentParser(usage=__doc__.partition("\n")[0], allow_abbrev=False)
    flags.add_argument("--mmaudio", required=True, type=pathlib.Path, metavar="CHECKOUT")
    flags.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    flags.add_argument("--parts", default=",".join(PARTS))
    flags.add_argument("--share", type=float, default=1.0)
    flags.add_argument("--repeats", type=int, default=1)
    flags.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    args = flags.parse_args(argv)
    sys.path.insert(0, str(args.mmaudio))
    found = []
    print(f"{'part':<12} {'peer s':>8} {'ours s':>8} {'ratio':>6}   {args.precision}")
    for part in args.parts.split(","):
        found.append(measure(part, args.share, args.repeats, args.precision))
        print(show(found[-1]), flush=True)
    whole = {name: sum(row[name] for row in found) for name in ("peer_sec", "ours_sec")}
    print(show({"part": "together", **whole}))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


def show(row: dict[str, Any]) -> str:
    ratio = row["ours_sec"] / row["peer_sec"]
    return f"{row['part']:<12} {row['peer_sec']:>8.2f} {row['ours_sec']:>8.2f} {ratio:>6.2f}"


if __name__ == "__main__":
    main()
