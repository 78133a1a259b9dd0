"""Processes that each run one library."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.common.clock import in_turns, now
from benchmarks.common.report import silence
from benchmarks.libraries import library
from benchmarks.libraries.base import Setting

ANSWER = "answer: "


class Worker:
    """A library in a separate process, so that contestants share no state, memory or threads.

    Args:
        name: The library, one of `LIBRARIES`.
        setting: The settings of its training.

    Attributes:
        start_seconds: The seconds from the start of the process to the end of the second training step.
    """

    def __init__(self, name: str, setting: Setting) -> None:
        self.setting = setting
        call = "from benchmarks.libraries.worker import serve; serve()"
        command = [sys.executable, "-c", call, name, json.dumps(asdict(setting))]
        start = now()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask("train", 2)
        self.start_seconds = now() - start

    def ask(self, method: str, *args: Any) -> Any:
        """Calls a method of the library and returns its result."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([method, args]), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise RuntimeError(f"{' '.join(self.process.args)} failed with {self.process.wait()}.")

    def close(self) -> float:
        """Ends the process and returns its peak memory in GiB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_maxrss / 2**20


def ask_in_turns(workers: Mapping[str, Worker], rounds: int, method: str, *args: int) -> dict[str, list[float]]:
    """Calls a timed method of each worker's library round-robin, after a warm-up, and returns the seconds."""
    return in_turns({name: partial(w.ask, method, *args) for name, w in workers.items()}, rounds, warm_up=True)


def serve() -> None:
    """Answers the requests of a `Worker` until its pipe is closed."""
    silence()
    served = library(sys.argv[1])(Setting(**json.loads(sys.argv[2])))
    for line in sys.stdin:
        method, args = json.loads(line)
        print(ANSWER + json.dumps(getattr(served, method)(*args)), flush=True)
