"""`handler.py` as a process, and its figures from outside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.services import processes
from benchmarks.services.control_plane import ControlPlane
from benchmarks.services.processes import ROOT, Process
from benchmarks.services.worker import worker_process
from tests import warm


@dataclass(frozen=True)
class Figures:
    """Figures that must not grow: resident memory in MB, threads, open descriptors, files in its
    folder."""

    memory_mb: int
    threads: int
    descriptors: int
    files: int


class Worker:
    """One `python handler.py` in its own session, with its log."""

    def __init__(self, process: Process, log: Path, folder: Path) -> None:
        self.process = process
        self.log = log
        self.folder = folder

    def clips(self) -> list[Path]:
        return sorted(self.folder.glob("outputs/*.mp4"))

    def scratch(self) -> list[Path]:
        return sorted(self.folder.glob("scratch/*"))

    def log_of(self, job_id: str) -> str:
        """The lines that name a job."""
        lines = self.log.read_text().splitlines()
        return "\n".join(line for line in lines if f"job {job_id} " in line)

    def seconds_until_stopped(self, job_id: str) -> float:
        """The log of a job that was stopped. Raises ValueError without such a line."""
        found = re.search(
            rf"job {job_id} was stopped in \w+, its work ended ([\d.]+) s later",
            self.log.read_text(),
        )
        if found is None:
            raise ValueError(f"the log has no end of {job_id}")
        return float(found[1])

    def figures(self) -> Figures:
        home = Path(f"/proc/{self.process.pid}")
        status = dict(
            line.split(":", 1) for line in (home / "status").read_text().splitlines() if ":" in line
        )
        return Figures(
            memory_mb=int(status["VmRSS"].split()[0]) // 1024,
            threads=int(status["Threads"]),
            descriptors=len(list((home / "fd").iterdir())),
            files=sum(1 for path in self.folder.rglob("*") if path.is_file()),
        )

    def peak_memory_mb(self) -> int:
        """The largest value in the summary line of any job."""
        peaks = re.findall(r"peak memory host (\d+) MB", self.log.read_text())
        return max(int(peak) for peak in peaks)

    def survivors(self) -> list[str]:
        """The commands of all processes of its session that still run."""
        return processes_of(self.process.pid)


def processes_of(session: int) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " ").strip())
    return found


@contextmanager
def started(
    plane: ControlPlane,
    folder: Path,
    *,
    entry: str = "handler.py",
    whole: bool = False,
    cold: bool = False,
    **settings: str,
) -> Iterator[Worker]:
    """A worker with few frames unless `whole`. The large libraries are imported when it starts,
    unless `cold` is set."""
    program = [str(ROOT / name) for name in ((entry,) if whole else ("tests/small.py", entry))]
    start = processes.cold if cold else warm.shared().start
    with worker_process(plane, folder, program, start, **settings) as process:
        yield Worker(process, folder / "worker.log", folder)
