"""Measures the gateway under hostile callers: its peak memory, and the time of `/healthz` for
another address during the attack.

The gateway is a local process whose engine renders nothing. The number and time of the attacks are
limited. It prints one line of JSON per case.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # if this file runs as a script

from benchmarks.services.gateway import free_port, gateway_process
from wan_engine.gateway.keys import new_entry

RUN = "/v2/wan-2-6-i2v/runsync"
HOSTILE, OTHER = "127.0.0.1", "127.0.0.2"
_PROBE_SECONDS = 0.02
_CASE_SECONDS = 30.0
_CHUNK = b"A" * 65_536

Answers = Counter[str]
Case = Callable[["Target"], Awaitable[Answers]]


class Target:
    def __init__(self, port: int, keys: list[str]) -> None:
        self.port = port
        self.keys = keys

    async def ask(
        self, parts: list[bytes], repeat: tuple[bytes, int] = (b"", 0), address: str = HOSTILE
    ) -> str:
        """Send `parts`, the last one `repeat` times, and return the status of the answer; "cut" if
        there is none, "open" if nothing comes in half a minute."""
        reader, writer = await asyncio.open_connection(HOSTILE, self.port, local_addr=(address, 0))
        try:
            async with asyncio.timeout(_CASE_SECONDS):
                sending = asyncio.create_task(_send(writer, parts, repeat))
                line = await reader.readline()
                sending.cancel()
                return line.split()[1].decode() if line else "cut"
        except TimeoutError:
            return "open"
        except OSError:
            return "cut"
        finally:
            writer.transport.abort()

    def head(self, length: str, key: int = 0) -> bytes:
        return (
            f"POST {RUN} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n"
            f"Authorization: {self.keys[key]}\r\n\r\n"
        ).encode()


async def _send(
    writer: asyncio.StreamWriter, parts: list[bytes], repeat: tuple[bytes, int]
) -> None:
    with suppress(OSError):
        for part in parts[:-1]:
            writer.write(part)
            await writer.drain()
        for _ in range(repeat[1]):
            writer.write(repeat[0])
            await writer.drain()
        writer.write(parts[-1])
        await writer.drain()


async def large_posts(target: Target) -> Answers:
    """50 correct posts of 19 MB at once, with one key."""
    return Counter(await asyncio.gather(*(_large(target, 0, n) for n in range(50))))


async def large_posts_of_many(target: Target) -> Answers:
    """The same with ten keys."""
    return Counter(await asyncio.gather(*(_large(target, n % 10, n) for n in range(50))))


async def _large(target: Target, key: int, number: int) -> str:
    begin = b'{"input":{"prompt":"%04d","image":"data:image/png;base64,%04d' % (number, number)
    end = b'"}}'
    chunks = 19 * 2**20 // len(_CHUNK)
    size = len(begin) + len(end) + chunks * len(_CHUNK)
    head = target.head(f"Content-Length: {size}", key)
    return await target.ask([head, begin, end], (_CHUNK, chunks))


async def half_heads(target: Target) -> Answers:
    """300 heads that never end, from six addresses."""
    part = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Half: "
    asked = [target.ask([part], address=f"127.0.0.{10 + n // 50}") for n in range(300)]
    return Counter(await asyncio.gather(*asked))


async def half_bodies(target: Target) -> Answers:
    """30 bodies of 20 MB, each without its last byte."""
    chunks = 20 * 2**20 // len(_CHUNK)
    head = target.head(f"Content-Length: {chunks * len(_CHUNK)}")
    asked = [target.ask([head, b""], (_CHUNK, chunks - 1)) for _ in range(30)]
    return Counter(await asyncio.gather(*asked))


async def trailers(target: Target) -> Answers:
    """400 MB of trailers after a chunked body, without a key."""
    framing = "Transfer-Encoding: chunked"
    head = f"POST {RUN} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n0\r\n".encode()
    one = b"".join(b"x-%d: %s\r\n" % (n, b"a" * 1000) for n in range(64))
    return Counter([await target.ask([head, b"\r\n"], (one, 400 * 2**20 // len(one)))])


CASES: dict[str, Case] = {
    "50 posts of 19 MB": large_posts,
    "50 posts of 19 MB, ten keys": large_posts_of_many,
    "300 half-sent heads": half_heads,
    "30 half-sent bodies of 20 MB": half_bodies,
    "400 MB of trailers": trailers,
}


async def probe(port: int) -> None:
    """Print the milliseconds and the status of `/healthz` on new connections until killed."""
    question = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    while True:
        begun = time.perf_counter()
        status = "cut"
        with suppress(OSError):
            status = await Target(port, []).ask([question], address=OTHER)
        print(1000 * (time.perf_counter() - begun), status, flush=True)
        await asyncio.sleep(_PROBE_SECONDS)


@asynccontextmanager
async def probing(port: int) -> AsyncIterator[list[tuple[float, str]]]:
    """Milliseconds and statuses, measured in another process, because this one is busy with its
    attack."""
    found: list[tuple[float, str]] = []
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--probe", str(port), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None

    async def read(lines: asyncio.StreamReader) -> None:
        while line := await lines.readline():
            ms, status = line.decode().split()
            found.append((float(ms), status))

    reading = asyncio.create_task(read(process.stdout))
    while not found:
        await asyncio.sleep(_PROBE_SECONDS)
    found.clear()
    yield found
    while not found:
        await asyncio.sleep(_PROBE_SECONDS)
    process.kill()
    await process.wait()
    await reading


def peak_mb(pid: int) -> float:
    """The peak of the process's memory since `forget_peak`."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def measure(name: str, pid: int, target: Target) -> dict[str, object]:
    forget_peak(pid)
    before, begun = peak_mb(pid), time.perf_counter()
    async with probing(target.port) as found:
        answers = await CASES[name](target)
    ms = sorted(one for one, _ in found)
    return {
        "case": name,
        "answers": dict(answers),
        "seconds": round(time.perf_counter() - begun, 1),
        "before_mb": round(before),
        "peak_mb": round(peak_mb(pid)),
        "healthz": len(ms),
        "healthz_failed": dict(Counter(status for _, status in found if status != "200")),
        "healthz_p50_ms": round(statistics.median(ms), 1),
        "healthz_p99_ms": round(ms[int(0.99 * (len(ms) - 1))], 1),
        "healthz_max_ms": round(ms[-1], 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='example: python benchmarks/gateway_hostile.py "400 MB of trailers"',
    )
    parser.add_argument(
        "cases", nargs="*", default=list(CASES), help=f"default all: {', '.join(map(repr, CASES))}"
    )
    parser.add_argument("--probe", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.probe:
        asyncio.run(probe(arguments.probe))
    for name in arguments.cases:
        keys = [new_entry(f"key-{number}") for number in range(10)]
        entries = ",".join(entry for _, entry in keys)
        with tempfile.TemporaryDirectory() as folder:
            port = free_port()
            with gateway_process(Path(folder), port, WAN_API_KEYS=entries) as process:
                target = Target(port, [key for key, _ in keys])
                found = asyncio.run(measure(name, process.pid, target))
            found["tracebacks"] = (Path(folder) / "gateway.log").read_text().count("Traceback")
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
