"""Runs each measurement in a process of its own, forked from one that has the libraries loaded already."""

from __future__ import annotations

import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Callable
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

    def call(self, function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
        """Return the function's result, or a dict with ``error`` and ``wall``."""
        here, there = self._context.Pipe(duplex=False)
        limits = (self.seconds, self.gigabytes)
        process = self._context.Process(target=_serve, args=(there, *limits, function, args), daemon=True)
        start = time.perf_counter()
        process.start()
        there.close()
        try:
            if here.poll(PATIENCE * self.seconds):
                result: dict[str, Any] = here.recv()
            else:
                result = {"error": f"took longer than {PATIENCE * self.seconds} s"}
        except EOFError:
            process.join(5)
            result = {"error": self._reason(process.exitcode)}
        finally:
            if process.is_alive():
                process.join(1)
                process.kill()
            process.join()
            here.close()
        result["wall"] = round(time.perf_counter() - start, 2)
        return result

    def _reason(self, exitcode: int | None) -> str:
        if exitcode == -signal.SIGXCPU:
            return f"took longer than {self.seconds} s"
        return f"the process ended with exit code {exitcode}"


def _serve(
    connection: Connection, seconds: int, gigabytes: float, function: Callable[..., dict[str, Any]], args: Any
) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    connection.send(function(*args))
    connection.close()
