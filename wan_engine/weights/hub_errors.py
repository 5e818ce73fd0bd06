"""Turns errors of the Hugging Face Hub into sentences that say what to do."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from wan_engine.errors import ModelMissing

log = logging.getLogger(__name__)


@contextmanager
def translated(repo: str) -> Iterator[None]:
    """Turn a failed download inside the block into `ModelMissing`, with one sentence and what to
    do.

    huggingface_hub raises its own errors, those of its HTTP client, and OSError.
    """
    from httpx2 import HTTPError  # the client of huggingface_hub 2
    from huggingface_hub import errors

    try:
        yield
    except (
        HTTPError,
        OSError,
        errors.EntryNotFoundError,
        errors.HFValidationError,
        errors.RevisionResolutionError,
        errors.XetDownloadError,
    ) as error:
        log.info("%s: %s: %s", repo, type(error).__name__, error)
        raise ModelMissing(_refusal(repo, error) or _breakdown(repo, error)) from error


def _refusal(repo: str, error: Exception) -> str | None:
    """The sentence for a refusal of the Hub or its client, or None for any other failure."""
    from huggingface_hub import errors

    sentences = {
        errors.HFValidationError: f"{repo} is neither a name that `python -m wan_engine models` "
        "lists nor a Hub id such as Wan-AI/Wan2.2-TI2V-5B-Diffusers.",
        # A subclass of RepositoryNotFoundError, so it comes first.
        errors.GatedRepoError: f"{repo} is gated: accept its licence at huggingface.co/{repo}, "
        "then set HF_TOKEN.",
        errors.RepositoryNotFoundError: f"The Hub has no repository {repo}, or it is private. "
        "Check the name, or set HF_TOKEN.",
        errors.RevisionNotFoundError: f"{repo} does not have this revision, or no longer: it takes "
        "a branch, a tag or a whole commit. Otherwise name a folder with its files.",
        errors.RemoteEntryNotFoundError: f"{repo} no longer has that file. Name a folder with its "
        "files instead.",
    }
    # snapshot_download wraps an unusable answer in "not in the cache".
    for kind, sentence in sentences.items():
        if isinstance(error, kind) or isinstance(error.__cause__, kind):
            return sentence
    return None


def _breakdown(repo: str, error: Exception) -> str:
    from huggingface_hub import errors
    from huggingface_hub.constants import is_offline_mode

    answered = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__
    if is_offline_mode():
        return f"{repo} was not fetched: HF_HUB_OFFLINE is set. Unset it to download."
    if isinstance(answered, errors.HfHubHTTPError):
        status = answered.response.status_code
        if status in (401, 403):
            return f"The Hub refuses {repo} to this account ({status}). Check HF_TOKEN."
        return f"{repo} was not fetched: the Hub answered {status}. Try again later."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{repo} was not fetched: the disk is full. Make room, or set HF_HOME."
    if isinstance(error, OSError) and error.errno in (errno.ENOLCK, errno.ENOTSUP):
        return f"{repo} was not fetched: its folder has no locks. Set HF_HOME to one that has."
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{repo} was not fetched: its folder cannot be written. Set HF_HOME to one that can."
    return (
        f"{repo} was not fetched: the connection to the Hub failed. Check the network, the proxy "
        "and HF_ENDPOINT, and try again; complete files are kept."
    )
