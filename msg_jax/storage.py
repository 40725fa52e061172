"""Files on a disk or in a Google Cloud Storage bucket. Every path of a run is made here.

A path is a `pathlib.Path` or, for `gs://BUCKET/...`, an `epath.Path`. The code uses what both have: `/`, `name`, `parent`,
`exists`, `iterdir`, `glob` without `**`, `read_text`, `read_bytes`, `write_text`, `open`. All that differs is below.

In a bucket an object appears whole or not at all, but a folder is no more than the names of its objects: it cannot be renamed
in one step. So a folder counts as complete when its last file is there, never because it has its name.
"""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
import contextlib
import errno
import hashlib
import importlib.util
import os
import pathlib
import posixpath
import re
import shutil
import socket
import tempfile
from typing import TYPE_CHECKING, Any

from etils import epath

from msg_jax.errors import UserError

if TYPE_CHECKING:
    Path = pathlib.Path  # an `epath.Path` has the methods that the code uses
else:
    Path = pathlib.Path | epath.Path

_URL = re.compile(r"([A-Za-z]\w+):/+")
_FILES_AT_ONCE = 8
_LIBRARIES = ("gcsfs", "aiohttp", "google")  # they raise errors of their own, which are no OSError
os.environ.setdefault("EPATH_USE_TF", "false")  # gcsfs reads gs:// also where TensorFlow is installed


def path(place: str | os.PathLike) -> Path:
    """The path of a file or folder.

    Raises UserError for a URL that is not gs://, and for a gs:// URL if the library for it is missing.
    """
    url = _URL.match(os.fspath(place))
    if url is None:
        return pathlib.Path(place)
    if url[1] != "gs":
        raise UserError(f"{place} is a URL of the kind {url[1]}: give a folder, or gs://BUCKET/FOLDER.")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{place} needs the package gcsfs, which is not installed: pip install 'msg_jax[gcs]'.")
    return epath.Path(f"gs://{os.fspath(place)[url.end():]}")  # type: ignore[return-value] see `Path`


def in_bucket(place: Path) -> bool:
    """Whether the path is in a bucket."""
    return not isinstance(place, pathlib.Path)


def bucket_client() -> Any:
    """The gcsfs file system. It keeps no listings, so that a host sees at once what another one has written."""
    import fsspec
    import fsspec.config

    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return fsspec.filesystem("gcs")


def check_bucket(place: Path) -> None:
    """Raises UserError if `place` is in a bucket that cannot be listed. Writes nothing."""
    if not in_bucket(place):
        return
    bucket = place.parts[2]
    try:
        found = bucket_client().exists(f"gs://{bucket}")
    except Exception as error:
        raise UserError(f"The bucket {bucket} cannot be reached ({_first_line(error)}): check the network and the credentials "
                        "(gcloud auth application-default login).") from error
    if not found:
        raise UserError(f"The bucket {bucket} does not exist, or these credentials may not list it: create it, or grant "
                        "roles/storage.objectUser.")


def failure(error: Exception) -> str | None:
    """What went wrong in the bucket, in one line; None for other errors."""
    library = type(error).__module__.partition(".")[0]
    return f"{type(error).__name__}: {_first_line(error)}" if library in _LIBRARIES else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def absolute(place: Path) -> Path:
    """The path from the root of the disk or bucket, without links and `..`."""
    if not in_bucket(place):
        return place.resolve()
    return path("gs:/" + posixpath.normpath("/" + os.fspath(place).removeprefix("gs://")))


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted; none if it does not exist."""
    if in_bucket(folder):
        return sorted(path(f"gs://{name}") for name in bucket_client().find(os.fspath(folder)))
    return sorted(each for each in folder.rglob("*") if each.is_file())


def write_atomically(place: Path | str, content: str | bytes) -> None:
    """Writes a file that is never half written, and the folders above it. Text that is not UTF-8 is escaped."""
    with new_file(path(place)) as unfinished:
        unfinished.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


@contextlib.contextmanager
def new_file(place: Path, unfinished: str | None = None) -> Iterator[pathlib.Path]:
    """Yields a file on disk to write, which becomes `place` when the block ends without an exception.

    On a disk it lies beside `place`, under the name `unfinished`; the default differs between hosts and processes.
    """
    if in_bucket(place):
        with tempfile.TemporaryDirectory(prefix="msg_jax-") as folder:
            temporary = pathlib.Path(folder) / place.name
            yield temporary
            bucket_client().put_file(str(temporary), os.fspath(place))
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(unfinished or f".{place.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(place: Path) -> Iterator[str]:
    """Yields a folder on disk; what is in it when the block ends is below `place`, which may exist."""
    if not in_bucket(place):
        yield str(place)
        return
    with tempfile.TemporaryDirectory(prefix="msg_jax-") as folder:
        yield folder
        bucket_client().put(f"{folder}/", f"{place}/", recursive=True)


@contextlib.contextmanager
def on_disk(place: Path) -> Iterator[pathlib.Path]:
    """Yields the file on a disk: itself, or a copy that is gone after the block."""
    if not in_bucket(place):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="msg_jax-") as folder:
        copy = pathlib.Path(folder) / place.name
        bucket_client().get_file(os.fspath(place), str(copy))
        yield copy


def cached(place: Path) -> pathlib.Path:
    """A file or folder on a disk: itself, or a copy that stays in MSG_JAX_CACHE (default: ~/.cache/msg_jax/files).

    The copy is made again when an object has changed.
    """
    if not in_bucket(place):
        return place
    objects = bucket_client().find(os.fspath(place), detail=True)
    if not objects:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(place))
    versions = "".join(f"{name} {facts['size']} {facts.get('generation')}\n" for name, facts in sorted(objects.items()))
    root = os.environ.get("MSG_JAX_CACHE") or os.path.expanduser("~/.cache/msg_jax/files")
    copy = pathlib.Path(root) / hashlib.sha256(versions.encode()).hexdigest()[:20] / place.name

    def fetch(name: str) -> None:
        target = copy / path(f"gs://{name}").relative_to(place)
        if not target.exists():
            with new_file(target) as unfinished:
                bucket_client().get_file(name, str(unfinished))

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        list(pool.map(fetch, objects))
    return copy


def checksums(folder: Path, names: Collection[str]) -> dict[str, str]:
    """A checksum of each of the files `names` below a folder that exists: SHA-256, or the CRC32C that the bucket keeps.

    Reads files on a disk, several at once, and no object.
    """
    if in_bucket(folder):
        objects = bucket_client().find(os.fspath(folder), detail=True).items()
        found = {path(f"gs://{name}").relative_to(folder).as_posix(): facts["crc32c"] for name, facts in objects}
        return {name: f"crc32c {found[name]}" for name in names if name in found}

    def sha256(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    there = [name for name in names if (folder / name).is_file()]
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        return dict(zip(there, pool.map(sha256, there)))


def version_of(place: Path) -> list[int]:
    """Size and time of the last change, in nanoseconds; other numbers mean another content. Raises OSError if it is gone."""
    if in_bucket(place):
        facts = bucket_client().info(os.fspath(place))
        return [facts["size"], int(facts["mtime"].timestamp() * 1e9)]
    stat = place.stat()
    return [stat.st_size, stat.st_mtime_ns]


def move(folder: Path, target: Path) -> None:
    """Moves a folder. In a bucket its objects are copied before the old ones are deleted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if in_bucket(folder):
        bucket_client().mv(os.fspath(folder), os.fspath(target), recursive=True)
    else:
        folder.rename(target)


def remove(folder: Path) -> None:
    """Deletes a folder and all that is in it, if it exists."""
    if in_bucket(folder):
        with contextlib.suppress(FileNotFoundError):
            bucket_client().rm(os.fspath(folder), recursive=True)
    elif folder.exists():
        shutil.rmtree(folder)
