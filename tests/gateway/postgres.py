"""A Postgres server for one test, with its own folder and socket."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.services.gateway import free_port


def _programs() -> Path:
    """The folder of initdb and postgres. Debian keeps it out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if found:
        return found[-1]
    if initdb := shutil.which("initdb"):
        return Path(initdb).resolve().parent
    raise RuntimeError("PostgreSQL is missing: apt-get install postgresql")


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The URL of the server. Root may not run Postgres, so root uses the user that the package
    made."""
    user = pwd.getpwnam("postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
    for path in (folder, *list(folder.parents)[:3]):
        if path.owner() == pwd.getpwuid(os.geteuid()).pw_name:
            path.chmod(path.stat().st_mode | 0o011)
    data = folder / "data"
    data.mkdir()
    os.chown(data, user.pw_uid, user.pw_gid)

    def as_user() -> None:
        if os.geteuid() == 0:
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)

    programs, port = _programs(), free_port()
    initdb = [programs / "initdb", "-D", data, "-A", "trust", "-U", "wan", "-N"]
    subprocess.run(initdb, check=True, capture_output=True, preexec_fn=as_user, cwd="/")
    options = ["-p", str(port), "-k", str(data), "-c", "listen_addresses=127.0.0.1", "-F"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, *options],
            stdout=log,
            stderr=log,
            preexec_fn=as_user,
            cwd="/",
        )
    try:
        ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
        for _ in range(100):
            if subprocess.run(ready, capture_output=True, check=False).returncode == 0:
                break
            try:
                server.wait(0.1)
                raise RuntimeError((folder / "log").read_text())
            except subprocess.TimeoutExpired:
                continue
        yield f"postgresql://wan@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(20)
