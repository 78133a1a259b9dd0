"""The peak memory of ``fit`` with FID, KID and IS beside that without: ``python -m benchmarks.memory``.

Fits ``configs/digits.yaml`` with its bundled features, and ``configs/cifar10.yaml`` on random images with an Inception
of random weights, for two short epochs with a validation after each; with `SampleMetrics` and without. Prints what
`Performance` logged, of the GPU if there is one, of the process if not.
"""

import argparse
import hashlib
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from benchmarks.fits import fit
from benchmarks.loading import CIFARSized
from lit_ddpm.data import ImageTensors

CONFIGS = Path(__file__).parent.parent / "configs"


class FewCIFARSized(CIFARSized):
    """As few as Inception looks at in a minute."""

    def splits(self) -> dict[str, ImageTensors]:
        """See `ImageDataModule.splits`."""
        return {name: ImageTensors(split.images[:500], split.labels[:500]) for name, split in super().splits().items()}


def random_inception(path: Path) -> FeatureExtractorInceptionV3:
    """Writes random weights of Inception's architecture to a file, and returns the network that has them.

    Activations are of about one in every layer; the published weights need a download.
    """
    published = mock.patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url", return_value={})
    with published, mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
    torch.save(network.state_dict(), path)
    return network


def settings(name: str, place: Path, measured: bool) -> dict[str, Any]:
    """A shipped configuration made short, with `SampleMetrics` or without."""
    config: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    weights = place / "inception.pth"
    if name == "digits":
        metrics = {"extractor": "lit_ddpm.metrics.DigitsFeatures", "num_val_samples": 256}
    else:
        config["data"] = {"class_path": "benchmarks.memory.FewCIFARSized", "init_args": {"batch_size": 128}}
        sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        inception = {"weights_path": str(weights), "weights_sha256": sha256}
        extractor = {"class_path": "lit_ddpm.metrics.InceptionFeatures", "init_args": inception}
        sampler = {"class_path": "lit_ddpm.DDIMSampler", "init_args": {"num_steps": 2}}
        metrics = {"extractor": extractor, "num_val_samples": 128, "val_sampler": sampler}
    callbacks: list[Any] = [
        {"class_path": "lit_ddpm.callbacks.EMA"},
        {"class_path": "lit_ddpm.callbacks.Performance"},
    ]
    if measured:
        metrics["cache_dir"] = str(place)
        callbacks.append({"class_path": "lit_ddpm.callbacks.SampleMetrics", "init_args": metrics})
    config["model"]["init_args"]["num_val_timesteps"] = 2
    config["trainer"] |= {
        "default_root_dir": str(place / f"{name}_{measured}"),
        "callbacks": callbacks,
        "max_epochs": 2,
        "limit_train_batches": 2,
        "limit_val_batches": 2,
        "check_val_every_n_epoch": 1,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
    }
    return config


def peak(name: str, place: Path, measured: bool) -> float:
    """The peak memory of a fit, in GiB."""
    return max(fit(settings(name, place, measured), place / "config.yaml")["perf/peak_memory_gib"])


def main() -> None:
    """Fits and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print("| | without FID, GiB | with FID, GiB | ratio |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as place:
        random_inception(Path(place) / "inception.pth")
        for name in ("digits", "cifar10"):
            without, measured = (peak(name, Path(place), with_metrics) for with_metrics in (False, True))
            print(f"| `{name}` | {without:.2f} | {measured:.2f} | {measured / without:.3f} |", flush=True)


if __name__ == "__main__":
    main()
