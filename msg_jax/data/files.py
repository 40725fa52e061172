"""Find media files below a folder, and write files that are never half made."""

from collections.abc import Collection, Iterator
import contextlib
import hashlib
import os
import pathlib

from msg_jax import storage
from msg_jax.errors import UserError
from msg_jax.storage import Path


def find_files(root: Path, suffixes: Collection[str]) -> tuple[list[Path], list[dict]]:
    """All files below `root` with one of `suffixes`, sorted, and rows {"path", "reason"} for folders that cannot be listed.

    Links to folders are followed; every folder is visited once, by its own name rather than a link's, and a link to a folder
    that holds `root` is left out. Skips names that begin with a dot.
    """
    if storage.in_bucket(root):
        shown = (path for path in storage.files_below(root) if not any(part[0] == "." for part in path.relative_to(root).parts))
        return [path for path in shown if path.suffix.lower() in suffixes], []
    found, unlisted, visited = [], [], set()
    real_root, pending = os.path.realpath(root), [str(root)]

    def report(error: OSError) -> None:
        path = error.filename or str(root)
        reason = f"{path} cannot be listed ({error.strerror}); make it readable or leave it out"
        unlisted.append({"path": path, "reason": reason})

    while pending:
        for folder, subfolders, names in os.walk(pending.pop(0), onerror=report):
            real = os.path.realpath(folder)
            if real in visited:
                subfolders.clear()
                continue
            visited.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for path in (os.path.join(folder, name) for name in subfolders):
                target = os.path.realpath(path)
                if os.path.islink(path) and os.path.commonpath([real_root, target]) != target:
                    pending.append(path)
            for path in (os.path.join(folder, name) for name in names if not name.startswith(".")):
                if os.path.splitext(path)[1].lower() in suffixes and (os.path.isfile(path) or os.path.islink(path)):
                    found.append(pathlib.Path(path))
    return sorted(found), unlisted


@contextlib.contextmanager
def new_file(path: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`: renamed to it on success, removed on any exception.

    Raises UserError if `path` exists (unless `overwrite`) or cannot be written.
    """
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # `path` may have the longest name that there can be
    unfinished = path.with_name(f".{name}.{os.getpid()}.unfinished{path.suffix}")
    try:
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists already; pass --overwrite to replace it, or choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); choose another place") from error
