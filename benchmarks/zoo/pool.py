"""Runs each measurement in a process of its own, forked from one that has the libraries loaded already."""

from __future__ import annotations

import math
import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

#: Loaded once, before the first measurement.
PRELOAD = ("torch", "benchmarks.zoo.preload")


#: A process that waits is given up after this many times its processor time.
PATIENCE = 20


class Pool:
    """Calls functions in processes of their own, from any thread, with limits on processor time and memory."""

    def __init__(self, seconds: int, gigabytes: float) -> None:
        self.seconds = seconds
        self.gigabytes = gigabytes
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOAD))

    def call(
        self,
        function: Callable[[str, str, list[str]], Iterator[dict[str, Any]]],
        source: str,
        key: str,
        kinds: list[str],
    ) -> list[dict[str, Any]]:
        """Return one result for each kind: what the function yields, or a dict with ``error``.

        The kinds share a process until one ends it; the rest begin in another.
        """
        results: list[dict[str, Any]] = []
        while len(results) < len(kinds):
            results += self._stream(function, source, key, kinds[len(results) :])
        return results

    def _stream(self, function: Callable[..., Any], *args: Any) -> Iterator[dict[str, Any]]:
        here, there = self._context.Pipe(duplex=False)
        limits = (self.seconds, self.gigabytes)
        process = self._context.Process(target=_serve, args=(there, *limits, function, args), daemon=True)
        process.start()
        there.close()
        try:
            for _ in args[-1]:
                start = time.perf_counter()
                if here.poll(PATIENCE * self.seconds):
                    result = here.recv()
                else:
                    result = {"error": f"took longer than {PATIENCE * self.seconds} s", "ended": True}
                yield {**result, "wall": round(time.perf_counter() - start, 2)}
                if result.get("ended"):
                    return
        except EOFError:
            process.join(5)
            yield {"error": self._reason(process.exitcode), "wall": round(time.perf_counter() - start, 2)}
        finally:
            if process.is_alive():
                process.join(1)
                process.kill()
            process.join()
            here.close()

    def _reason(self, exitcode: int | None) -> str:
        if exitcode == -signal.SIGXCPU:
            return f"took longer than {self.seconds} s"
        return f"the process ended with exit code {exitcode}"


def _serve(connection: Connection, seconds: int, gigabytes: float, function: Callable[..., Any], args: Any) -> None:
    warnings.simplefilter("ignore")
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    results = function(*args)
    for _ in args[-1]:
        # The limit counts from the start of the process, and holds for each measurement.
        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, resource.RLIM_INFINITY))
        connection.send(next(results))
    connection.close()
