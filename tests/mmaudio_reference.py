"""python tests/mmaudio_reference.py --mmaudio=CHECKOUT

Make tests/golden/front_end.npz with MMAudio's own code: what it makes of video files, pictures and prompts.

Needs PyTorch, torchvision, open_clip_torch and a checkout of https://github.com/hkchengrex/MMAudio with its requirements,
beside this package. The tests read the file and need none of them. It holds

    choice/RATE/{clip,sync}         numbers of the pictures that MMAudio's `read_frames` takes at 8 and 25 fps
    choice/RATE/seconds             the length to which its `load_video` cuts 8 s
    scaled/CASE/{file,clip,sync}    a still video, and what its transforms make of it, at every 4th pixel
    tokens/ids, tokens/many         open_clip's ids of golden/prompts.json, and a SHA-256 of those of `many_prompts`
    tokens/merges, tokens/ranks     the merges that these texts use, of all in the published list, and their places there
    video/CASE/file                 the bytes of a small video file
    video/CASE/{clip,sync}_frames   its frames 0, 4, 8, ... as MMAudio preprocesses them, at every 8th pixel
    video/CASE/{clip,sync,latents,waveform}   features, unnormalised latents and sound of MMAudio's classes at toy widths
                                    (`released_files.toy_tensors`), from `noise`, for the prompt "dog cat"; the case
                                    `text_alone` has no video
"""

import argparse
from fractions import Fraction
import hashlib
import json
import pathlib
import random
import sys
import tempfile

import av
import numpy as np

TESTS = pathlib.Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

STEPS, GUIDANCE, PROMPT = 5, 4.5, "dog cat"
RATES = {  # pictures a second
    "10": "10", "15": "15", "23.976": "24000/1001", "24": "24", "25": "25", "29.97": "30000/1001", "30": "30", "50": "50",
    "59.94": "60000/1001", "60": "60",
}
TEXT_ALONE = "text_alone"
VIDEOS = {  # case -> rate, width, height, pictures, duration that is asked for
    "25": ("25", 128, 72, 30, 8.0),
    "30_square": ("30", 96, 96, 36, 8.0),
    "23.976": ("24000/1001", 160, 90, 29, 8.0),
    "50_portrait": ("50", 72, 128, 60, 8.0),
    "12_odd": ("12", 134, 76, 15, 8.0),
    "29.97_first_seconds": ("30000/1001", 108, 72, 60, 1.2),
}


def moving_picture(i, seconds, width, height):
    """Smooth colours that move, with a hard edge."""
    y, x = np.mgrid[:height, :width] / min(width, height)
    t = i * seconds
    waves = [np.sin(7 * x + 3 * t), np.sin(5 * y - 4 * t), np.sin(9 * (x + y) + 6 * t)]
    picture = 127 + 100 * np.stack(waves, axis=-1)
    left = int((0.1 + 0.5 * t) * width) % width
    picture[height // 3 : height // 2, left : left + width // 8] = 250
    return picture.astype(np.uint8)


def many_prompts(count=3000):
    """Prompts of letters, marks and signs of many scripts, a function of the count alone."""
    rng = random.Random(0)
    ranges = [(0x20, 0x7F), (0xA0, 0x180), (0x300, 0x370), (0x370, 0x400), (0x400, 0x500), (0x2000, 0x2070), (0x3040, 0x3100),
              (0x4E00, 0x4F00), (0xFB00, 0xFB07), (0xFF01, 0xFF5F), (0x1F600, 0x1F640), (0x80, 0xA0), (0x00, 0x20)]
    words = ["glass", "breaking", "don't", "dog's", "&amp;", "&lt;b&gt;", "cafÃ©", "â€œquotedâ€\x9d", "“curly”", "1/2", "ﬁre"]
    return [
        " ".join(
            rng.choice(words) if rng.random() < 0.4
            else "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 9)))
            for _ in range(rng.randrange(1, 12))
        )
        for _ in range(count)
    ]


def digest(ids):
    return hashlib.sha256(np.ascontiguousarray(ids, "<i4").tobytes()).hexdigest()


def counted(i):
    """A picture that shows `i` in five digits of base 4."""
    digits = [i // 4**k % 4 for k in range(5)]
    return np.repeat(np.repeat(np.array(digits, np.uint8) * 70 + 20, 16)[None], 16, 0)[..., None].repeat(3, -1)


def counts(frames):
    """What the pictures (T, 16, 80, 3) of `counted` show."""
    digits = np.round((frames.reshape(-1, 16, 5, 16, 3)[:, 4:12, :, 4:12].mean((1, 3, 4)) - 20) / 70)
    return (digits @ 4 ** np.arange(5)).astype(np.int16)


def encode(path, pictures, rate, **options):
    """H.264 with B-frames at a constant rate, as `ffmpeg` writes it."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=Fraction(rate), options={"bf": "2", "preset": "veryfast"} | options)
        (video.height, video.width), video.pix_fmt = pictures[0].shape[:2], "yuv420p"
        for picture in pictures:
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")))
        out.mux(video.encode(None))


def frame_choices(eval_utils, folder):
    found = {}
    for name, rate in RATES.items():
        path = folder / f"{name}.mp4"
        encode(path, [counted(i) for i in range(round(8 * Fraction(rate)))], rate, crf="1")
        rates = [8.0, 25.0]
        taken, _, _ = eval_utils.read_frames(path, list_of_fps=rates, start_sec=0, end_sec=8.0, need_all_frames=False)
        info = eval_utils.load_video(path, 8.0, load_all_frames=False)
        found |= {f"choice/{name}/clip": counts(taken[0]), f"choice/{name}/sync": counts(taken[1])}
        found[f"choice/{name}/seconds"] = np.float64(info.duration_sec)
    return found


def in_levels(frames, scale, shift=0.0):
    """uint8 (T, H, W, 3) of preprocessed frames (T, 3, H, W)."""
    return np.round((frames.numpy() + shift) * scale).astype(np.uint8).transpose(0, 2, 3, 1)


def scaled_pictures(folder, eval_utils):
    """A still video of each size, without loss, through MMAudio's transforms."""
    found = {}
    for width, height in ((120, 90), (320, 180), (64, 100), (500, 300)):
        picture = moving_picture(3, 0.1, width, height)
        path = folder / f"{width}.mkv"
        encode(path, [picture] * 2, 1, qp="0")
        info = eval_utils.load_video(path, 8.0, load_all_frames=True)
        found |= {
            f"scaled/{width}x{height}/file": np.frombuffer(path.read_bytes(), np.uint8),
            f"scaled/{width}x{height}/clip": in_levels(info.clip_frames[:1], 255)[0, ::4, ::4],
            f"scaled/{width}x{height}/sync": in_levels(info.sync_frames[:1], 127.5, 1)[0, ::4, ::4],
        }
    return found


def token_ids():
    import open_clip

    prompts = json.loads((TESTS / "golden" / "prompts.json").read_text())
    tokenizer = open_clip.get_tokenizer("ViT-H-14-378-quickgelu")
    ranks, used = tokenizer.bpe_ranks, set()

    class Watched(dict):
        def __contains__(self, pair):  # asked of each pair before it is merged
            used.update({pair} & ranks.keys())
            return pair in ranks

    tokenizer.bpe_ranks = Watched(ranks)
    found = {
        "tokens/ids": tokenizer(prompts).numpy().astype(np.int32),
        "tokens/many": np.array(digest(tokenizer(many_prompts()).numpy())),
    }
    merges = sorted(used, key=ranks.__getitem__)
    return found | {
        "tokens/merges": np.array("\n".join(map(" ".join, merges))),
        "tokens/ranks": np.array([ranks[pair] for pair in merges], np.int32),
    }


def toy_networks(folder):
    """MMAudio's classes with the weights of `released_files.toy_tensors`: (feature_utils, net)."""
    from golden_files import load
    from mmaudio.ext.autoencoder.vae import VAE
    from mmaudio.ext.bigvgan.models import BigVGANVocoder
    from mmaudio.ext.synchformer import Synchformer, motionformer
    from mmaudio.model.networks import MMAudio
    from mmaudio.model.utils.features_utils import FeaturesUtils, patch_clip
    from omegaconf import OmegaConf
    import open_clip
    from released_files import VOCABULARY_SIZE, toy_spec, toy_tensors, write_vocabulary
    import torch
    from torchvision.transforms import Normalize

    from msg_jax.convert.tokenizer import Tokenizer
    from msg_jax.models.clip_encoder import PIXEL_MEAN, PIXEL_STD

    tensors, variant = toy_tensors(toy_spec())

    def filled(module, name, prefix=""):
        state = {key.removeprefix(prefix): torch.tensor(np.asarray(value, np.float32)) for key, value in tensors[name].items()}
        module.load_state_dict(state)
        return module.eval()

    configs = {kind: network.config for kind, network in variant.networks.items()}
    clip, sync, mmdit = configs["clip"], configs["synchformer"], configs["mmdit"]
    image = open_clip.CLIPVisionCfg(
        layers=clip.vision_depth, width=clip.vision_width, head_width=clip.vision_width // clip.vision_heads,
        patch_size=clip.patch_px, image_size=clip.image_px,
    )
    text = open_clip.CLIPTextCfg(
        context_length=77, vocab_size=VOCABULARY_SIZE, width=clip.text_width, heads=clip.text_heads, layers=clip.text_depth
    )
    utils = FeaturesUtils(enable_conditions=False)
    clip_model = open_clip.CLIP(clip.features, image, text, quick_gelu=True)
    utils.clip_model = patch_clip(filled(clip_model, "open_clip_pytorch_model.bin"))
    utils.clip_preprocess = Normalize(mean=PIXEL_MEAN, std=PIXEL_STD)
    our_tokenizer = Tokenizer(write_vocabulary(folder), VOCABULARY_SIZE)
    utils.tokenizer = lambda prompts: torch.tensor(np.stack([our_tokenizer(prompt) for prompt in prompts])).long()

    class SmallConfig(OmegaConf):
        @staticmethod
        def load(path):
            config = OmegaConf.load(path)
            config.VIT.EMBED_DIM, config.VIT.DEPTH, config.VIT.NUM_HEADS = sync.width, sync.depth, sync.heads
            return config

    motionformer.OmegaConf = SmallConfig
    utils.synchformer = filled(Synchformer(), "synchformer_state_dict.pth")
    vae = VAE(data_dim=80, embed_dim=configs["vae"].latent_channels, hidden_dim=configs["vae"].width)
    vae = filled(vae, "v1-16.pth").remove_weight_norm()
    sizes = load("bigvgan_16k")[1] | {"resblock": "1"}
    vocoder = filled(BigVGANVocoder(OmegaConf.create(sizes)), "best_netG.pt", "generator.")
    utils.tod = torch.nn.Module()
    utils.tod.decode, utils.tod.vocode = vae.decode, vocoder
    net = MMAudio(
        latent_dim=mmdit.latent_channels, clip_dim=mmdit.clip_dim, sync_dim=mmdit.sync_dim, text_dim=mmdit.text_dim,
        hidden_dim=mmdit.hidden, depth=mmdit.joint_depth + mmdit.fused_depth, fused_depth=mmdit.fused_depth,
        num_heads=mmdit.heads, latent_seq_len=mmdit.latent_tokens, clip_seq_len=mmdit.clip_tokens,
        sync_seq_len=mmdit.sync_tokens, text_seq_len=77,
    )
    return utils, filled(net, "mmaudio_toy_16k.pth")


def sounds(eval_utils, folder):
    from mmaudio.model.flow_matching import FlowMatching
    from mmaudio.model.sequence_config import CONFIG_16K
    import torch

    utils, net = toy_networks(folder)
    found, rng = {}, np.random.default_rng(0)
    for name, (rate, width, height, count, duration_sec) in [*VIDEOS.items(), (TEXT_ALONE, (0, 0, 0, 0, 1.2))]:
        path = folder / f"{name}.mp4"
        CONFIG_16K.duration = duration_sec
        if count:
            encode(path, [moving_picture(i, float(1 / Fraction(rate)), width, height) for i in range(count)], rate, crf="30")
            info = eval_utils.load_video(path, duration_sec)
            CONFIG_16K.duration = info.duration_sec
        net.update_seq_lengths(CONFIG_16K.latent_seq_len, CONFIG_16K.clip_seq_len, CONFIG_16K.sync_seq_len)
        noise = rng.normal(size=(1, CONFIG_16K.latent_seq_len, net.latent_dim)).astype(np.float32)
        kept = {}

        def keep(name, function, kept=kept):
            def keeping(x, **options):
                kept[name] = (x if name == "latents" else function(x, **options)).numpy().copy()
                return function(x, **options)

            return keeping

        real = {each: getattr(utils, each) for each in ("encode_video_with_clip", "encode_video_with_sync", "decode")}
        for each, tensor in zip(real, ("clip", "sync", "latents")):
            setattr(utils, each, keep(tensor, real[each]))
        drawn, torch.randn = torch.randn, lambda *_, noise=noise, **__: torch.tensor(noise)
        try:
            with torch.inference_mode():
                frames = (info.clip_frames[None], info.sync_frames[None]) if count else (None, None)
                waveform = eval_utils.generate(
                    *frames, [PROMPT], feature_utils=utils, net=net,
                    fm=FlowMatching(num_steps=STEPS), rng=torch.Generator(), cfg_strength=GUIDANCE,
                )
        finally:
            torch.randn = drawn
            for each, function in real.items():
                setattr(utils, each, function)
        found |= {f"video/{name}/{key}": value[0] for key, value in kept.items()}
        found |= {f"video/{name}/noise": noise[0], f"video/{name}/waveform": waveform.numpy().reshape(-1)}
        found |= {} if not count else {
            f"video/{name}/file": np.frombuffer(path.read_bytes(), np.uint8),
            f"video/{name}/clip_frames": in_levels(info.clip_frames, 255)[::4, ::8, ::8],
            f"video/{name}/sync_frames": in_levels(info.sync_frames, 127.5, 1)[::4, ::8, ::8],
        }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mmaudio", required=True, type=pathlib.Path, metavar="CHECKOUT")
    sys.path.insert(0, str(parser.parse_args().mmaudio))
    from mmaudio import eval_utils
    import torch

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        found = frame_choices(eval_utils, folder) | scaled_pictures(folder, eval_utils) | token_ids()
        found |= sounds(eval_utils, folder)
    np.savez_compressed(TESTS / "golden" / "front_end.npz", **found)


if __name__ == "__main__":
    main()
