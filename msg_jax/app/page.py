"""The page: a form with a field for each field of `api.Request`, progress, and the variants beside each other."""

import asyncio
import html
import math
import pathlib
from typing import Any
from urllib.parse import quote

import gradio as gr  # pyright: ignore[reportMissingImports] an optional dependency
from gradio.themes import Default  # pyright: ignore[reportMissingImports]

from msg_jax.app.guard import COOKIE
from msg_jax.app.jobs import Job
from msg_jax.app.studio import Outcome, Studio, Take, read_request
from msg_jax.data import containers
from msg_jax.errors import UserError

_POLL_SEC = 0.25
CSS = """
.gradio-container {max-width: 1200px !important}
#video button[aria-label^="Trim"], #video button[aria-label^="Reset"] {display: none}
.msg-picture {width: 100%; max-height: 46vh; background: #000; border-radius: 8px}
.msg-takes {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); gap: 16px; margin-top: 12px}
.msg-take {margin: 0; min-width: 0}
.msg-take audio {width: 100%; display: block}
.msg-drawing {position: relative; overflow: hidden; border-radius: 6px; background: #0b0710; line-height: 0}
.msg-drawing img {width: 100%; display: block; margin: 0}
.msg-drawing i {position: absolute; top: 0; bottom: 0; left: 0; width: 2px; background: #fff; opacity: .9}
.msg-take figcaption {display: flex; flex-wrap: wrap; gap: 4px 14px; padding: 4px 0; font-size: 14px}
.msg-take figcaption * {line-height: 20px}
.msg-status progress {width: 100%; height: 10px; accent-color: #ea580c}
.msg-error {border-left: 4px solid #c62828; padding: 6px 12px; overflow-wrap: anywhere}
"""
# The picture follows the variant that is heard; only one is heard at a time.
HEAD = """<script>
window.msgJax = {
  picture: (audio) => audio.closest('.msg-result').querySelector('.msg-picture'),
  play(audio) {
    for (const each of document.querySelectorAll('.msg-take audio')) if (each !== audio) each.pause();
    const picture = this.picture(audio);
    if (picture) { picture.currentTime = audio.currentTime; picture.play(); }
  },
  pause(audio) { const picture = this.picture(audio); if (picture) picture.pause(); },
  move(audio) {
    const picture = this.picture(audio), share = audio.duration ? audio.currentTime / audio.duration : 0;
    audio.closest('.msg-take').querySelector('i').style.left = 100 * share + '%';
    if (picture && Math.abs(picture.currentTime - audio.currentTime) > 0.15) picture.currentTime = audio.currentTime;
  },
  seek(event, drawing) {
    const audio = drawing.closest('.msg-take').querySelector('audio'), box = drawing.getBoundingClientRect();
    if (audio.duration) audio.currentTime = audio.duration * (event.clientX - box.left) / box.width;
  },
};
</script>"""


def theme():
    """Gradio's default theme with the fonts of the visitor's machine, so that nothing is fetched from elsewhere."""
    return Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def fields(studio: Studio) -> dict[str, Any]:
    """The components of the form by the names of `api.Request`; a new field there needs a line here."""
    system, limits = studio.loaded.system, studio.limits
    prompt = gr.Textbox(label="Prompt", placeholder="what is to be heard; may be empty", max_lines=3)
    ranks = system.load_ranker is not None
    variants = gr.Slider(1, limits.variants, value=min(2, limits.variants), step=1, label="Variants")
    with gr.Accordion("More", open=False):
        return {
            "prompt": prompt,
            "variants": variants,
            "negative_prompt": gr.Textbox(label="Negative prompt", placeholder="what is not to be heard", max_lines=3),
            "seed": gr.Number(value=0, precision=0, minimum=0, label="Seed of the first variant"),
            "steps": gr.Slider(1, limits.steps, value=min(system.steps, limits.steps), step=1, label="Solver steps"),
            "guidance": gr.Slider(1, 10, value=system.guidance_scale, step=0.1, label="Guidance"),
            "best_of": gr.Slider(1, limits.best_of, value=1, step=1, label="Keep the best of", visible=ranks),
            "mix": gr.Slider(0, 1, value=0, step=0.05, label="Share of the video's own sound"),
            "loudness": gr.Number(value=None, label="Loudness in LUFS; empty: as it is"),
            "start": gr.Number(value=None, minimum=0, label="Start of the sound, in seconds; empty: the video's"),
            "end": gr.Number(value=None, minimum=0, label="End of the sound, in seconds; empty: the video's"),
            "respect_cuts": gr.Checkbox(value=False, label="Respect hard cuts"),
            "script": gr.Textbox(label="Timed prompts", placeholder="start,end,prompt\n0,2.5,rain", lines=3, max_lines=12),
        }


def blocks(studio: Studio):
    """The page of a studio."""
    jobs: dict[str, Job] = {}  # by the page that waits for it
    limits = studio.limits

    async def generate(request: gr.Request, video: str | None, *values: Any):
        page, path = str(request.session_hash), None if video is None else pathlib.Path(video)
        asked = dict(zip(names, values))
        try:
            session = request.cookies.get(COOKIE, "")
            job = await asyncio.to_thread(studio.submit, session, path, read_request(asked))
        except UserError as error:
            yield _error(str(error)), ""
            return
        jobs[page] = job
        try:
            yield _status(studio, job), ""
            while not job.is_over:
                await asyncio.sleep(_POLL_SEC)
                yield _status(studio, job), gr.skip()
            yield _status(studio, job), _takes(job.result) if job.state == "done" else ""
        finally:
            studio.queue.cancel(job)
            jobs.pop(page, None)

    def cancel(request: gr.Request) -> None:
        if job := jobs.get(str(request.session_hash)):
            studio.queue.cancel(job)

    with gr.Blocks(title="msg_jax", analytics_enabled=False, delete_cache=(600, 3600)) as built:
        gr.Markdown("## Sound for a silent video")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                video = gr.Video(
                    label=f"Video, up to {limits.video_sec:g} s and {limits.upload_bytes / 1e6:g} MB", sources=["upload"],
                    height=240, elem_id="video",
                )
                components = fields(studio)
                names = list(components)
                with gr.Row():
                    begin = gr.Button("Generate", variant="primary", elem_id="generate")
                    end = gr.Button("Cancel", elem_id="cancel")
            with gr.Column(scale=3, min_width=300):
                status = gr.HTML(elem_id="status")
                takes = gr.HTML(elem_id="takes")
        begin.click(
            generate, [video, *components.values()], [status, takes], concurrency_limit=None, show_progress="hidden",
            api_visibility="private",
        )
        end.click(cancel, None, None, concurrency_limit=None, show_progress="hidden", api_visibility="private")
        built.unload(cancel)
    return built


def what_failed(job: Job) -> str:
    """One sentence for a failed job."""
    assert job.error is not None
    return str(job.error) if isinstance(job.error, UserError) else f"this went wrong: {containers.what(job.error)}"


def _error(sentence: str) -> str:
    return f'<p class="msg-error" role="alert">{html.escape(sentence)}</p>'


def _status(studio: Studio, job: Job) -> str:
    if job.state == "failed":
        return _error(what_failed(job))
    if job.state == "cancelled":
        return '<p role="status">Cancelled.</p>'
    if job.state == "done":
        return '<p role="status">Done.</p>'
    before, left = studio.queue.before(job), job.seconds_left()
    if job.state == "waiting":
        said = f"Waiting: {before} {'job' if before == 1 else 'jobs'} before this one"
    else:
        said = f"{job.share:.0%}" + ("" if left is None else f", {_clock(left)} left")
    return f'<div class="msg-status"><p role="status">{said}</p><progress value="{job.share:.3f}"></progress></div>'


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _takes(outcome: Outcome) -> str:
    """The picture once, and below it every variant with its waveform, its spectrogram and its files."""
    first = outcome.takes[0].video
    picture = "" if first is None else (
        f'<video class="msg-picture" src="{_address(outcome, first)}" muted playsinline preload="auto"></video>')
    takes = "".join(_take(outcome, take) for take in outcome.takes)
    return f'<div class="msg-result">{picture}<div class="msg-takes">{takes}</div></div>'


def _take(outcome: Outcome, take: Take) -> str:
    links = [("sound", take.sound)] + ([("video", take.video)] if take.video else [])
    level = f"peak {20 * math.log10(take.peak):.0f} dB" if take.peak else "silent"
    files = " ".join(f'<a href="{_address(outcome, path)}?download=1" download>{kind}</a>' for kind, path in links)
    return (
        f'<figure class="msg-take"><div class="msg-drawing" onclick="msgJax.seek(event, this)">'
        f'<img src="{_address(outcome, take.picture)}" alt="waveform and spectrogram"><i></i></div>'
        f'<audio controls preload="auto" src="{_address(outcome, take.sound)}" onplay="msgJax.play(this)" '
        f'onpause="msgJax.pause(this)" ontimeupdate="msgJax.move(this)"></audio>'
        f"<figcaption><span>seed {take.seed}</span><span>{level}</span>{files}</figcaption></figure>"
    )


def _address(outcome: Outcome, path: pathlib.Path) -> str:
    return html.escape(f"/results/{outcome.token}/{quote(path.name)}")


