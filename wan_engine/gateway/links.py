"""Makes the URLs of finished clips: the store's own, or signed URLs of this gateway for local
files.

A signature is valid for one file until a fixed second, and is the same at every poll.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from starlette.responses import FileResponse, Response

from wan_engine.control import Control
from wan_engine.errors import InvalidMedia
from wan_engine.gateway.job import Job, now_ms
from wan_engine.gateway.refusals import Refusal
from wan_engine.media.fetch import FetchLimits, fetch
from wan_engine.settings import Settings
from wan_engine.storage import LocalStorage
from wan_engine.storage.files import remove

WEEK_SECONDS = 7 * 86_400
PATH = "/results"
_CLIP_MAX_BYTES = 1 << 30
_CLIP_SECONDS = 120.0
_STORE_AGAIN_SECONDS = 60

log = logging.getLogger(__name__)


class Links:
    def __init__(self, settings: Settings, secret: str) -> None:
        self._folder = settings.output_dir.expanduser().resolve()
        self._storage = LocalStorage(self._folder)
        self._secret = secret.encode()

    def url(self, job: Job, seconds: int = WEEK_SECONDS) -> str:
        """The URL of a completed job's clip, valid for `seconds` from the end of the job.

        A bucket's own link is valid for as long as the bucket signed it.
        """
        assert job.result is not None
        stored = str(job.result["video_url"])
        path = self._path(stored)
        if path is None:
            return stored
        expires = (job.finished_ms or now_ms()) // 1000 + seconds
        signature = self._signature(path.name, expires)
        name = quote(path.name)
        return f"{job.base_url}{PATH}/{name}?expires={expires}&signature={signature}"

    def output(self, job: Job, seconds: int = WEEK_SECONDS) -> dict[str, object]:
        """`VideoResult.output()` of a completed job, with a URL for its caller."""
        url = self.url(job, seconds)
        return {**(job.result or {}), "video_url": url, "result": url}

    def path(self, job: Job) -> Path | None:
        """The file of a completed job's clip. None if it is in a bucket."""
        assert job.result is not None
        return self._path(str(job.result["video_url"]))

    async def read(self, job: Job) -> bytes:
        """The bytes of the mp4. Raises `Refusal` "gone", and "unavailable" if its store does not
        return them."""
        assert job.result is not None
        stored = str(job.result["video_url"])
        if (path := self._path(stored)) is not None:
            try:
                return await asyncio.to_thread(path.read_bytes)
            except FileNotFoundError:
                raise Refusal("gone", "The clip is no longer stored") from None
        # The operator's store may be in a private network.
        limits = FetchLimits(_CLIP_MAX_BYTES, _CLIP_SECONDS, allow_private=True)
        try:
            return await asyncio.to_thread(fetch, stored, "video", limits, Control())
        except InvalidMedia as error:
            log.error("the clip of job %s cannot be read from its store: %s", job.id, error.why)
            sentence = "The clip cannot be read from its store now, try again later"
            raise Refusal("unavailable", sentence, _STORE_AGAIN_SECONDS) from error

    def serve(self, name: str, expires: str, signature: str) -> Response:
        """The file behind a link of `url`, in ranges if asked. Raises `Refusal`."""
        if not (expires.isascii() and expires.isdigit() and len(expires) < 15):
            raise Refusal("forbidden", "The link is not valid")
        right = self._signature(name, int(expires))
        if not hmac.compare_digest(right.encode(), signature.encode("utf-8", "replace")):
            raise Refusal("forbidden", "The link is not valid")
        left = int(expires) - int(time.time())
        if left <= 0:
            raise Refusal("gone", "The link has expired")
        path = self._folder / name
        if path.parent != self._folder or not path.is_file():
            raise Refusal("not_found", "The clip is no longer stored")
        headers = {"Cache-Control": f"private, max-age={left}", "X-Content-Type-Options": "nosniff"}
        return FileResponse(
            path,
            media_type="video/mp4",
            headers=headers,
            filename=name,
            content_disposition_type="inline",
        )

    def remove(self, job: Job) -> None:
        """Remove the file of a deleted job, and the store's record of it. Logs failures."""
        if job.result and (path := self._path(str(job.result["video_url"]))):
            remove(path)
        self._storage.forget(job.id)  # a job that was cancelled at its end has a clip and no result

    def _path(self, stored: str) -> Path | None:
        """The file of a `file:` URL. It must be in the folder of clips."""
        parts = urlsplit(stored)
        if parts.scheme != "file":
            return None
        return self._folder / Path(unquote(parts.path)).name

    def _signature(self, name: str, expires: int) -> str:
        signed = f"{name}\n{expires}".encode()
        return hmac.new(self._secret, signed, hashlib.sha256).hexdigest()
