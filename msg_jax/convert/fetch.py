"""Fetch released files over https: resumed where they stopped, and named only when they are whole and right.

Hugging Face's own client is not used: it compares no sums, and does not resume a download that an earlier process began.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
from http.client import HTTPException, HTTPResponse
import json
import os
import pathlib
import re
import time
import urllib.error
from urllib.parse import urlsplit
import urllib.request

from msg_jax.convert.bundle import HUB, Released, locate, show_size
from msg_jax.errors import UserError
from msg_jax.storage import write_atomically

RECORD = "fetched.json"
ATTEMPTS = 5  # connections in a row that bring nothing
STALL_SEC = 30.0  # a server that sends nothing for this long is asked again
PAUSE_SEC = 1.0  # before the second attempt; doubled before each further one
_BLOCK = 1 << 20
_SIZE_TOLERANCE = 0.05  # published sizes are rounded; decides only where no sum is published
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # the others are the network's
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that another attempt may mend

Listener = Callable[[int, int], None]
"""(bytes on disk, bytes in all or the published size)."""


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A released file on disk. `checked` is "SHA-256", "MD5", or "" where no sum is published. `new`: it was fetched now."""

    path: pathlib.Path
    sha256: str
    checked: str
    new: bool


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to an unencrypted address."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise UserError(f"{req.full_url} redirects to the unencrypted {newurl}: try again later, or another HF_ENDPOINT")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _DamagedError(Exception):
    """The received bytes are not the published file."""


def address(file: Released) -> str:
    """Where the file is fetched from; for files on Hugging Face the environment variable HF_ENDPOINT names a mirror."""
    if file.address.startswith(f"{HUB}/"):
        return os.environ.get("HF_ENDPOINT", HUB).rstrip("/") + file.address.removeprefix(HUB)
    return file.address


def fetch(file: Released, folder: pathlib.Path, listener: Listener = lambda done, total: None) -> Fetched:
    """Make sure that a right copy of the file is in the folder, or in Hugging Face's cache, and return it.

    What has arrived is kept in `NAME.part`; the next call continues it. The file gets its name when its SHA-256 or MD5 is the
    published one. Where none is published, it must have the published size within 5 %. `fetched.json` in the folder records
    address, size and SHA-256 of each file. Raises UserError if the file cannot be had, and for another file of that name.
    """
    found = locate(folder, file)
    if found is not None:
        try:
            return _accept(file, found, folder, new=False)
        except _DamagedError as error:
            raise UserError(f"{found} is not the published file ({error}): move it away, then run the command again") from error
    part = folder / f"{file.name}.part"
    with _alone(part):
        _receive_all(file, part, listener)
        try:
            whole = _accept(file, part, folder, new=True)
        except _DamagedError:  # perhaps an earlier connection's doing: once more, from the first byte
            _discard(part)
            _receive_all(file, part, listener)
            try:
                whole = _accept(file, part, folder, new=True)
            except _DamagedError as error:
                _discard(part)
                raise UserError(f"{address(file)} is not the published {file.name} ({error}): try again later, or another "
                                "mirror with HF_ENDPOINT") from error
        target = folder / file.name
        part.replace(target)
        _note(part).unlink(missing_ok=True)
    return dataclasses.replace(whole, path=target)


@contextlib.contextmanager
def _alone(part: pathlib.Path) -> Iterator[None]:
    """Raises UserError if another process fetches the same file."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("ab")
    except OSError as error:
        raise UserError(f"{part} cannot be written ({error.strerror}): choose another folder with --to") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{part} is being fetched by another process: wait for it") from error
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()


def _receive_all(file: Released, part: pathlib.Path, listener: Listener) -> None:
    """Connects until the whole file is in `part`."""
    url, in_vain = address(file), 0
    while True:
        before = part.stat().st_size
        try:
            return _receive(url, part, file, listener)
        except (OSError, HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in _PASSING:
                raise UserError(f"{url} answers {error.code} {error.reason}: {file.name} cannot be fetched there") from error
            if isinstance(error, OSError) and error.errno in _DISK:
                raise UserError(f"{part} cannot be written ({error.strerror}): make room, then run this again") from error
            in_vain = 0 if part.stat().st_size > before else in_vain + 1
            if in_vain == ATTEMPTS:
                kept = show_size(part.stat().st_size)
                raise UserError(f"{url} cannot be read ({error}): {kept} are kept in {part}, run the command again to "
                                "continue") from error
        time.sleep(PAUSE_SEC * 2 ** max(0, in_vain - 1))


def _receive(url: str, part: pathlib.Path, file: Released, listener: Listener) -> None:
    """Continues `part` over one connection. Raises OSError or HTTPException if the connection ends before the file does."""
    note = _read_note(part)
    size = part.stat().st_size if note.get("address") == url else 0
    if size and size == note.get("bytes"):
        return
    request = urllib.request.Request(url, headers={"User-Agent": "msg_jax", "Accept-Encoding": "identity"})
    if size:
        request.add_header("Range", f"bytes={size}-")
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=STALL_SEC)
    except urllib.error.HTTPError as error:
        if error.code == 416 and size:  # the file has become shorter than what is here
            _discard(part)
            raise ConnectionError("the file has changed at its address") from error
        raise
    with response:
        total, etag = _length(response), response.headers.get("ETag")
        if response.status == 206 and (etag, total, _begin(response)) != (note.get("etag"), note.get("bytes"), size):
            _discard(part)
            raise ConnectionError("the file has changed at its address")
        if response.status != 206:
            size = 0
        if total and not 0.5 < total / file.bytes < 2:
            raise UserError(f"{url} has {show_size(total)}, but {file.name} has {show_size(file.bytes)}: try another mirror "
                            "with HF_ENDPOINT")
        with part.open("r+b", buffering=0) as out:
            out.truncate(size)
            out.seek(size)
            write_atomically(_note(part), json.dumps({"address": url, "etag": etag, "bytes": total}))
            while block := response.read1(_BLOCK):
                out.write(block)
                size += len(block)
                listener(size, total or file.bytes)
    if total and size < total:
        raise ConnectionError(f"the connection ended after {size} of {total} bytes")


def _length(response: HTTPResponse) -> int | None:
    """Size of the whole file, if the server tells."""
    if response.status == 206:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        total = response.headers.get("Content-Length", "")
    return int(total) if total.isdecimal() else None


def _begin(response: HTTPResponse) -> int | None:
    """First byte of a partial answer."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _note(part: pathlib.Path) -> pathlib.Path:
    """What the beginning in `part` belongs to, so that it is never continued with another file."""
    return part.with_name(f"{part.name}.json")


def _read_note(part: pathlib.Path) -> dict:
    try:
        return json.loads(_note(part).read_text())
    except (OSError, ValueError):
        return {}


def _discard(part: pathlib.Path) -> None:
    os.truncate(part, 0)
    _note(part).unlink(missing_ok=True)


def _accept(file: Released, path: pathlib.Path, folder: pathlib.Path, new: bool) -> Fetched:
    """Checks the file and records it. Raises _DamagedError."""
    sums = {name: hashlib.new(name) for name in ("sha256", "md5")}
    with path.open("rb") as content:
        while block := content.read(_BLOCK):
            for each in sums.values():
                each.update(block)
    sha256, md5, size = sums["sha256"].hexdigest(), sums["md5"].hexdigest(), path.stat().st_size
    record = folder / RECORD
    rows = json.loads(record.read_text()) if record.exists() else {}
    if file.sha256:
        checked, right = "SHA-256", sha256 == file.sha256
    elif file.md5:
        checked, right = "MD5", md5 == file.md5
    else:
        checked, right = "", abs(size / file.bytes - 1) <= _SIZE_TOLERANCE
        if not new and file.name in rows:
            right = sha256 == rows[file.name]["sha256"]
    if not right:
        raise _DamagedError(f"{checked or 'its size'} differs, {show_size(size)} of {show_size(file.bytes)}")
    row = {"address": address(file) if new else str(path), "bytes": size, "sha256": sha256, "checked": checked or None}
    if new or file.name not in rows:
        write_atomically(record, json.dumps(rows | {file.name: row}, indent=1) + "\n")
    return Fetched(path, sha256, checked, new)
