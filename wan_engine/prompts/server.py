"""Expands prompts on an OpenAI-compatible server: vLLM, Ollama, llama.cpp or a hosted one.

The operator sets the URL, so private addresses are allowed; the answers are not trusted. Redirects
are not followed, because they would get the key. It uses the HTTP client of the standard library,
whose socket is accessible: a cancelled job shuts it down.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import queue
import socket
import ssl
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from wan_engine.control import Control
from wan_engine.errors import ConfigurationError
from wan_engine.prompts.task import Task, WriterFailed, shrunk

log = logging.getLogger(__name__)

_JPEG_QUALITY = 85
_ANSWER_MAX_BYTES = 1024 * 1024
_POLL_SECONDS = 0.05
_NOT_UNDERSTOOD = (400, 422)


class ServerWriter:
    """Implements `Writer` with `POST {url}/chat/completions`."""

    def __init__(self, url: str, model: str, api_key: str | None = None) -> None:
        """Raises `ConfigurationError` if the URL is not an http(s) URL."""
        try:
            parts = urlsplit(url.strip())
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ConfigurationError(
                "WAN_PROMPT_URL must be the base URL of an OpenAI-compatible server, such as "
                "http://127.0.0.1:8000/v1, without a name and password in it."
            )
        path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._path = path + (f"?{parts.query}" if parts.query else "")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._model = model
        self._headers = {"Content-Type": "application/json", "User-Agent": "wan-engine"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def load(self) -> None:
        """Do nothing: the server has the weights."""

    def write(self, task: Task, image: Image.Image | None, seconds: float, control: Control) -> str:
        """See `Writer.write`. If a server refuses the request with JSON mode and limits, it gets a
        simpler one without them, and then one without the image."""
        call = _Call(self._connection, seconds, control)
        for body in _bodies(self._model, task, image):
            status, answer = call.post(self._path, body, self._headers)
            if status not in _NOT_UNDERSTOOD:
                break
        if status != 200:
            raise WriterFailed(f"the prompt server answered {status}")
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            content = None
        if not isinstance(content, str):
            raise WriterFailed("the prompt server's answer has no text")
        return content

    def _connection(self, seconds: float) -> HTTPConnection:
        if not self._secure:
            return HTTPConnection(self._host, self._port, timeout=seconds)
        import certifi

        context = ssl.create_default_context()  # with the authorities of SSL_CERT_FILE
        context.load_verify_locations(certifi.where())
        return HTTPSConnection(self._host, self._port, timeout=seconds, context=context)


def _bodies(model: str, task: Task, image: Image.Image | None) -> list[bytes]:
    """The same request in three forms, each simpler than the previous one."""
    system = {"role": "system", "content": task.instructions}
    blind = {"model": model, "messages": [system, {"role": "user", "content": task.wish}]}
    seeing: dict[str, Any] = blind
    if image is not None:
        text = {"type": "text", "text": task.wish}
        picture = {"type": "image_url", "image_url": {"url": _data_uri(image)}}
        user = {"role": "user", "content": [picture, text]}
        seeing = {"model": model, "messages": [system, user]}
    options = {
        "temperature": 0,
        "max_tokens": task.tokens_at_most,
        "response_format": {"type": "json_object"},
    }
    return [json.dumps(body).encode() for body in ({**seeing, **options}, seeing, blind)]


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    shrunk(image).save(file, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


class _Call:
    """The connections of one `write`, each in a thread that is abandoned when the time is up or the
    job must end, because neither a DNS lookup nor a connect can be interrupted."""

    def __init__(self, connection: Any, seconds: float, control: Control) -> None:
        self._connection, self._seconds, self._control = connection, seconds, control
        self._late = f"no answer within {seconds:g} seconds"
        self._deadline = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._over = False

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Send a request and return status and body. Raises `WriterFailed`, `Cancelled` or
        `DeadlineExceeded`."""
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def exchange() -> None:
            try:
                answers.put(self._exchange(path, body, headers))
            except (OSError, ValueError, HTTPException, WriterFailed) as error:
                answers.put(error)

        threading.Thread(target=exchange, name="prompt", daemon=True).start()
        try:
            answer = self._wait(answers)
        except BaseException:
            self._end()
            raise
        if isinstance(answer, WriterFailed):
            raise answer
        if isinstance(answer, TimeoutError):
            raise WriterFailed(self._late) from answer
        if isinstance(answer, Exception):
            log.warning("the prompt server: %s", _cause(answer))
            raise WriterFailed("the prompt server could not be reached") from answer
        status, content = answer
        return status, content

    def _wait(self, answers: queue.SimpleQueue[Any]) -> Any:
        while True:
            self._control.checkpoint()
            if time.monotonic() >= self._deadline:
                raise WriterFailed(self._late)
            with suppress(queue.Empty):
                return answers.get(timeout=_POLL_SECONDS)

    def _exchange(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = self._connection(self._seconds)
        try:
            connection.connect()
            with self._lock:
                if self._over:
                    raise ConnectionAbortedError
                self._socket = connection.sock
            connection.request("POST", path, body, headers)
            with connection.getresponse() as response:  # the response may outlive its connection
                content = response.read(_ANSWER_MAX_BYTES + 1)
            if len(content) > _ANSWER_MAX_BYTES:
                raise WriterFailed("the answer is too long")
            return response.status, content
        finally:
            with self._lock:
                self._socket = None
            connection.close()

    def _end(self) -> None:
        with self._lock:
            self._over = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)


def _cause(error: BaseException) -> str:
    """The error's type and number, without its text, which may contain the address."""
    number = getattr(error, "errno", None)
    return type(error).__name__ + (f" {number}" if isinstance(number, int) else "")
