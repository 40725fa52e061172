"""python -m msg_jax.doctor [--weights=DIR]

Report what is installed, which released files are in DIR, and which variants this machine has the memory for.
"""

import argparse
from collections.abc import Iterable, Sequence
from importlib import metadata
import pathlib
import platform
import sys
from typing import TYPE_CHECKING

import msg_jax
from msg_jax.tables import aligned

if TYPE_CHECKING:
    from msg_jax.convert.bundle import Released, Variant

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av", "soundfile", "safetensors")
# Bytes beside the weights: the peak of each stage's programs in float32 (benchmarks/inference.py, large variants, two windows
# at a time), and of a process with the libraries loaded.
WORKING_BYTES = {"encoders": 400_000_000, "text": 100_000_000, "generator": 900_000_000, "codec": 1_100_000_000}
PROCESS_BYTES = 700_000_000
SIZE_TOLERANCE = 0.1  # published sizes are rounded, in MB or MiB


def versions() -> Iterable[tuple[str, str]]:
    yield "msg_jax", msg_jax.__version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "MISSING"


def state_of(path: pathlib.Path | None, file: "Released") -> str:
    """`missing`, `found`, or how the file's size differs from the published one."""
    from msg_jax.convert.bundle import show_size

    if path is None:
        return "missing"
    share = path.stat().st_size / file.bytes
    if abs(share - 1) <= SIZE_TOLERANCE:
        return "found"
    return f"{'cut short' if share < 1 else 'another file'}: {show_size(path.stat().st_size)}"


def stage_bytes(variant: "Variant") -> dict[str, int]:
    """Memory of each stage of `generate`, weights and programs, and of converting the files once."""
    from msg_jax.convert.bundle import STAGES, shapes

    needed = {"converting": 2 * max(network.file.bytes for network in variant.networks.values())}
    for stage, kinds in STAGES.items():
        sizes = (
            leaf.size for kind, prefixes in kinds.items()
            for name, leaf in shapes(kind, variant.networks[kind].config).items() if name.startswith(prefixes or "")
        )
        needed[stage] = 4 * sum(sizes) + WORKING_BYTES[stage]
    return needed


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

    from msg_jax.convert.bundle import DOCUMENT, EVALUATION, VARIANTS, VOCABULARY, find, show_size
    from msg_jax.infra import memory

    available = memory.available_bytes()
    devices = jax.local_devices()
    yield f"Devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {show_size(available)} free"

    states = {}
    if folder is not None:
        files = {network.file: None for variant in VARIANTS.values() for network in variant.networks.values()}
        states = {file: state_of(find(folder, file), file) for file in (*files, VOCABULARY)}
        rows = [(file.name, show_size(file.bytes), state) for file, state in states.items()]
        yield f"Released files in {folder} ({DOCUMENT} says where they are published)\n" + table(
            [("file", "published", "state"), *rows]
        )
        rows = [
            (file.name, show_size(file.bytes), state_of(find(folder, file), file), kind)
            for kind, files in EVALUATION.items() for file in files
        ]
        yield "Files for configs/evaluate.py (one per network is enough)\n" + table(
            [("file", "published", "state", "network"), *rows]
        )

    rows = []
    for name, variant in VARIANTS.items():
        needed = stage_bytes(variant)
        most = max(needed.values()) + PROCESS_BYTES
        lacking = sum(states.get(network.file) != "found" for network in variant.networks.values())
        ready = "" if folder is None else "ready" if not lacking else f"{lacking} files missing"
        enough = "enough" if most <= available else f"{show_size(most - available)} too little"
        rows.append((name, *map(show_size, needed.values()), show_size(most), enough, ready))
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
