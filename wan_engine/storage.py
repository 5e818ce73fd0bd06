"""Where a finished clip goes: a bucket or a folder, and the URL under which it is found again.

It owns keys, URLs, the record that makes a job id idempotent, and the translation of boto's errors.
It does not know what a clip shows or what the record says.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import queue
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import quote, urlsplit
from uuid import uuid4

from wan_engine.control import Control
from wan_engine.errors import Cancelled, ConfigurationError, DeadlineExceeded, StorageFailed
from wan_engine.settings import Settings, env_name

log = logging.getLogger(__name__)

URL_SECONDS = 604800  # the longest that signature v4 allows, and what the hosted API promises
_PART_BYTES = 16 * 1024 * 1024
_POLL_SECONDS = 0.05
_UNDO_SECONDS = 5.0  # a store that does not answer is not waited for
_COPY_BYTES = 1024 * 1024
_NOT_STORED = "The finished clip could not be stored"
_NO_RECORD = "no record of job %s, so a repeat would render again: %s"  # its clip is stored, though
_NOT_READ = "record of job %s not read, so it is rendered: %s"
_KEYS = ("bucket_endpoint_url", "bucket_access_key_id", "bucket_secret_access_key")


class Storage(Protocol):
    def put(self, path: Path, job_id: str, record: Mapping[str, Any], control: Control) -> str:
        """Store the mp4 and then `record` under the job's id. Returns the URL of the mp4."""

    def finished(self, job_id: str) -> tuple[str, dict[str, Any]] | None:
        """A fresh URL and the record of a job that was stored already and still exists."""

    def check(self) -> str:
        """One line: where clips go. Raises `ConfigurationError` when they could not."""


def open_storage(settings: Settings) -> Storage:
    if settings.storage == "s3" or (settings.storage == "auto" and settings.has_bucket):
        return S3Storage(settings)
    given = [env_name(key) for key in _KEYS if getattr(settings, key)]
    if settings.storage == "auto" and given:
        log.warning("bucket not used, only %s set: clips stay local", ", ".join(given))
    return LocalStorage(settings.output_dir)


# --- what both have in common ---------------------------------------------------------------------


def job_name(job_id: str) -> str:
    """A name of at most 64 of [A-Za-z0-9_-] for any job id; two ids never share one."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", job_id)
    # An id that looks like a name with a digest gets one too, or it could be another id's name.
    if name == job_id and 0 < len(name) <= 64 and not re.search(r"-[0-9a-f]{16}$", name):
        return name
    digest = hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name[:47]}-{digest[:16]}"


def _encode_record(record: Mapping[str, Any], key: str) -> bytes:
    return json.dumps({**record, "key": key}).encode()


def _decode_record(data: bytes, job_id: str) -> tuple[str, dict[str, Any]] | None:
    """The clip's key and the caller's part of the record."""
    try:
        stored = json.loads(data)
        key = stored.pop("key")
        key.encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning(_NOT_READ, job_name(job_id), "it is damaged")
        return None
    return key, stored


# --- a folder -------------------------------------------------------------------------------------


class LocalStorage:
    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser()

    def put(self, path: Path, job_id: str, record: Mapping[str, Any], control: Control) -> str:
        job = job_name(job_id)
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{job}-{uuid4().hex[:8]}.mp4"
        target, body = self._folder / name, _encode_record(record, name)
        control.checkpoint()
        try:
            with path.open("rb") as source, _whole_file(target) as copy:
                while chunk := source.read(_COPY_BYTES):
                    control.checkpoint()
                    copy.write(chunk)
        except OSError as error:
            log.error("clip of job %s not stored in %s: %s", job, self._folder, error)
            full = ": no space left on the device" if error.errno == errno.ENOSPC else ""
            raise StorageFailed(_NOT_STORED + full) from error
        try:
            with _whole_file(self._record_path(job_id)) as file:
                file.write(body)
        except OSError as error:
            log.warning(_NO_RECORD, job, error)
        return target.resolve().as_uri()

    def finished(self, job_id: str) -> tuple[str, dict[str, Any]] | None:
        try:
            found = _decode_record(self._record_path(job_id).read_bytes(), job_id)
            if found is None or Path(found[0]).name != found[0]:
                return None
            target = self._folder / found[0]
            return (target.resolve().as_uri(), found[1]) if target.is_file() else None
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning(_NOT_READ, job_name(job_id), error)
            return None

    def check(self) -> str:
        folder = self._folder.resolve()
        try:
            self._record_path("").parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"x")
        except OSError as error:
            raise ConfigurationError(
                f"Clips cannot be written to {folder} ({error.strerror}): "
                "set WAN_OUTPUT_DIR to a folder that this user may write"
            ) from error
        return f"clips go to the folder {folder}"

    def _record_path(self, job_id: str) -> Path:
        return self._folder / ".jobs" / f"{job_name(job_id)}.json"


@contextmanager
def _whole_file(target: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete, or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f".{uuid4().hex}.part")
    try:
        with half.open("xb") as file:
            yield file
        half.replace(target)
    except BaseException:
        half.unlink(missing_ok=True)
        raise


# --- a bucket -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bucket:
    """`endpoint` never contains the bucket; `addressing` is "path" or "virtual"."""

    endpoint: str
    name: str
    region: str
    addressing: str


# Hosts whose first label, before what is matched here, is a bucket; they tell their region as well.
_BUCKET_HOST = re.compile(
    r"(?:(?P<bucket>.+)\.)?(?:"
    r"s3(?:-accelerate|-fips)?(?:\.dualstack)?(?:[.-](?P<region>[a-z]{2}(?:-[a-z]+)+-\d+))?"
    r"\.(?:amazonaws\.com(?:\.cn)?|backblazeb2\.com|wasabisys\.com)"
    r"|(?P<space>[a-z]{3}\d)\.digitaloceanspaces\.com)"
)


def find_bucket(
    url: str, name: str | None = None, region: str | None = None, addressing: str = "auto"
) -> Bucket:
    """Read an endpoint as people write it: plain, or with the bucket as first host label or path.

    Without `name` only a known host tells a bucket. With it, any host of three or more labels that
    starts with it does, unless `addressing` is "path".
    """
    base, host, path = _split_endpoint(url)
    known = _BUCKET_HOST.fullmatch(host)
    in_host = known["bucket"] if known else None
    if name and not known and re.match(rf"{re.escape(name)}\..+\.", host):
        in_host = name if addressing != "path" else None
    bucket = name or in_host or (path[0] if len(path) == 1 else None)
    if bucket is None:
        raise ConfigurationError("BUCKET_ENDPOINT_URL does not name a bucket: set BUCKET_NAME")
    path = path[:-1] if path[-1:] == [bucket] else path
    if in_host not in (None, bucket) or (path and (known or in_host)):
        raise ConfigurationError(
            "BUCKET_ENDPOINT_URL names another bucket than BUCKET_NAME, or a folder: "
            "make the two agree, and give a folder as WAN_S3_PREFIX"
        )
    if addressing == "auto":
        # A certificate for *.host does not cover a bucket with a dot in its name.
        addressing = "virtual" if (known or in_host) and "." not in bucket else "path"
    told = known["region"] or known["space"] if known else None
    default = "auto" if host.endswith(".cloudflarestorage.com") else "us-east-1"
    base = base.replace(f"://{in_host}.", "://", 1) if in_host else base
    return Bucket("/".join([base, *path]), bucket, region or told or default, addressing)


def _split_endpoint(url: str) -> tuple[str, str, list[str]]:
    """Scheme with host and port, the host alone, the parts of the path."""
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if not host or parts.scheme not in ("http", "https"):
        raise ConfigurationError("BUCKET_ENDPOINT_URL must start with https:// or http://")
    base = f"{parts.scheme}://" + (f"[{host}]" if ":" in host else host)
    return base + (f":{port}" if port else ""), host, [p for p in parts.path.split("/") if p]


class S3Storage:
    def __init__(self, settings: Settings, *, attempts: int = 3) -> None:
        missing = [env_name(key) for key in _KEYS if not getattr(settings, key)]
        if missing:
            raise ConfigurationError(
                f"S3 storage needs {' and '.join(missing)}: set that, or WAN_STORAGE to local"
            )
        url, name = settings.bucket_endpoint_url or "", settings.bucket_name
        self._bucket = find_bucket(url, name, settings.s3_region, settings.s3_addressing)
        self._prefix = f"{settings.s3_prefix.strip('/ ')}/".lstrip("/")
        self._public = (settings.public_base_url or "").rstrip("/")
        self._client, self._transfer = _open_client(settings, self._bucket, attempts)
        if (settings.bucket_access_key_id or "").startswith("ASIA") and not self._public:
            log.warning(
                "BUCKET_ACCESS_KEY_ID is a session key: signed links end with its session, long "
                "before 7 days; use a permanent key, or set WAN_PUBLIC_BASE_URL"
            )

    def put(self, path: Path, job_id: str, record: Mapping[str, Any], control: Control) -> str:
        job = job_name(job_id)
        key = f"{self._prefix}{datetime.now(UTC):%Y/%m/%d}/{job}/{uuid4().hex}.mp4"
        body = _encode_record(record, key)
        control.checkpoint()
        try:
            with _boto_errors(), path.open("rb") as file:
                upload = partial(
                    self._client.upload_fileobj,
                    file,
                    self._bucket.name,
                    key,
                    ExtraArgs={"ContentType": "video/mp4"},
                    Callback=lambda _: control.checkpoint(),
                    Config=self._transfer,
                )
                _beside(upload, control, undo=partial(self._discard, key))
        except _BucketFailed as error:
            control.checkpoint()
            log.error("clip of job %s not stored: %s", job, error.advice)
            raise
        try:
            with _boto_errors():
                self._client.put_object(**self._at(self._record_key(job_id)), Body=body)
        except _BucketFailed as error:
            log.warning(_NO_RECORD, job, error.advice)
        return self._url(key)

    def finished(self, job_id: str) -> tuple[str, dict[str, Any]] | None:
        try:
            with _boto_errors():
                answer = self._client.get_object(**self._at(self._record_key(job_id)))
                found = _decode_record(answer["Body"].read(), job_id)
                if found is None:
                    return None
                self._client.head_object(**self._at(found[0]))
        except _BucketFailed as error:
            if not error.absent:
                log.warning(_NOT_READ, job_name(job_id), error.advice)
            return None
        return self._url(found[0]), found[1]

    def check(self) -> str:
        try:
            with _boto_errors():
                self._client.head_bucket(Bucket=self._bucket.name)
        except _BucketFailed as error:
            raise ConfigurationError(f"The bucket cannot be used: {error.advice}") from error
        links = f"links below {self._public}" if self._public else "links signed for 7 days"
        return f"clips go to the bucket {self._bucket.name} at {self._bucket.endpoint}, {links}"

    def _discard(self, key: str) -> None:
        try:
            with _boto_errors():
                self._client.delete_object(**self._at(key))
        except _BucketFailed as error:
            log.warning("a cancelled clip may be left at %s: %s", key, error.advice)

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket.name, "Key": key}

    def _record_key(self, job_id: str) -> str:
        return f"{self._prefix}jobs/{job_name(job_id)}.json"

    def _url(self, key: str) -> str:
        if self._public:
            return f"{self._public}/{quote(key)}"
        sign = self._client.generate_presigned_url
        return str(sign("get_object", Params=self._at(key), ExpiresIn=URL_SECONDS))


def _beside(call: Callable[[], object], control: Control, undo: Callable[[], object]) -> None:
    """Run `call` on a thread of its own, so that a job can end while its store says nothing.

    What a job that ends leaves behind is undone, after a while by the thread alone.
    """
    answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            call()
            control.checkpoint()  # a small clip has arrived before the callback is asked
            answers.put(None)
        except (Cancelled, DeadlineExceeded) as error:
            undo()
            answers.put(error)
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            answers.put(error)

    worker = threading.Thread(target=run, name="upload", daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(_POLL_SECONDS)
        try:
            control.checkpoint()
        except (Cancelled, DeadlineExceeded):
            worker.join(_UNDO_SECONDS)
            if not worker.is_alive() and answers.get() is None:
                undo()
            raise
    answer = answers.get_nowait()
    if answer is not None:
        raise answer


def _open_client(settings: Settings, bucket: Bucket, attempts: int) -> tuple[Any, Any]:
    """The client, and how it uploads."""
    import boto3  # type: ignore[import-untyped]
    from boto3.s3.transfer import TransferConfig  # type: ignore[import-untyped]
    from botocore.config import Config  # type: ignore[import-untyped]
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": bucket.addressing},
        # R2 and Google refuse the checksums that boto adds by itself (worker-comfyui#156).
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=10,
        read_timeout=60,
    )
    try:
        client = boto3.client(
            "s3",
            endpoint_url=bucket.endpoint,
            region_name=bucket.region,
            aws_access_key_id=settings.bucket_access_key_id,
            aws_secret_access_key=settings.bucket_secret_access_key,
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(f"The bucket's settings are wrong: {error}") from error
    client.meta.events.register_first("needs-retry.s3", _end_retries)
    # So the callback runs, and raises, on the job's own thread.
    transfer = TransferConfig(
        multipart_threshold=_PART_BYTES,
        multipart_chunksize=_PART_BYTES,
        use_threads=False,
        preferred_transfer_client="classic",
    )
    return client, transfer


def _end_retries(caught_exception: Exception | None = None, **_: object) -> None:
    """botocore takes what a callback raises for a broken connection, and would send again."""
    cause = getattr(caught_exception, "kwargs", {}).get("error")
    if isinstance(cause, Cancelled | DeadlineExceeded):
        raise cause


class _BucketFailed(StorageFailed):
    """`advice` is for the operator; `absent` when there is no such key."""

    def __init__(self, why: str, advice: str, absent: bool = False) -> None:
        super().__init__(f"{_NOT_STORED}: {why}" if why else _NOT_STORED)
        self.advice = advice
        self.absent = absent


_ADVICE = {
    "AccessDenied 403 Forbidden": "the key may not do this; allow it s3:PutObject, s3:GetObject, "
    "s3:DeleteObject and s3:ListBucket on the bucket",
    "NoSuchBucket 404 NotFound": "there is no such bucket; create it or correct BUCKET_NAME",
    "InvalidAccessKeyId SignatureDoesNotMatch Unauthorized 401": "the key is not accepted; correct "
    "BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY",
    "PermanentRedirect AuthorizationHeaderMalformed 301 400": "the bucket is in another region; "
    "set WAN_S3_REGION",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
}


@contextmanager
def _boto_errors() -> Iterator[None]:
    """The one place where boto's errors, and those of reading the clip, are translated."""
    import botocore.exceptions as boto  # type: ignore[import-untyped]

    try:
        yield
    except boto.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        advice = next((text for codes, text in _ADVICE.items() if code in codes.split()), "")
        why = "the object store " + ("is not available" if status >= 500 else "refused it")
        absent = code in ("NoSuchKey", "404")
        raise _BucketFailed(why, f"{advice or 'the store failed'} ({error})", absent) from error
    except boto.ConnectionError as error:
        advice = "the endpoint is not reachable; correct BUCKET_ENDPOINT_URL or open the network"
        raise _BucketFailed("the object store is not reachable", f"{advice} ({error})") from error
    except boto.HTTPClientError as error:
        raise _BucketFailed("the connection to the object store broke", str(error)) from error
    except (boto.BotoCoreError, OSError) as error:
        raise _BucketFailed("", str(error)) from error
