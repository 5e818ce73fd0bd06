"""Translates boto's errors into what they mean for the caller and for the operator.

Neither text contains parts of a request, because its headers contain the signature of the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from wan_engine.errors import StorageFailed
from wan_engine.storage.records import NOT_STORED

_FOR_NOW = (408, 429)
_FOR_NOW_SAID = ("RequestTimeout", "SlowDown", "TooManyRequests", "RequestTimeTooSkewed")
"""Answers below 500 that are not refusals: the store is busy, or a clock is wrong, maybe ours."""


class BucketFailed(StorageFailed):
    """A bucket that did not do what it was asked. `why` is for the caller, `advice` for the
    operator. `said` is the store's own error code and `status` that of its answer, if it gave one.
    `reached` is False if nothing was sent."""

    def __init__(
        self, why: str, advice: str, said: str = "", status: int = 0, *, reached: bool = True
    ) -> None:
        super().__init__(f"{NOT_STORED}: {why}" if why else NOT_STORED)
        self.why = why or "the object store failed"
        self.advice = advice
        self.said = said if re.fullmatch(r"[A-Za-z0-9]{1,64}", said) else ""
        self.status = status
        self.reached = reached

    @property
    def absent(self) -> bool:
        return self.said in ("NoSuchKey", "404")

    @property
    def refused(self) -> bool:
        """Whether the store understood the request and refused it, so that a retry changes
        nothing."""
        return 300 <= self.status < 500 and not (
            self.status in _FOR_NOW or self.said in _FOR_NOW_SAID
        )


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
def boto_errors() -> Iterator[None]:
    """Turn boto's errors, and those of reading the clip, into `BucketFailed`. Nothing else does."""
    import botocore.exceptions as boto  # type: ignore[import-untyped]

    broke = "the connection to the object store broke"
    try:
        yield
    except boto.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        advice = next((text for codes, text in _ADVICE.items() if code in codes.split()), "")
        why = "the object store " + ("is not available" if status >= 500 else "refused it")
        said = f"{advice or 'the store failed'} ({error})"
        raise BucketFailed(why, said, code, status) from error
    except boto.ConnectionError as error:
        advice = "the endpoint is not reachable; correct BUCKET_ENDPOINT_URL or open the network"
        away = "the object store is not reachable"
        raise BucketFailed(away, f"{advice} ({error})", reached=False) from error
    except boto.HTTPClientError as error:
        raise BucketFailed(broke, _told(error)) from error
    except KeyError as error:  # s3transfer, if an answer ends early
        raise BucketFailed(broke, f"the store's answer has no {error}") from error
    except TimeoutError as error:
        raise BucketFailed("the object store did not answer in time", str(error)) from error
    except (boto.BotoCoreError, OSError) as error:
        raise BucketFailed("", str(error)) from error


def _told(error: Exception) -> str:
    """Name only the kind of an error that is not boto's. An `http.client` error about an invalid
    header contains the whole header."""
    inner = getattr(error, "kwargs", {}).get("error")
    return f"{type(error).__name__}: {type(inner).__name__}" if inner else str(error)
