"""Libraries that train diffusion models, each used through its public interface on the same folder of PNG files.

All of them average the weights and clip the gradients. A library is imported on first use, so that its start-up can be
timed and the others need not be installed.
"""

from importlib import import_module

from benchmarks.libraries.base import Library

LIBRARIES = {
    "lit_ddpm": "LitDDPM",
    "diffusers": "Diffusers",
    "denoising-diffusion-pytorch": "DenoisingDiffusionPytorch",
}
"""The class of each library, by the name that the tables print."""


def library(name: str) -> type[Library]:
    """Imports the class of a library, one of `LIBRARIES`."""
    found: type[Library] = getattr(import_module(f"{__name__}.{name.replace('-', '_')}"), LIBRARIES[name])
    return found
