"""The web server: the page at /, the HTTP API at /generate, and results at /results."""

import asyncio
from collections.abc import Mapping
import io
import os
import pathlib
import tempfile
from typing import Any
import zipfile

import fastapi  # pyright: ignore[reportMissingImports] comes with gradio, an optional dependency
from fastapi import responses  # pyright: ignore[reportMissingImports]
import gradio  # pyright: ignore[reportMissingImports]
from starlette.concurrency import run_in_threadpool  # pyright: ignore[reportMissingImports]

from msg_jax.app import page
from msg_jax.app.guard import SESSION, Guard
from msg_jax.app.jobs import Job, QueueFullError
from msg_jax.app.studio import Outcome, Studio, plain_name, read_request
from msg_jax.errors import UserError

_BLOCK = 1 << 20
_POLL_SEC = 0.1
_FIELDS = 40  # more than a form can have


def application(studio: Studio) -> Guard:
    """The ASGI application for a studio."""
    os.environ["GRADIO_TEMP_DIR"] = str(studio.folder / "uploads")  # deleted with the studio
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/generate")
    async def generate(request: fastapi.Request):
        """Form fields are those of `api.Request`, the file `video`, and `answer`: sound (the default) or video."""
        async with request.form(max_files=1, max_fields=_FIELDS) as form:
            fields: dict[str, Any] = dict(form)
            with tempfile.TemporaryDirectory(dir=studio.folder) as folder:
                try:
                    upload, answer = fields.pop("video", None), fields.pop("answer", "sound")
                    if answer not in ("sound", "video"):
                        raise UserError(f"answer={answer} is neither sound nor video")
                    video = None if upload is None else await _keep(upload, pathlib.Path(folder))
                    job = await run_in_threadpool(studio.submit, request.scope[SESSION], video, read_request(fields))
                    await _finish(studio, job, request)
                except UserError as error:
                    return responses.JSONResponse({"error": str(error)}, 503 if isinstance(error, QueueFullError) else 400)
        if job.state != "done":
            status, sentence = (499, "the client left") if job.state == "cancelled" else (400, page.what_failed(job))
            return responses.JSONResponse({"error": sentence}, status)
        return await run_in_threadpool(_answer, job.result, answer)

    @app.get("/results/{token}/{name}")
    def result(token: str, name: str, request: fastapi.Request, download: bool = False):
        path = studio.file(request.scope[SESSION], token, name)
        if path is None:
            return responses.JSONResponse({"error": "there is no such result for you"}, 404)
        return responses.FileResponse(path, filename=name if download else None, headers={"cache-control": "private"})

    gradio.mount_gradio_app(
        app, page.blocks(studio), path="/", css=page.CSS, head=page.HEAD, theme=page.theme(), footer_links=[],
        max_file_size=studio.limits.upload_bytes, ssr_mode=False, enable_monitoring=False, run_history=False,
    )
    return Guard(app, studio.limits.upload_bytes)


async def _keep(upload: Any, folder: pathlib.Path) -> pathlib.Path:
    """Stores an uploaded file under its own name. Raises UserError for names that are paths, and for text in its place."""
    if isinstance(upload, str):
        raise UserError("video is text: send a file, as curl does with -F video=@clip.mp4")
    path = folder / plain_name(upload.filename or "")
    with path.open("wb") as file:
        while block := await upload.read(_BLOCK):
            file.write(block)
    return path


async def _finish(studio: Studio, job: Job, request: fastapi.Request) -> None:
    """Waits for the job, and cancels it if the client leaves."""
    while not job.is_over:
        if await request.is_disconnected():
            studio.queue.cancel(job)
        await asyncio.sleep(_POLL_SEC)


def _answer(outcome: Outcome, kind: str):
    """The file of one variant, or a zip archive of several."""
    paths = [take.video if kind == "video" and take.video else take.sound for take in outcome.takes]
    if len(paths) == 1:
        return responses.FileResponse(paths[0], filename=paths[0].name)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    headers: Mapping[str, str] = {"content-disposition": 'attachment; filename="takes.zip"'}
    return responses.Response(packed.getvalue(), media_type="application/zip", headers=headers)
