"""Runs each measurement in a process of its own, forked from one that has the libraries loaded already."""

from __future__ import annotations

import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

#: Loaded once, before the first measurement.
PRELOAD = ("torch", "benchmarks.zoo.preload")


class Pool:
    """Calls functions in processes of their own, with limits on time and memory."""

    def __init__(self, seconds: float, gigabytes: float) -> None:
        self.seconds = seconds
        self.gigabytes = gigabytes
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOAD))

    def call(self, function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
        """Return the function's result, or a dict with ``error`` and ``wall``."""
        here, there = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_serve, args=(there, self.gigabytes, function, args), daemon=True)
        start = time.perf_counter()
        process.start()
        there.close()
        try:
            result: dict[str, Any] = (
                here.recv() if here.poll(self.seconds) else {"error": f"took longer than {self.seconds:g} s"}
            )
        except EOFError:
            process.join(5)
            result = {"error": f"the process ended with exit code {process.exitcode}"}
        finally:
            if process.is_alive():
                process.join(1)
                process.kill()
            process.join()
            here.close()
        result["wall"] = round(time.perf_counter() - start, 2)
        return result


def _serve(connection: Connection, gigabytes: float, function: Callable[..., dict[str, Any]], args: Any) -> None:
    warnings.simplefilter("ignore")
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    connection.send(function(*args))
    connection.close()
