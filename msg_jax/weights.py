"""msg-jax weights get VARIANT [--to=FOLDER] [--accept-licence]

Fetch the released files of a variant (small_16k, small_44k, medium_44k, large_44k or large_44k_v2), or those of `evaluation`,
into FOLDER, from fixed revisions. Files that are there already, or in the cache of Hugging Face (HF_HOME), are checked and not
fetched again. An interrupted download continues. HF_ENDPOINT names a mirror of Hugging Face.
"""

import argparse
from collections.abc import Sequence
import pathlib
import shutil
import sys
from typing import TYPE_CHECKING

from msg_jax.errors import UserError, fail

if TYPE_CHECKING:
    from msg_jax.convert.bundle import Released


def parser() -> argparse.ArgumentParser:
    usage, _, details = (__doc__ or "").partition("\n\n")
    flags = argparse.ArgumentParser(prog="msg-jax weights", usage=usage, description=details, allow_abbrev=False)
    flags.add_argument("action", choices=("get",))
    flags.add_argument("variant", metavar="VARIANT")
    flags.add_argument("--to", type=pathlib.Path, default=pathlib.Path("weights"), metavar="FOLDER", help="(default: weights)")
    flags.add_argument("--accept-licence", action="store_true", help="accept the licences that are printed, without a question")
    return flags


def files_of(name: str) -> list["Released"]:
    """The files of a variant, or of `evaluation`. Raises UserError for another name."""
    from msg_jax.convert.bundle import EVALUATION, VARIANTS, VOCABULARY

    if name == "evaluation":
        return [file for files in EVALUATION.values() for file in files if file.address]
    if name not in VARIANTS:
        raise UserError(f"{name} is no released variant: choose one of {', '.join(VARIANTS)}, or evaluation")
    return [*(network.file for network in VARIANTS[name].networks.values()), VOCABULARY]


def licences(files: Sequence["Released"]) -> str:
    """Every licence, with the files that are under it."""
    from msg_jax.convert.bundle import show_size

    under: dict[str, list[str]] = {}
    for file in files:
        under.setdefault(file.licence, []).append(f"{file.name} ({show_size(file.bytes)})")
    return "\n".join(f"{', '.join(names)}\n    {licence}" for licence, names in under.items())


def get(name: str, folder: pathlib.Path, accepted: bool) -> None:
    """Fetch the files. Raises UserError if one cannot be had, if the licences are refused, or if the disk is too small."""
    from tqdm import tqdm

    from msg_jax.convert.bundle import locate, show_size
    from msg_jax.convert.fetch import RECORD, fetch

    files = files_of(name)
    absent = [file for file in files if locate(folder, file) is None]
    if absent:
        print(licences(absent), flush=True)
        _ask(accepted)
        _refuse_small_disk(absent, folder)
    for file in files:
        with tqdm(total=file.bytes, unit="B", unit_scale=True, desc=file.name, disable=file not in absent) as bar:

            def show(done: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            found = fetch(file, folder, show)
        state = f"its {found.checked} is the published one" if found.checked else (
            f"no sum is published for it; its SHA-256 is {found.sha256}, see {folder / RECORD}")
        print(f"{found.path} ({show_size(found.path.stat().st_size)}): {state}", flush=True)
    if name != "evaluation":
        print(f"\nmsg-jax generate clip.mp4 --weights={folder} --variant={name} --out=out/")


def _ask(accepted: bool) -> None:
    if accepted:
        return
    if not sys.stdin.isatty():
        raise UserError("the licences above are not accepted: read them, then pass --accept-licence")
    if input("Do you accept these licences? [yes/no] ").strip().lower() not in ("y", "yes"):
        raise UserError("the licences were not accepted, and nothing was fetched: answer yes, or pass --accept-licence")


def _refuse_small_disk(files: Sequence["Released"], folder: pathlib.Path) -> None:
    from msg_jax.convert.bundle import show_size

    above = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    begun = sum(part.stat().st_size for file in files if (part := folder / f"{file.name}.part").exists())
    needed, free = sum(file.bytes for file in files) - begun, shutil.disk_usage(above).free
    if needed > free:
        raise UserError(f"{folder} has {show_size(free)} free, but {show_size(needed)} are needed: choose another with --to")


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        get(args.variant, args.to, args.accept_licence)
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; run the command again to continue where it was.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
