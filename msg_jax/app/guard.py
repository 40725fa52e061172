"""What stands before the page: sessions, limits on uploads, and files that only their owner gets.

Gradio serves a file to everybody who knows its path, takes addresses for files, and has routes that this app does not need.
"""

from collections import OrderedDict
from http.cookies import CookieError, SimpleCookie
import json
import re
import secrets
from typing import Any
from urllib.parse import unquote

COOKIE = "msg_jax_session"
SESSION = "msg_jax.session"  # key of the session's name in the ASGI scope
_JSON_BYTES = 1_000_000
_HEADER_BYTES = 16_384  # of the first part of an upload
_OWNED = 10_000  # paths whose owner is remembered
_NEEDED = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon.*|/generate|/results/.*"
    r"|/(assets|static|svelte)/.*"
    r"|/gradio_api/(queue/join|queue/data|upload|upload_progress|file=.*|heartbeat/.*|startup-events|app_id/?|cancel|reset/?)"
)
_UPLOADS = ("/generate", "/gradio_api/upload")


class _RefusedError(Exception):
    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class _Answer:
    """What is sent to one visitor: the app's answer with the session's cookie, or a refusal and nothing after it."""

    def __init__(self, send, cookie: str):
        self._send, self._cookie = send, cookie
        self._is_begun, self.is_refused = False, False

    async def send(self, message) -> None:
        if self.is_refused:
            return
        if message["type"] == "http.response.start":
            self._is_begun = True
            if self._cookie:
                message = {**message, "headers": [*message["headers"], (b"set-cookie", self._cookie.encode())]}
        await self._send(message)

    async def refuse(self, error: _RefusedError) -> None:
        if not self._is_begun:
            body = json.dumps({"error": str(error)}).encode()
            await self.send({"type": "http.response.start", "status": error.status, "headers": [
                (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close"),
            ]})
            await self.send({"type": "http.response.body", "body": body})
        self.is_refused = True


class Guard:
    """ASGI middleware. Every visitor gets a session, which is put into the scope under `SESSION`."""

    def __init__(self, app: Any, upload_bytes: int):
        self._app, self._upload_bytes = app, upload_bytes
        # Path of an upload -> sessions: equal files have one path, and belong to all who sent them.
        self._owners: OrderedDict[str, set[str]] = OrderedDict()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        session, is_new = _session(headers.get("cookie", ""))
        scope[SESSION] = session
        answer = _Answer(send, f"{COOKIE}={session}; Path=/; HttpOnly; SameSite=Lax" if is_new else "")
        try:
            path = scope["path"]
            self._check_route(scope["method"], path, headers)
            if path.startswith("/gradio_api/file="):
                self._check_owner(unquote(path.removeprefix("/gradio_api/file=")), session)
            if scope["method"] == "POST" and path in _UPLOADS:
                receive = self._limited(receive, headers, answer)
            if path == "/gradio_api/upload":
                await self._app(scope, await _checked_names(receive), self._remembering(answer.send, session))
            elif path == "/gradio_api/queue/join":
                await self._app(scope, await self._checked_paths(receive, session), answer.send)
            else:
                await self._app(scope, receive, answer.send)
        except _RefusedError as error:
            await answer.refuse(error)
        except Exception:
            if not answer.is_refused:  # else the app has only missed the rest of a refused upload
                raise

    def _check_route(self, method: str, path: str, headers: dict[str, str]) -> None:
        if not _NEEDED.fullmatch(path):
            raise _RefusedError(404, f"there is no {path[:100]} here")
        origin = headers.get("origin")
        if method == "POST" and origin is not None and origin.partition("://")[2] != headers.get("host"):
            raise _RefusedError(403, f"a page of {origin[:100]} may not use this server")

    def _check_owner(self, path: str, session: str) -> None:
        if session not in self._owners.get(path, ()):
            raise _RefusedError(403, "this file is not one that you sent")

    def _limited(self, receive, headers: dict[str, str], answer: "_Answer"):
        """Refuses an upload by its declared length, or while it arrives."""
        too_large = _RefusedError(413, f"the upload is larger than the {self._upload_bytes / 1e6:g} MB that are allowed here")
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._upload_bytes:
            raise too_large
        received = 0

        async def limited():
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._upload_bytes:
                await answer.refuse(too_large)
                return {"type": "http.disconnect"}
            return message

        return limited

    def _remembering(self, send, session: str):
        """Notes the paths that Gradio gives to uploaded files."""
        status, body = 0, b""

        async def sending(message):
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                body += message.get("body", b"")
                if status == 200 and not message.get("more_body"):
                    for path in json.loads(body):
                        self._owners.setdefault(path, set()).add(session)
                    while len(self._owners) > _OWNED:
                        self._owners.popitem(last=False)
            await send(message)

        return sending

    async def _checked_paths(self, receive, session: str):
        """Refuses a request that names a file of another session, a path, or an address."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                break
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > _JSON_BYTES:
                raise _RefusedError(413, "the request is too large")
        try:
            named = list(_files_in(json.loads(body)))
        except ValueError as error:
            raise _RefusedError(400, "the request is not JSON") from error
        for path in named:
            self._check_owner(path, session)
        return _replay(body, receive)


def _session(cookies: str) -> tuple[str, bool]:
    """The session of a visitor, and whether it is new."""
    try:
        found = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        found = None
    if found is not None and re.fullmatch(r"[\w-]{32,64}", found.value):
        return found.value, False
    return secrets.token_urlsafe(32), True


def _files_in(value: Any):
    """What a request gives as paths and addresses of files."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        for each in value.values():
            yield from _files_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from _files_in(each)


async def _checked_names(receive):
    """Refuses an upload whose first file is named like a path or an address."""
    head, messages = b"", []
    while b"\r\n\r\n" not in head and len(head) < _HEADER_BYTES:
        message = await receive()
        messages.append(message)
        head += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    for name in re.findall(rb'filename\*?="?([^"\r\n]*)', head.partition(b"\r\n\r\n")[0]):
        if re.search(rb"[/\\:\0]|\.\.", unquote(name.decode("latin-1")).encode("latin-1", "replace")):
            raise _RefusedError(400, "the file's name is a path or an address: send a file with a plain name")

    async def replaying():
        return messages.pop(0) if messages else await receive()

    return replaying


def _replay(body: bytes, receive):
    sent = False

    async def replaying():
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replaying
