"""The order of the batches, and its resumption."""

import pytest
import torch
from helpers import digits

from lit_ddpm.data import ImageTensors
from lit_ddpm.data.loader import EpochSampler, Progress, ResumableLoader


def order(data, epoch):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return torch.cat([labels for _, labels in loader]).tolist()


def test_the_order_is_a_function_of_seed_and_epoch(monkeypatch):
    data = digits(batch_size=100)
    data.setup("fit")
    first = order(data, 0)
    assert len(first) == 1200
    torch.manual_seed(99)
    assert order(data, 0) == first
    assert order(data, 1) != first
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert order(data, 0) != first


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_resumes_within_an_epoch(num_workers):
    images = ImageTensors(torch.arange(20, dtype=torch.uint8).reshape(20, 1, 1, 1), torch.zeros(20, dtype=torch.int64))

    class Place(Progress):
        epoch = batches = 0

    progress = Place(None)

    def loader():
        sampler = EpochSampler(images, num_replicas=1, rank=0, shuffle=True, seed=3)
        settings = {"batch_size": 3, "sampler": sampler, "drop_last": True, "collate_fn": levels}
        workers = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
        return ResumableLoader(images, progress, **settings, **workers)

    whole = loader()
    first = list(whole)
    assert len(first) == len(whole) == 6
    assert list(whole) == first  # a finished epoch leaves no state
    interrupted = iter(whole)
    assert [next(interrupted) for _ in range(3)] == first[:3]
    resumed = loader()
    iterator = iter(resumed)  # Lightning makes it before it restores its progress
    progress.batches = 2  # the third was interrupted
    assert list(iterator) == first[2:]
    progress.batches = 0
    assert list(resumed) == first
    assert list(whole) == first  # nor does an interrupted one
    progress.epoch = 1
    assert list(resumed) != first


def levels(batch):
    return batch[0].flatten().tolist()
