"""Stores the long texts of requests by their SHA-256, in files or in Postgres.

With SQLite they are files, because they would block its only writer, and its file never shrinks.
With Postgres they are in the database, because the next gateway may be on another machine and needs
the accepted requests.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import shutil
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from wan_engine.errors import ConfigurationError
from wan_engine.gateway.jobs.database import Database, long_text_pieces
from wan_engine.runtime.paths import HALF
from wan_engine.storage.files import age_seconds, entries, is_file, remove, whole_file

log = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 20
_SPARE_BYTES = 256 << 20  # stays free for the database and for clips
_HALF_SECONDS = 3600.0
_HASH = re.compile("[0-9a-f]{64}")


class LongTexts(Protocol):
    """Each method may be called for one hash at a time. Those that change something raise `Refusal`
    "unavailable" when another gateway has the jobs."""

    async def put(self, name: str, data: bytes) -> None:
        """Store the whole text or nothing. Raises `OSError` and `SQLAlchemyError`."""

    async def get(self, name: str) -> bytes | None:
        """Return the text, or None if it is not stored. Raises `OSError` and `SQLAlchemyError`."""

    async def remove(self, name: str) -> None:
        """Remove the text, if it is stored. Raises `SQLAlchemyError`."""

    async def names(self) -> list[str]:
        """Return the names of all stored texts. Raises `SQLAlchemyError`."""


def open_long_texts(database: Database) -> LongTexts:
    """Return the store of texts that fits the database. Raises `ConfigurationError`."""
    engine = database.engine
    if engine.dialect.name != "sqlite":
        return LongTextTable(database)
    file = Path(engine.url.database or "")
    folder = file.with_name(f"{file.name}.media")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {folder} cannot be made ({error.strerror}): set WAN_DATABASE_URL, or "
            "WAN_OUTPUT_DIR to a folder that this user may write"
        ) from error
    return LongTextFiles(folder)


class LongTextFiles:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, name: str, data: bytes) -> None:
        await asyncio.to_thread(self._put, name, data)

    async def get(self, name: str) -> bytes | None:
        return await asyncio.to_thread(self._get, name)

    async def remove(self, name: str) -> None:
        await asyncio.to_thread(remove, self._folder / name)

    async def names(self) -> list[str]:
        return await asyncio.to_thread(self._names)

    def _put(self, name: str, data: bytes) -> None:
        path = self._folder / name
        if is_file(path) and path.stat().st_size == len(data):
            return
        if shutil.disk_usage(self._folder).free < len(data) + _SPARE_BYTES:
            raise OSError(errno.ENOSPC, "too little is free")
        with whole_file(path, 0o600) as file:
            file.write(data)

    def _get(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def _names(self) -> list[str]:
        found = entries(self._folder)
        old = (path for path in found if age_seconds(path) > _HALF_SECONDS)
        remove(*(path for path in old if path.name.endswith(HALF)))
        return [path.name for path in found if _HASH.fullmatch(path.name)]


class LongTextTable:
    """Stores texts in pieces, so that none blocks the event loop for long.

    A change is valid only while this gateway owns the jobs (`Ownership.fence`), because the next
    gateway may need a text that this one would remove. The fence comes last, so that the next owner
    waits for no large writes.
    """

    def __init__(self, database: Database) -> None:
        self._engine, self._ownership = database.engine, database.ownership

    async def put(self, name: str, data: bytes) -> None:
        there = sa.select(long_text_pieces.c.number).where(long_text_pieces.c.hash == name).limit(1)
        async with self._engine.begin() as connection:
            if (await connection.execute(there)).first() is not None:
                return
            for number, at in enumerate(range(0, len(data), _PIECE_BYTES)):
                piece = {"hash": name, "number": number, "data": data[at : at + _PIECE_BYTES]}
                await connection.execute(sa.insert(long_text_pieces), piece)
            await self._ownership.fence(connection)

    async def get(self, name: str) -> bytes | None:
        wanted = sa.select(long_text_pieces.c.data).where(long_text_pieces.c.hash == name)
        pieces, number = list[bytes](), long_text_pieces.c.number
        async with self._engine.connect() as connection:
            while True:
                one = wanted.where(number == len(pieces))
                piece = (await connection.execute(one)).scalar()
                if piece is None:
                    return b"".join(pieces) if pieces else None
                pieces.append(piece)

    async def remove(self, name: str) -> None:
        async with self._engine.begin() as connection:
            gone = sa.delete(long_text_pieces).where(long_text_pieces.c.hash == name)
            await connection.execute(gone)
            await self._ownership.fence(connection)

    async def names(self) -> list[str]:
        async with self._engine.connect() as connection:
            found = await connection.execute(sa.select(long_text_pieces.c.hash).distinct())
            return [name for (name,) in found]
