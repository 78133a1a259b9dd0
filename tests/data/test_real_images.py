"""Real photographs in a folder for each class, if they are next to the project."""

import tarfile
from copy import deepcopy

import pytest
import torch
from helpers import ROOT, TinyNetwork, same_weights, tiny_module, trainer

from lit_ddpm.data import ImageFolderDataModule

CIFAR = ROOT.parent / "shared" / "data" / "cifar10_train_jpeg.tar.xz"


@pytest.mark.skipif(not CIFAR.is_file(), reason="the photographs are not next to the project")
def test_streamed_and_in_memory_end_with_the_same_weights():
    with tarfile.open(CIFAR) as archive:
        few = [m for m in archive.getmembers() if m.isfile() and m.name.rpartition("/")[2] < "0060.jpg"]
        archive.extractall("cifar", few, filter="data")
    torch.manual_seed(0)
    network, trained = TinyNetwork(3, num_steps=20), []
    for settings in ({"in_memory": True}, {"in_memory": False, "num_workers": 2}):
        data = ImageFolderDataModule("cifar", batch_size=32, flip=True, **settings)
        module = tiny_module(network=deepcopy(network))
        trainer(max_epochs=2, limit_val_batches=1).fit(module, data)
        assert (data.image_shape, len(data.classes), len(data.splits()["train"])) == ((3, 32, 32), 10, 480)
        trained.append(module)
    assert same_weights(*trained)
    assert not torch.equal(trained[0].denoiser.network.conv.weight, network.conv.weight)
