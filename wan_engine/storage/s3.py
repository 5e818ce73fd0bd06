"""Stores clips in a bucket of S3 or a compatible service, with signed or public URLs.

`answers.py` translates the store's errors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wan_engine.control import Control
from wan_engine.errors import ConfigurationError, Warned
from wan_engine.settings import Settings, env_name
from wan_engine.storage.bucket import Bucket, find_bucket, serves_no_signed_links
from wan_engine.storage.bucket_errors import BucketFailed, boto_errors
from wan_engine.storage.pinned import PinnedSession
from wan_engine.storage.probe import Probe, Unusable, get
from wan_engine.storage.records import (
    NO_CLAIM,
    NO_RECORD,
    NOT_READ,
    ClipId,
    decode_claim,
    decode_record,
    encode_claim,
    encode_record,
    job_name,
)
from wan_engine.storage.retries import Ask, Retries, RetryLimits, beside

log = logging.getLogger(__name__)

URL_SECONDS = 604800  # the maximum of signature v4, and the promise of the hosted API
BUCKET_KEYS = ("bucket_endpoint_url", "bucket_access_key_id", "bucket_secret_access_key")
_PART_BYTES = 16 * 1024 * 1024


class S3Storage:
    """The bucket that `settings` name. The constructor contacts nothing. `session` is for a
    stranger's bucket. No record is stored there, because its answers are not trusted.

    Raises `ConfigurationError` for settings without a bucket.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        limits: RetryLimits | None = None,
        session: PinnedSession | None = None,
    ) -> None:
        missing = [env_name(key) for key in BUCKET_KEYS if not getattr(settings, key)]
        if missing:
            raise ConfigurationError(
                f"S3 storage needs {' and '.join(missing)}: set that, or WAN_STORAGE to local"
            )
        url, name = settings.bucket_endpoint_url or "", settings.bucket_name
        self._bucket = find_bucket(url, name, settings.s3_region, settings.s3_addressing)
        if serves_no_signed_links(self._bucket) and not settings.public_base_url:
            raise ConfigurationError(
                "BUCKET_ENDPOINT_URL is a Runpod network volume, whose S3 API serves no signed "
                "links, so callers could not fetch their clips: use another object store, or set "
                "WAN_PUBLIC_BASE_URL to where the volume's files are public"
            )
        self._prefix = f"{settings.s3_prefix.strip('/ ')}/".lstrip("/")
        self._public = (settings.public_base_url or "").rstrip("/")
        self._limits = limits or RetryLimits()
        self._client, self._transfer = _open_client(settings, self._bucket, self._limits)
        self._get, self._records = (get, True) if session is None else (session.get, False)
        if session is not None:
            self._client.meta.events.register("before-send.s3", session.send_instead)
        access_key, _ = _keys(settings)
        if access_key.startswith("ASIA") and not self._public:
            log.warning(
                "BUCKET_ACCESS_KEY_ID is a session key: signed links end with its session, long "
                "before 7 days; use a permanent key, or set WAN_PUBLIC_BASE_URL"
            )

    def put(self, path: Path, job_id: str, record: Mapping[str, Any], control: Control) -> str:
        clip = ClipId.new(job_id)
        discard = partial(self._discard, self._key(clip))
        self._upload(path, clip, control, discard)
        try:
            if self._records:
                self._write_record(clip, record, control, discard)
        except BucketFailed as error:
            log.warning(NO_RECORD, clip.job, error.advice)
        return self._url(self._key(clip))

    def store(self, path: Path, clip: ClipId, record: Mapping[str, Any], control: Control) -> str:
        self._upload(path, clip, control)
        try:
            self._write_record(clip, record, control)
        except BucketFailed as error:
            log.error("record of job %s not stored: %s", clip.job, error.advice)
            raise
        return self._url(self._key(clip))

    def finished(self, job_id: str, control: Control) -> tuple[str, dict[str, Any]] | None:
        def find(ask: Ask) -> tuple[str, dict[str, Any]] | None:
            found = decode_record(self._read(self._record_key(job_id), ask), job_id)
            if found is not None:
                self._client.head_object(**self._at(found[0]))
            return found

        if not self._records:
            return None
        try:
            with boto_errors():
                found = beside(find, control, self._limits.find_seconds)
        except BucketFailed as error:
            if not error.absent:
                log.warning(NOT_READ, job_name(job_id), error.advice)
            return None
        return (self._url(found[0]), found[1]) if found else None

    def claim(self, job_id: str, holder: str, control: Control) -> str | None:
        def take(ask: Ask) -> str | None:
            return self._holder(job_id, ask) or self._first(job_id, holder, ask)

        if not self._records:
            return None
        try:
            with boto_errors():
                return beside(take, control, self._limits.find_seconds)
        except BucketFailed as error:
            log.warning(NO_CLAIM, job_name(job_id), error.advice)
            return None

    def flush(self) -> None:
        """Do nothing, because a bucket stores a clip at once or not at all."""

    def check(self) -> str:
        probe = self._probe()
        try:
            probe.run(self._get, self._limits, Control())
        except (BucketFailed, Unusable) as error:
            why = error.advice if isinstance(error, BucketFailed) else str(error)
            sentence = "; ".join([f"The bucket cannot be used: {why}", *probe.caveats])
            raise ConfigurationError(sentence) from error
        links = f"links below {self._public}" if self._public else "links signed for 7 days"
        line = f"clips go to the bucket {self._bucket.name} at {self._bucket.endpoint}, {links}"
        return Warned("; but ".join([line, *probe.caveats])) if probe.caveats else line

    def require(self, control: Control) -> None:
        """Do what `check` does, for one job. Raises what `Probe.run` raises."""
        self._probe().run(self._get, self._limits, control)

    def _probe(self) -> Probe:
        public = bool(self._public)
        return Probe(self._client, self._bucket.name, self._prefix, self._url, public=public)

    def _upload(
        self, path: Path, clip: ClipId, control: Control, undo: Callable[[], object] | None = None
    ) -> None:
        key = self._key(clip)

        def send(ask: Ask) -> None:
            with path.open("rb") as file:
                self._client.upload_fileobj(
                    file,
                    self._bucket.name,
                    key,
                    ExtraArgs={"ContentType": "video/mp4"},
                    Callback=lambda _: ask(),
                    Config=self._transfer,
                )

        control.checkpoint()
        try:
            with boto_errors():
                beside(send, control, self._limits.put_seconds, undo)
        except BucketFailed as error:
            if error.said == "NoSuchUpload" and self._holds(key, control):
                return
            # A missing clip was stored by another process with the same spool.
            level = logging.ERROR if path.exists() else logging.INFO
            log.log(level, "clip of job %s not stored: %s", clip.job, error.advice)
            raise

    def _holds(self, key: str, control: Control) -> bool:
        """Whether the clip is at its key. The answer to the last request of a multipart upload may
        be lost, and the retry is then told that there is no such upload. Nothing else is ever
        stored at the key."""

        def look(ask: Ask) -> bool:
            self._client.head_object(**self._at(key))
            return True

        try:
            with boto_errors():
                return beside(look, control, self._limits.find_seconds)
        except BucketFailed:
            return False

    def _write_record(
        self,
        clip: ClipId,
        record: Mapping[str, Any],
        control: Control,
        undo: Callable[[], object] | None = None,
    ) -> None:
        at, body = self._at(self._record_key(clip.job_id)), encode_record(record, self._key(clip))

        def send(ask: Ask) -> None:
            self._client.put_object(**at, Body=body)

        with boto_errors():
            beside(send, control, self._limits.find_seconds, undo)

    def _holder(self, job_id: str, ask: Ask) -> str | None:
        """The holder of the claim. Checked before claiming, because a store that does not support
        `If-None-Match` may ignore it."""
        try:
            with boto_errors():
                return decode_claim(self._read(self._claim_key(job_id), ask), job_id)
        except BucketFailed as error:
            if error.absent or error.status == 403:  # without s3:ListBucket
                return None
            raise

    def _first(self, job_id: str, holder: str, ask: Ask) -> str | None:
        """`holder` once it has the claim, or the one that was faster.

        docs.aws.amazon.com, S3, "Conditional writes": 412 if the object exists. A store that does
        not support this (501) gets a plain write, which two jobs may do at the same moment.
        """
        put = partial(
            self._client.put_object, **self._at(self._claim_key(job_id)), Body=encode_claim(holder)
        )
        ask()
        try:
            with boto_errors():
                put(IfNoneMatch="*")
        except BucketFailed as error:
            if error.status == 412:
                return self._holder(job_id, ask)
            if error.status != 501:
                raise
            put()
        return holder

    def _read(self, key: str, ask: Ask) -> bytes:
        """Read a whole object. botocore retries until an answer begins. An answer that breaks off
        is requested again here."""
        from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

        left = self._limits.attempts
        while True:
            left -= 1
            ask()
            answer = self._client.get_object(**self._at(key))
            try:
                with closing(answer["Body"]) as body:
                    return bytes(body.read())
            except BotoCoreError:
                if left <= 0:
                    raise

    def _discard(self, key: str) -> None:
        try:
            with boto_errors():
                self._client.delete_object(**self._at(key))
        except BucketFailed as error:
            log.warning("an unwanted clip may be left at %s: %s", key, error.advice)

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket.name, "Key": key}

    def _key(self, clip: ClipId) -> str:
        return f"{self._prefix}{clip.made:%Y/%m/%d}/{clip.job}/{clip.token}.mp4"

    def _record_key(self, job_id: str) -> str:
        return f"{self._prefix}jobs/{job_name(job_id)}.json"

    def _claim_key(self, job_id: str) -> str:
        return f"{self._prefix}jobs/{job_name(job_id)}.claim"

    def _url(self, key: str) -> str:
        if self._public:
            return f"{self._public}/{quote(key)}"
        sign = self._client.generate_presigned_url
        return str(sign("get_object", Params=self._at(key), ExpiresIn=URL_SECONDS))


def _keys(settings: Settings) -> tuple[str, str]:
    """The access key and the secret key. Both are set."""
    access_key, secret_key = settings.bucket_access_key_id, settings.bucket_secret_access_key
    assert access_key and secret_key
    return access_key.get_secret_value(), secret_key.get_secret_value()


def _open_client(settings: Settings, bucket: Bucket, limits: RetryLimits) -> tuple[Any, Any]:
    """The client, and the options of its uploads."""
    import boto3  # type: ignore[import-untyped]
    from boto3.s3.transfer import TransferConfig  # type: ignore[import-untyped]
    from botocore.config import Config  # type: ignore[import-untyped]
    from botocore.exceptions import BotoCoreError

    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": bucket.addressing},
        # R2 and Google refuse the checksums that boto adds by itself (worker-comfyui#156).
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": 1},  # `Retries` decides
        connect_timeout=limits.connect_seconds,
        read_timeout=limits.read_seconds,
    )
    access_key, secret_key = _keys(settings)
    try:
        client = boto3.client(
            "s3",
            endpoint_url=bucket.endpoint,
            region_name=bucket.region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(f"The bucket's settings are wrong: {error}") from None
    client.meta.events.register_first("needs-retry.s3", Retries(limits))
    # With these options, the callback runs and raises on the uploading thread, as `Retries` needs.
    transfer = TransferConfig(
        multipart_threshold=_PART_BYTES,
        multipart_chunksize=_PART_BYTES,
        use_threads=False,
        preferred_transfer_client="classic",
    )
    return client, transfer
