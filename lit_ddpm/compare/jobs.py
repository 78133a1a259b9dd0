"""Executing the runs of a comparison, one or several at a time, next to other processes that do the same."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue

import torch

from lit_ddpm.compare.runs import Run


def run_all(runs: Sequence[Run], jobs: int = 1) -> list[Run]:
    """Executes the runs that are not done, `jobs` at a time on a device each, and returns those that failed.

    Runs that another process executes are left to it, and awaited at the end.
    """
    remaining = [run for run in runs if not run.done]
    environments: SimpleQueue[Mapping[str, str]] = SimpleQueue()
    for job in range(jobs):
        environments.put(job_environment(job, jobs))

    def attempt(run: Run, waits: bool) -> bool:
        environment = environments.get()
        try:
            return run.attempt(waits, environment)
        finally:
            environments.put(environment)

    failed: list[Run] = []
    for waits in (False, True):
        pending = [run for run in remaining if not run.done and run not in failed]
        with ThreadPoolExecutor(jobs) as pool:
            try:
                futures = {pool.submit(attempt, run, waits): run for run in pending}
                failed += _follow(futures, runs)
            except BaseException:  # an interrupt reaches the child processes too
                pool.shutdown(cancel_futures=True)
                raise
    return failed


def job_environment(job: int, jobs: int) -> dict[str, str]:
    """Returns the environment of one of several jobs: one device of the visible ones, or a share of the CPU cores."""
    environment = dict(os.environ)
    if jobs > 1 and torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        devices = visible.split(",")
        environment["CUDA_VISIBLE_DEVICES"] = devices[job % len(devices)]
    elif jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return environment


def _follow(futures: "dict[Future[bool], Run]", runs: Sequence[Run]) -> list[Run]:
    """Waits for the futures, and returns the runs that failed.

    Prints a line for each finished run, and on a terminal the state of those in progress.
    """
    failed, spent, start = [], 0, time.monotonic()
    unfinished = set(futures)
    while unfinished:
        done, unfinished = wait(unfinished, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in done:
            run = futures[future]
            try:
                executed = future.result()
            except subprocess.CalledProcessError:
                failed.append(run)
                text = f" failed: {run.last_output()} ({run.files.log})"
            else:
                spent += executed
                elapsed = time.monotonic() - start
                text = f": done after {minutes(elapsed)}"
                if not executed:
                    text = " is done" if run.done else " is in progress in another process"
                elif unfinished:
                    text += f", about {minutes(elapsed / spent * len(unfinished))} left"
            print(f"[{runs.index(run) + 1}/{len(runs)}] {run.name}{text}".ljust(79), flush=True)
        if sys.stdout.isatty():
            active = [futures[future] for future in unfinished if future.running()]
            width = shutil.get_terminal_size().columns - 1
            line = " | ".join(f"{run.name}: {run.last_output()}"[: width // len(active)] for run in active)
            print(f"\r{line}"[:width].ljust(width), end="\r", flush=True)
    return failed


def minutes(seconds: float) -> str:
    """Formats a duration."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
