"""Runs each measurement in a process of its own, forked from one that has the libraries loaded already."""

from __future__ import annotations

import gc
import math
import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

#: Loaded once, before the first measurement.
PRELOAD = ("torch", "benchmarks.zoo.preload")

#: A process that waits is given up after this many times its processor time.
PATIENCE = 20


class Pool:
    """Calls a function in processes of their own, from any thread, with limits on processor time and memory."""

    def __init__(self, function: Callable[..., dict[str, Any]], seconds: int, gigabytes: float) -> None:
        self.function = function
        self.seconds = seconds
        self.gigabytes = gigabytes
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOAD))

    def call(self, tasks: Sequence[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
        """Yield the function's result for each tuple of arguments, or a dict with ``error``, and ``wall``.

        The calls share a process until one ends it; the rest begin in another.
        """
        while tasks:
            for result in self._stream(tasks):
                yield result
                tasks = tasks[1:]

    def _stream(self, tasks: Sequence[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
        here, there = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_serve, args=(there, self, tasks), daemon=True)
        process.start()
        there.close()
        try:
            for _ in tasks:
                start = time.perf_counter()
                error = None
                try:
                    if here.poll(PATIENCE * self.seconds):
                        result = here.recv()
                    else:
                        error = f"took longer than {PATIENCE * self.seconds} s"
                except EOFError:
                    process.join(5)
                    error = self._reason(process.exitcode)
                yield {**({"error": error} if error else result), "wall": round(time.perf_counter() - start, 2)}
                if error:
                    return
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

    def __getstate__(self) -> dict[str, Any]:
        """Return what a process is told: all but what makes processes."""
        return {**self.__dict__, "_context": None}


def _serve(connection: Connection, pool: Pool, tasks: Sequence[tuple[str, ...]]) -> None:
    warnings.simplefilter("ignore")
    limit = int(pool.gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for task in tasks:
        gc.collect()
        # The limit counts from the start of the process, and holds for each call.
        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + pool.seconds, resource.RLIM_INFINITY))
        connection.send(pool.function(*task))
    connection.close()
