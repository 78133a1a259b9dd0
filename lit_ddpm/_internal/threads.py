"""Evaluation on a CPU: several network calls at once, each in a thread of its own.

An operator uses all cores, but between two operators all cores but one wait. With a share of the cores for each thread
none waits.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import distributed, nn

MAX_THREADS = 4  # more would wait for the interpreter, which serves one at a time

Item = TypeVar("Item")
Result = TypeVar("Result")

_of_thread = threading.local()


def evaluation_threads(network: nn.Module) -> int:
    """Returns how many threads may call a network at once, a divisor of the number of cores.

    It is 1 on a GPU, which runs one call after another; for a compiled network, since compilation is not safe in
    threads; and with several processes, whose collective operations need one order.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    modules = network.modules()  # compiled in place, or by `torch.compile`, which wraps them
    compiled = any(module._compiled_call_impl is not None or hasattr(module, "_orig_mod") for module in modules)
    if not on_cpu or compiled or (distributed.is_available() and distributed.is_initialized()):
        return 1
    cores = torch.get_num_threads()
    return max(number for number in range(1, MAX_THREADS + 1) if cores % number == 0)


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], num_threads: int) -> list[Result]:
    """Returns the results of a function for the items, in order, computed in up to `num_threads` threads.

    The threads share the cores of the caller, and have its autocast and gradient modes. An error in one, or an
    interruption of the caller, stops the others at their next `stop_if_cancelled`.
    """
    num_threads = min(num_threads, len(items))
    if num_threads < 2:
        return [function(item) for item in items]
    cores, cancelled = torch.get_num_threads(), threading.Event()
    autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def start() -> None:
        _of_thread.cancelled = cancelled
        torch.set_num_threads(cores // num_threads)

    def call(item: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients), torch.autocast("cpu", *autocast):
            return function(item)

    pool = ThreadPoolExecutor(num_threads, initializer=start)
    try:
        futures = [pool.submit(call, item) for item in items]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()  # raises the first error
        return [future.result() for future in futures]
    finally:
        cancelled.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # torch gives new threads the number of the last call


def stop_if_cancelled() -> None:
    """Raises in a thread of `in_threads` whose result nobody needs any more."""
    cancelled: threading.Event | None = getattr(_of_thread, "cancelled", None)
    if cancelled is not None and cancelled.is_set():
        raise CancelledError
