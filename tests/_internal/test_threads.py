"""Evaluation in threads: the same results, errors that stop all threads, and networks that may not be shared."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest
import torch
from helpers import TinyNetwork, run_isolated, tiny_module, trainer
from torch import distributed, nn

from lit_ddpm import (
    AncestralSampler,
    Denoiser,
    DiscretizedGaussian,
    LinearSchedule,
    VParametrization,
    variational_bound,
)
from lit_ddpm._internal.threads import evaluation_threads, in_threads, stop_if_cancelled
from lit_ddpm.data import to_float

PATIENCE = 60  # seconds


class WitnessNetwork(TinyNetwork):
    """A network that remembers which threads call it, and waits in each for the other one."""

    def __init__(self):
        super().__init__()
        self.seen = set()
        self.meeting = threading.Barrier(2, timeout=PATIENCE)
        self.of_thread = threading.local()

    def forward(self, x, t):
        is_first = not hasattr(self.of_thread, "called")
        self.of_thread.called = True
        if is_first and threading.current_thread() is not threading.main_thread():
            self.meeting.wait()
        self.seen.add(threading.get_ident())
        return super().forward(x, t)


def witnessed_denoiser():
    torch.manual_seed(3)
    return Denoiser(WitnessNetwork(), LinearSchedule(40), VParametrization())


@pytest.fixture
def cores(monkeypatch):
    """A function that sets the number of cores that torch reports; torch itself keeps one thread, see conftest."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return lambda number: monkeypatch.setattr(torch, "get_num_threads", lambda: number)


def run_until_cancelled():
    """Works like a network that is called again and again."""
    for _ in range(100 * PATIENCE):
        stop_if_cancelled()
        time.sleep(0.01)
    raise AssertionError("not stopped")


def test_results_are_in_order(cores):
    cores(2)
    assert in_threads(lambda x: x**2, range(7), 2) == [0, 1, 4, 9, 16, 25, 36]
    assert in_threads(lambda x: x**2, [], 2) == []


def test_a_single_item_stays_in_the_thread_of_the_caller(cores):
    cores(2)
    assert in_threads(lambda _: threading.current_thread(), [0], 2) == [threading.main_thread()]
    assert set(in_threads(lambda _: threading.current_thread(), [0, 1], 1)) == {threading.main_thread()}


def test_threads_have_the_modes_of_the_caller(cores):
    cores(2)

    def modes(_):
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast

    assert in_threads(modes, [0, 1], 2) == [(True, False, None)] * 2
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert in_threads(modes, [0, 1], 2) == [(False, False, torch.bfloat16)] * 2
    with torch.inference_mode():
        assert in_threads(modes, [0, 1], 2) == [(False, True, None)] * 2


def test_threads_share_the_cores_and_give_them_back():
    code = (
        "import torch; torch.set_num_threads(4)\n"
        "from lit_ddpm._internal.threads import in_threads\n"
        "print(in_threads(lambda _: torch.get_num_threads(), [0, 1], 2), torch.get_num_threads())"
    )
    assert run_isolated(sys.executable, "-c", code).strip() == "[2, 2] 4"


def test_an_error_in_a_thread_is_raised_and_stops_the_others(cores):
    cores(2)
    stopped = []

    def work(item):
        if item == 1:
            raise ValueError("item 1")
        try:
            run_until_cancelled()
        except CancelledError:
            stopped.append(item)
            raise

    with pytest.raises(ValueError, match="item 1"):
        in_threads(work, range(8), 2)
    assert stopped[0] == 0
    assert len(stopped) <= 2  # most items after it are not started
    stop_if_cancelled()  # the caller is not stopped


def test_an_interruption_stops_all_threads(cores, request):
    cores(2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of pytest ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def work(item):
        if item == 1:
            time.sleep(0.2)  # until the caller waits
            os.kill(os.getpid(), signal.SIGINT)
        run_until_cancelled()

    count = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        in_threads(work, range(8), 2)
    assert threading.active_count() == count


@pytest.mark.parametrize(("number", "threads"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (7, 1), (16, 4)])
def test_each_thread_has_the_same_number_of_cores(cores, number, threads):
    cores(number)
    assert evaluation_threads(TinyNetwork()) == threads


def test_networks_that_threads_may_not_share(cores, monkeypatch):
    cores(2)
    compiled = nn.Sequential(TinyNetwork())
    compiled[0].compile(backend="eager")
    assert evaluation_threads(compiled) == 1
    assert evaluation_threads(torch.compile(TinyNetwork(), backend="eager")) == 1
    assert evaluation_threads(TinyNetwork().to("meta")) == 1
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "is_initialized", lambda: True)
        assert evaluation_threads(TinyNetwork()) == 1


def test_the_bound_is_the_same_in_threads(cores):
    denoiser = witnessed_denoiser()
    x_0 = to_float(torch.randint(256, (5, 1, 8, 8)), 256)
    cores(1)
    expected = variational_bound(denoiser, x_0, DiscretizedGaussian(256))
    assert denoiser.network.seen == {threading.get_ident()}
    denoiser.network.seen.clear()
    cores(2)
    found = variational_bound(denoiser, x_0, DiscretizedGaussian(256))
    assert len(denoiser.network.seen) >= 2
    for name in ("prior", "diffusion", "reconstruction", "profile", "second_moment", "visits", "squared_error"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_samples_are_the_same_in_threads(cores):
    denoiser, sampler = witnessed_denoiser(), AncestralSampler(num_steps=3, chunk_size=4)
    cores(1)
    expected = sampler(denoiser, (9, 1, 8, 8), first_index=2)
    denoiser.network.seen.clear()
    cores(2)
    assert torch.equal(sampler(denoiser, (9, 1, 8, 8), first_index=2), expected)
    assert len(denoiser.network.seen) >= 2
    assert threading.get_ident() not in denoiser.network.seen


def test_predict_draws_a_chunk_in_each_thread(cores):
    module = tiny_module()
    module.image_shape, module.sampler.chunk_size = (1, 8, 8), 8
    cores(2)
    groups = trainer().predict(module)
    assert [len(group) for group in groups] == [16] * 4
    cores(1)
    assert torch.equal(torch.cat(groups), module.sample(64, seed=0))
