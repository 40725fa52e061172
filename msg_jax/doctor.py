"""python -m msg_jax.doctor [--weights=DIR]

Report what is installed, which released files are in DIR and whether their sums are the published ones, and which variants
this machine has the memory for. Without DIR, look into the cache of Hugging Face.
"""

import argparse
from collections.abc import Collection, Iterable, Sequence
import hashlib
from importlib import metadata
import pathlib
import platform
import sys
from typing import TYPE_CHECKING

import msg_jax
from msg_jax.tables import aligned

if TYPE_CHECKING:
    from msg_jax.convert.bundle import Released, Variant

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av", "soundfile", "safetensors", "ftfy")
# Bytes beside the weights: the peak of each stage's programs in float32 (benchmarks/inference.py, large variants, two windows
# at a time), and of a process with the libraries loaded.
WORKING_BYTES = {"encoders": 400_000_000, "text": 100_000_000, "generator": 900_000_000, "codec": 1_100_000_000}
PROCESS_BYTES = 700_000_000
SIZE_TOLERANCE = 0.05  # published sizes are rounded
USABLE = ("found", "verified")


def versions() -> Iterable[tuple[str, str]]:
    yield "msg_jax", msg_jax.__version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "MISSING"


def state_of(path: pathlib.Path | None, file: "Released") -> str:
    """`missing`, `verified` by its sum, `found` where none is published, or how the file differs from the published one."""
    from msg_jax.convert.bundle import show_size

    if path is None:
        return "missing"
    share = path.stat().st_size / file.bytes
    if abs(share - 1) <= SIZE_TOLERANCE:
        kind, published = ("SHA-256", file.sha256) if file.sha256 else ("MD5", file.md5)
        if not published:
            return "found"
        with path.open("rb") as content:
            found = hashlib.file_digest(content, kind.replace("-", "")).hexdigest()
        return "verified" if found == published else f"damaged: another {kind}"
    return f"{'cut short' if share < 1 else 'another file'}: {show_size(path.stat().st_size)}"


def stage_bytes(variant: "Variant", converted: Collection[str] = ()) -> dict[str, int]:
    """Memory of each stage of `generate`, weights and programs, and of converting the files that are not `converted` yet."""
    from msg_jax.convert.bundle import STAGES, shapes

    pending = (network.file.bytes for kind, network in variant.networks.items() if kind not in converted)
    needed = {"converting": 2 * max(pending, default=0)}
    for stage, kinds in STAGES.items():
        sizes = (
            leaf.size for kind, prefixes in kinds.items()
            for name, leaf in shapes(kind, variant.networks[kind].config).items() if name.startswith(prefixes or "")
        )
        needed[stage] = 4 * sum(sizes) + WORKING_BYTES[stage]
    return needed


def converted_kinds(folder: pathlib.Path, variant: "Variant") -> list[str]:
    """The kinds of networks that are converted already, of a variant whose files are all there."""
    from msg_jax.convert.bundle import Bundle

    files = Bundle(folder, variant)
    return [kind for kind in files.paths if files.is_converted(kind)]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Indented, left-aligned columns."""
    return "\n".join(f"  {line}" for line in aligned(rows, left=len(rows[0])).splitlines())


def report(folder: pathlib.Path | None) -> Iterable[str]:
    """The paragraphs of the report."""
    installed = list(versions())
    yield table(installed)
    if ("jax", "MISSING") in installed or ("flax", "MISSING") in installed:
        return
    import jax

    from msg_jax.convert.bundle import DOCUMENT, EVALUATION, VARIANTS, VISION, VOCABULARY, locate, show_size, snapshots
    from msg_jax.infra import memory

    available = memory.available_bytes()
    devices = jax.local_devices()
    yield f"Devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {show_size(available)} free"

    states = {}
    folder = folder or next(iter(snapshots("hkchengrex/MMAudio")), None)
    if folder is not None:
        folder = folder.parent if folder.is_file() else folder
        files = {network.file: None for variant in VARIANTS.values() for network in variant.networks.values()}
        states = {file: state_of(locate(folder, file), file) for file in (*files, VOCABULARY)}
        rows = [(file.name, show_size(file.bytes), state) for file, state in states.items()]
        yield f"Released files in {folder} ({DOCUMENT} says where they are published)\n" + table(
            [("file", "published", "state"), *rows]
        )
        rows = [
            (file.name, show_size(file.bytes), states.get(file) or state_of(locate(folder, file), file), kind)
            for kind, files in EVALUATION.items() for file in files
        ]
        yield "Files for configs/evaluate.py (one per network is enough)\n" + table(
            [("file", "published", "state", "network"), *rows]
        )
        rows = [
            (network.file.name, show_size(network.file.bytes), state_of(locate(folder, network.file), network.file), kind)
            for kind, network in VISION.items()
        ]
        yield "Other vision encoders\n" + table([("file", "published", "state", "config.encoders.kind"), *rows])

    rows = []
    for name, variant in VARIANTS.items():
        lacking = sum(states.get(network.file) not in USABLE for network in variant.networks.values())
        needed = stage_bytes(variant, converted_kinds(folder, variant) if folder and not lacking else ())
        most = max(needed.values()) + PROCESS_BYTES
        ready = "" if folder is None else "ready" if not lacking else f"{lacking} files missing"
        enough = "enough" if most <= available else f"{show_size(most - available)} too little"
        sizes = [show_size(size) if size else "done" for size in needed.values()]
        rows.append((name, *sizes, show_size(most), enough, ready))
    titles = ("variant", *needed, "needed", "memory", "files" if folder else "")
    yield "Memory of each variant by stage (converting: once)\n" + table([titles, *rows])


def main(argv: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(prog="msg-jax doctor", description=(__doc__ or "").partition("\n\n")[2],
                                    allow_abbrev=False)
    flags.add_argument("--weights", type=pathlib.Path, metavar="DIR", help="folder of released files")
    print("\n\n".join(report(flags.parse_args(argv).weights)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
