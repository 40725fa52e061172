"""Folders of released files: the files of each variant of MMAudio, and the cache of their converted networks.

The cache is `converted/` in that folder, one .safetensors file per network. A network is converted again when its released
file or its conversion table changes.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import hashlib
import importlib
import inspect
import os
import pathlib
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy

from msg_jax.clip import MMAUDIO_16K, MMAUDIO_44K, ClipSpec
from msg_jax.convert import CONVERTERS, from_torch, weights
from msg_jax.errors import UserError
from msg_jax.models import clip_encoder, mmdit, synchformer, vae, vjepa2, vocoder
from msg_jax.types import Params

CONVERTED = "converted"
DOCUMENT = "docs/WEIGHTS.md"
_COMPLETE = 0.9  # smaller shares of the published size are incomplete downloads


@dataclasses.dataclass(frozen=True)
class Released:
    """One published file and its size, as published or as its parameters take (within a few percent).

    `md5` and `sha256` are published sums, "" if there is none. `repositories` are those on Hugging Face that hold the file.
    `address` is where `fetch.fetch` takes it from, at a fixed revision; `licence` is what the publisher says about its use.
    """

    name: str
    bytes: int
    md5: str = ""
    repositories: tuple[str, ...] = ()
    sha256: str = ""
    address: str = ""
    licence: str = ""


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of a variant: its file, and the configuration that `convert.from_torch` checks it against."""

    file: Released
    config: Any


@dataclasses.dataclass(frozen=True)
class Variant:
    """One released system: its lengths and rates, and its networks by kind (`convert.CONVERTERS`)."""

    clip: ClipSpec
    networks: Mapping[str, Network]


HUB = "https://huggingface.co"
_MMAUDIO = ("hkchengrex/MMAudio",)
_CLIP = ("apple/DFN5B-CLIP-ViT-H-14-384", "apple/DFN5B-CLIP-ViT-H-14-378")
_BIGVGAN = ("nvidia/bigvgan_v2_44khz_128band_512x",)
_MMAUDIO_AT = f"{HUB}/hkchengrex/MMAudio/resolve/eb13a1a98fdbec91753775c57b074ccdfc60587c"
_CLIP_AT = f"{HUB}/apple/DFN5B-CLIP-ViT-H-14-378/resolve/01b771ed0d1395ca5ffdd279897d665ebe00dfd2"
_BIGVGAN_AT = f"{HUB}/nvidia/bigvgan_v2_44khz_128band_512x/resolve/95a9d1dcb12906c03edd938d77b9333d6ded7dfb"
_PANNS_AT = "https://zenodo.org/records/3987831/files"

_NON_COMMERCIAL = "CC BY-NC 4.0, non-commercial: https://creativecommons.org/licenses/by-nc/4.0/"
_APPLE = f"Apple's machine learning research licence: {HUB}/apple/DFN5B-CLIP-ViT-H-14-378/blob/main/LICENSE"
_NOT_STATED = "the authors license their code under MIT and say nothing about the weights"

VOCABULARY = Released(  # optional: for prompts
    "bpe_simple_vocab_16e6.txt.gz", 1_356_917, "933b7abbbbde62c36f02f0e6ccde464f",
    sha256="924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
    address="https://raw.githubusercontent.com/openai/CLIP/d05afc436d78f1c48dc0dbf8e5980a9d471f35f6/clip/"
    "bpe_simple_vocab_16e6.txt.gz",
    licence="MIT: https://github.com/openai/CLIP/blob/main/LICENSE",
)


def _of_mmaudio(
    name: str, size: int, md5: str, sha256: str = "", folder: str = "ext_weights", licence: str = _NON_COMMERCIAL
) -> Released:
    return Released(name, size, md5, _MMAUDIO, sha256, f"{_MMAUDIO_AT}/{folder}/{name}", licence)


_SYNCHFORMER = _of_mmaudio(
    "synchformer_state_dict.pth", 951_000_000, "5b2f5594b0730f70e41e549b7c94390c",
    "8aff082f2df5c3bc52759db0c865c7ee772ae6400b860d1b7e90413f2defb67c",
    licence=f"{_NOT_STATED}: https://github.com/v-iashin/Synchformer",
)
EVALUATION = {
    "vggish": (Released(
        "vggish-10086976.pth", 288_600_000,
        address="https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
        licence="Apache 2.0 for the code, nothing stated about the weights: https://github.com/harritaylor/torchvggish",
    ),),
    "panns": tuple(
        Released(name, size, md5, address=f"{_PANNS_AT}/{name.replace('=', '%3D')}?download=1",
                 licence="CC BY 4.0, not verified here: https://zenodo.org/records/3987831")
        for name, size, md5 in (
            ("Cnn14_16k_mAP=0.438.pth", 324_000_000, "362fc5ff18f1d6ad2f6d464b45893f2c"),
            ("Cnn14_mAP=0.431.pth", 327_400_000, "541141fa2ee191a88f24a3219fff024e"),
        )
    ),
    "synchformer": (_SYNCHFORMER, Released("24-01-04T16-39-21.pt", 951_000_000)),
}
"""Networks of an evaluation: kind -> its file, under each of its published names."""

_ENCODERS = {
    "clip": Network(
        Released(
            "open_clip_pytorch_model.bin", 3_950_000_000, "", _CLIP,
            "c07a17b547d461c60a3cce5062b26bf8545b13de602c4c59d8490361eb716033",
            f"{_CLIP_AT}/open_clip_pytorch_model.bin", _APPLE,
        ),
        clip_encoder.PRESETS["vit_h_14"],
    ),
    "synchformer": Network(_SYNCHFORMER, synchformer.PRESETS["released"]),
}
_CODEC_16K = {
    "vae": Network(_of_mmaudio("v1-16.pth", 687_000_000, "69f56803f59a549a1a507c93859fd4d7"), vae.PRESETS["16k"]),
    "bigvgan": Network(
        _of_mmaudio(
            "best_netG.pt", 450_000_000, "eeaf372a38a9c31c362120aba2dde292",
            "970ca75ee4d5ce583e9396a4534acb14971ea2b4f1c22e038f476680c868a789",
            licence=f"{_NOT_STATED}: https://github.com/bytedance/Make-An-Audio-2",
        ),
        vocoder.PRESETS["16k"],
    ),
}
_CODEC_44K = {
    "vae": Network(
        _of_mmaudio(
            "v1-44.pth", 1_222_000_000, "fab020275fa44c6589820ce025191600",
            "ab6cc15dc31947675f75c950c41f4dcfd0d6d1817555ac871f809ec388e4651a",
        ),
        vae.PRESETS["44k"],
    ),
    "bigvgan": Network(
        Released(
            "bigvgan_generator.pt", 489_000_000, "", _BIGVGAN,
            "d9fe7ec6bd0b44ed9d66973d5012d8181c1570b01e5c72df51973e241dccd357",
            f"{_BIGVGAN_AT}/bigvgan_generator.pt", f"MIT: {HUB}/nvidia/bigvgan_v2_44khz_128band_512x",
        ),
        vocoder.PRESETS["44k"],
    ),
}


def _variant(name: str, megabytes: int, md5: str, clip: ClipSpec, codec: dict[str, Network], sha256: str = "") -> Variant:
    generator = _of_mmaudio(f"mmaudio_{name}.pth", megabytes * 10**6, md5, sha256, folder="weights")
    return Variant(clip, {"mmdit": Network(generator, mmdit.PRESETS[name]), **_ENCODERS, **codec})


VARIANTS = {
    "small_16k": _variant("small_16k", 630, "af93cde404179f58e3919ac085b8033b", MMAUDIO_16K, _CODEC_16K,
                          "61987bcbd6fc689af063075d7efaef29425f65df155dac589c07fa8173a03c1c"),
    "small_44k": _variant("small_44k", 630, "babd74c884783d13701ea2820a5f5b6d", MMAUDIO_44K, _CODEC_44K),
    "medium_44k": _variant("medium_44k", 2_490, "5a56b6665e45a1e65ada534defa903d0", MMAUDIO_44K, _CODEC_44K),
    "large_44k": _variant("large_44k", 4_120, "fed96c325a6785b85ce75ae1aafd2673", MMAUDIO_44K, _CODEC_44K),
    "large_44k_v2": _variant("large_44k_v2", 4_120, "01ad4464f049b2d7efdaa4c1a59b8dfe", MMAUDIO_44K, _CODEC_44K,
                             "a6bf693424fbd4ce0244fff8c412347714d5ac586e28dbeffadfa0f2b647af74"),
}

VISION = {
    "vjepa2": Network(
        Released("vjepa2-vitl-fpc64-256/model.safetensors", 1_304_000_000,
                 licence=f"MIT, not verified here: {HUB}/facebook/vjepa2-vitl-fpc64-256"),
        vjepa2.PRESETS["vitl"],
    ),
}
"""Vision encoders that no variant has: value of `config.encoders.kind` -> network."""

STAGES = {
    "encoders": {"clip": ("params/image/",), "synchformer": ()},
    "text": {"clip": ("params/text/",)},
    "generator": {"mmdit": ()},
    "codec": {"vae": ("params/decoder/", "buffers/"), "bigvgan": ()},
}
"""Networks in memory at the same time during generation: kind -> prefixes of the variables that are loaded; () means all."""

_EXAMPLES: dict[str, Callable[[Any], tuple[nn.Module, tuple]]] = {
    "clip": lambda config: (clip_encoder.CLIP(config), (
        np.zeros((1, config.image_px, config.image_px, 3)), np.zeros((1, config.context_tokens), np.int32))),
    "synchformer": lambda config: (synchformer.Synchformer(config), (
        np.zeros((1, 1, config.segment_frames, config.image_px, config.image_px, 3)),)),
    "mmdit": lambda config: (mmdit.MMDiT(config), mmdit.example_inputs(config)),
    "vae": lambda config: (vae.VAE(config), (np.zeros((1, 2, config.bands)),)),
    "bigvgan": lambda config: (vocoder.BigVGAN(config), (np.zeros((1, 1, config.bands)),)),
}


@functools.cache
def shapes(kind: str, config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape of every variable of a network, without computing anything."""
    module, inputs = _EXAMPLES[kind](config)
    return _flat(weights.shapes_of(module, *inputs))


def tree_of_shapes(kind: str, config: Any, *prefixes: str) -> Params:
    """The shapes of what `Bundle.load` returns for these prefixes."""
    flat = {name: leaf for name, leaf in shapes(kind, config).items() if name.startswith(prefixes or "")}
    return traverse_util.unflatten_dict(flat, sep="/")


def _flat(variables: Params) -> dict[str, Any]:
    flat: dict[str, Any] = traverse_util.flatten_dict(variables, sep="/")
    return flat


def find(folder: pathlib.Path, file: Released) -> pathlib.Path | None:
    """Find a released file in the folder, in a folder directly inside it, or in `ext_weights` beside it.

    So both a checkout of MMAudio and its folder `weights` will do.
    """
    places = (folder.glob(file.name), folder.glob(f"*/{file.name}"), folder.resolve().parent.glob(f"ext_weights/{file.name}"))
    return next((path for place in places for path in sorted(place)), None)


def snapshots(repository: str) -> list[pathlib.Path]:
    """The snapshots of a Hugging Face repository in this machine's cache, the latest first."""
    home = pathlib.Path(os.environ.get("HF_HOME") or pathlib.Path.home() / ".cache" / "huggingface")
    cache = pathlib.Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    found = (cache / f"models--{repository.replace('/', '--')}" / "snapshots").glob("*")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def locate(folder: pathlib.Path, file: Released) -> pathlib.Path | None:
    """`find` a released file, or else take it from the cache of Hugging Face."""
    cached = (find(each, file) for repository in file.repositories for each in snapshots(repository))
    return find(folder, file) or next(filter(None, cached), None)


def choose(path: pathlib.Path, variant: str | None = None) -> tuple[pathlib.Path, str]:
    """Return (folder, variant), for a folder of released files or for an MM-DiT file inside one.

    `variant` is needed only if the folder has several MM-DiT files. Raises UserError if it is unknown, missing, or not that
    of the file, and if there is no MM-DiT.
    """
    names = {each.networks["mmdit"].file.name: name for name, each in VARIANTS.items()}
    if variant is not None and variant not in VARIANTS:
        raise UserError(f"--variant={variant} is unknown: choose one of {', '.join(VARIANTS)}")
    if path.is_file():
        named = names.get(path.name)
        if named is None:
            raise UserError(f"{path} is not named like a released MM-DiT: give one of {', '.join(names)}")
        if variant not in (None, named):
            raise UserError(f"{path} is not the variant {variant}: omit --variant, or give the folder")
        return path.parent, named
    if not path.is_dir():
        raise UserError(f"{path} does not exist: {_how_to_get(variant or 'small_16k', path)}")
    found = [name for name, each in VARIANTS.items() if find(path, each.networks["mmdit"].file)]
    if variant is None and not found:
        raise UserError(f"{path} contains none of {', '.join(names)}: {_how_to_get('small_16k', path)}")
    if variant is None and len(found) > 1:
        raise UserError(f"{path} contains {len(found)} variants ({', '.join(found)}): choose one with --variant")
    return path, variant or found[0]


def _name_of(variant: Variant) -> str | None:
    return next((name for name, each in VARIANTS.items() if each is variant), None)


def _how_to_get(variant: str | None, folder: pathlib.Path) -> str:
    published = f"{DOCUMENT} says where they are published"
    return f"`msg-jax weights get {variant} --to={folder}` fetches them, and {published}" if variant else published


class Bundle:
    """The files of one variant in one folder, and their converted networks."""

    def __init__(self, folder: pathlib.Path, variant: Variant):
        """Raises a UserError that lists every missing or incomplete file."""
        self.folder, self.variant = folder, variant
        self.paths: dict[str, pathlib.Path] = {}
        problems = []
        for kind, network in variant.networks.items():
            path, size = locate(folder, network.file), show_size(network.file.bytes)
            if path is None:
                problems.append(f"{network.file.name} ({size})")
                continue
            self.paths[kind] = path
            if path.stat().st_size < _COMPLETE * network.file.bytes:
                problems.append(f"{network.file.name} (has only {show_size(path.stat().st_size)} of {size})")
        if problems:
            raise UserError(
                f"{folder} lacks {len(problems)} of the files that are needed, {', '.join(problems)}: "
                f"{_how_to_get(_name_of(variant), folder)}"
            )

    @property
    def vocabulary(self) -> pathlib.Path | None:
        """File of the text tokeniser; None if it is absent."""
        return find(self.folder, VOCABULARY)

    def is_converted(self, kind: str) -> bool:
        """Whether the cache has this network, from the present file and conversion table."""
        return self._metadata(kind).get("made_from") == self._made_from(kind)

    def convert(self, kind: str) -> None:
        """Convert the released file and write the network to the cache. Needs about twice the file's size in memory.

        Raises UserError if a tensor does not fit, or if the folder is not writable.
        """
        path, network = self.paths[kind], self.variant.networks[kind]
        _, variables = from_torch(kind, weights.read_checkpoint(path), network.config, source=str(path))
        target = self._converted(kind)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        metadata = {"made_from": self._made_from(kind), "sha256": _sha256(path)}
        try:
            target.parent.mkdir(exist_ok=True)
            safetensors.numpy.save_file(_flat(variables), beside, metadata)
            beside.replace(target)
        except (OSError, safetensors.SafetensorError) as error:
            if beside.exists():
                beside.unlink()
            raise UserError(
                f"{target} cannot be written ({error}): copy or link the released files into a writable folder with "
                f"{show_size(path.stat().st_size)} free"
            ) from error

    def load(self, kind: str, *prefixes: str) -> Params:
        """Load the variables of a converted network, {"params": {...}, ...}, or only paths that begin with a prefix."""
        with safetensors.safe_open(self._converted(kind), "np") as file:
            names = [name for name in file.offset_keys() if name.startswith(prefixes or "")]
            # Block after every copy to the device; otherwise the whole network is in memory twice.
            flat = {name: jax.device_put(file.get_tensor(name)).block_until_ready() for name in names}
        return traverse_util.unflatten_dict(flat, sep="/")

    def stage(self, name: str) -> dict[str, Params]:
        """Load the variables of one of `STAGES`, by kind."""
        return {kind: self.load(kind, *prefixes) for kind, prefixes in STAGES[name].items()}

    def sha256(self, kind: str) -> str:
        """SHA-256 of the released file that was converted."""
        return self._metadata(kind)["sha256"]

    def checksums(self, *kinds: str) -> dict[str, str]:
        """SHA-256 of the released files of these kinds, by file name."""
        return {self.paths[kind].name: self.sha256(kind) for kind in kinds}

    def converted_bytes(self) -> int:
        """Size of all converted networks, the same in memory and on disk."""
        return sum(self._converted(kind).stat().st_size for kind in self.paths)

    def _converted(self, kind: str) -> pathlib.Path:
        name = pathlib.PurePath(self.variant.networks[kind].file.name).with_suffix("")
        return self.folder / CONVERTED / f"{'_'.join(name.parts)}.safetensors"

    def _metadata(self, kind: str) -> dict[str, str]:
        try:
            with safetensors.safe_open(self._converted(kind), "np") as file:
                return file.metadata() or {}
        except (OSError, safetensors.SafetensorError):
            return {}

    def _made_from(self, kind: str) -> str:
        """Hash of everything a conversion depends on: the released file, the configuration and the code."""
        stat, converter = self.paths[kind].stat(), importlib.import_module(CONVERTERS[kind])
        code = inspect.getsource(converter) + inspect.getsource(weights)
        parts = (stat.st_size, stat.st_mtime_ns, self.variant.networks[kind].config, code)
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def show_size(count: int) -> str:
    """Format a number of bytes in GB or MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
