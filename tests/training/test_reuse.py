"""Every object can be used twice: the second result equals that of fresh objects, bit for bit."""

from pathlib import Path

import lightning
import pytest
import torch
from helpers import (
    FewDigits,
    TinyNetwork,
    image_folder,
    run_files,
    small_sample_metrics,
    tiny_module,
    trainer,
    write_image_folder,
    write_mnist,
)

import lit_ddpm
from lit_ddpm import (
    DDPM,
    X0MSE,
    AncestralSampler,
    BetaSchedule,
    Evaluation,
    ImportanceTimesteps,
    LogSNRSchedule,
    MinSNRWeighting,
    UNet,
)
from lit_ddpm import callbacks as callbacks_package
from lit_ddpm import data as data_package
from lit_ddpm.callbacks import EMA, DDPMCallback, SampleGrid, SampleMetrics, SampleWriter
from lit_ddpm.data import (
    ArrayDataModule,
    HuggingFaceDataModule,
    ImageDataModule,
    ImageFolderDataModule,
    ImageTensors,
    TorchvisionDataModule,
)
from lit_ddpm.training.run_directory import RunLogger

# How to make the classes that need arguments, or whose defaults take long. A new class joins by itself.
MAKE = {
    EMA: lambda: EMA(0.9, raw_bound=True),
    SampleGrid: lambda: SampleGrid(num_images=8),
    SampleMetrics: small_sample_metrics,
    BetaSchedule: lambda: BetaSchedule(torch.linspace(0.05, 0.9, 20).tolist()),
    ImportanceTimesteps: lambda: ImportanceTimesteps(history=1),
    X0MSE: lambda: X0MSE(MinSNRWeighting()),
    ImageFolderDataModule: image_folder,
    ArrayDataModule: lambda: ArrayDataModule(
        torch.arange(60 * 64, dtype=torch.uint8).reshape(60, 1, 8, 8), val_size=10, batch_size=16
    ),
    TorchvisionDataModule: lambda: TorchvisionDataModule("MNIST", "mnist", val_size=10, batch_size=16),
}
SLOTS = {
    "schedule": lit_ddpm.Schedule,
    "parametrization": lit_ddpm.Parametrization,
    "objective": lit_ddpm.Objective,
    "timesteps": lit_ddpm.TimestepSampler,
    "sampler": lit_ddpm.Sampler,
}


@pytest.fixture(autouse=True)
def no_machine_code(monkeypatch):
    """`Compile` does nothing, since compilation takes half a minute; `test_checkpoint.py` compiles."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)


def make(kind):
    settings = {"num_steps": 20} if issubclass(kind, lit_ddpm.Schedule) and kind not in MAKE else {}
    return MAKE.get(kind, kind)(**settings)


def public(package, base, *without) -> list[type]:
    """Returns the public classes of a package that derive from a base class, without the base class."""
    kinds = [getattr(package, name) for name in package.__all__]
    return [k for k in kinds if isinstance(k, type) and issubclass(k, base) and k not in (base, *without)]


class Pixels(FewDigits):
    """The digits with 256 levels."""

    levels = 256

    def splits(self):
        return {name: ImageTensors(s.images * 15, s.labels) for name, s in super().splits().items()}


def module(**kwargs) -> DDPM:
    lightning.seed_everything(0, verbose=False)
    variance = "learned" if isinstance(kwargs.get("objective"), lit_ddpm.HybridObjective) else "posterior"
    outputs = kwargs.get("parametrization", lit_ddpm.VParametrization()).outputs + (variance == "learned")
    network = UNet(out_channels=outputs, width=8, multipliers=[1], num_blocks=1, attention_levels=[], dropout=0.1)
    fast = {"sampler": AncestralSampler(4), "evaluation": Evaluation(2)}
    return tiny_module(**{"network": network, "variance": variance, **fast, **kwargs})


def small_module(**kwargs) -> DDPM:
    """With another network and length than `module`."""
    return tiny_module(**{"schedule": LogSNRSchedule(num_steps=12, log_snr_start=6, log_snr_end=-6), **kwargs})


def network(channels: int) -> TinyNetwork:
    lightning.seed_everything(0, verbose=False)
    return TinyNetwork(channels, num_steps=12)


def run(directory: Path, model: DDPM, data, *callbacks) -> dict[str, bytes]:
    """Fits and tests, and returns the contents of the files of the run, see `run_files`, and the weights."""
    directory.mkdir(parents=True)
    fast = {"limit_train_batches": 3, "limit_val_batches": 1, "limit_test_batches": 1}
    done = trainer(callbacks=list(callbacks), logger=RunLogger(directory), **fast)
    done.fit(model, data)
    done.test(model, data, verbose=False)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return run_files(directory) | {"weights": weights.numpy().tobytes()}


def differences(a: dict[str, bytes], b: dict[str, bytes]) -> list[str]:
    return [name for name in a | b if a.get(name) != b.get(name)]


@pytest.mark.parametrize("kind", public(callbacks_package, lightning.Callback, DDPMCallback, SampleWriter))
def test_a_callback_for_two_modules_and_twice_for_one(tmp_path, kind):
    shared = make(kind)
    run(tmp_path / "first", small_module(), FewDigits(), shared)
    expected = run(tmp_path / "fresh", module(), Pixels(), make(kind))
    for name in ("second", "third"):
        assert not differences(expected, run(tmp_path / name, module(), Pixels(), shared))


@pytest.mark.parametrize(
    ("slot", "kind"), [(slot, kind) for slot, base in SLOTS.items() for kind in public(lit_ddpm, base)]
)
@pytest.mark.filterwarnings("ignore:.*signal")
def test_a_strategy_for_two_modules(tmp_path, slot, kind):
    expected = run(tmp_path / "fresh", module(**{slot: make(kind)}), Pixels())
    shared = make(kind)
    categorical = kind is lit_ddpm.CategoricalParametrization  # it has the levels of the data
    first = module if categorical or kind is lit_ddpm.HybridObjective else small_module
    run(tmp_path / "first", first(**{slot: shared}), Pixels() if categorical else FewDigits())
    second = module(**{slot: shared})
    assert not differences(expected, run(tmp_path / "second", second, Pixels()))
    fresh = module(**{slot: make(kind)})
    fresh.load_state_dict(second.state_dict())
    fresh.observe(second.data)
    assert torch.equal(second.sample(5), fresh.sample(5))


@pytest.mark.parametrize("kind", public(data_package, ImageDataModule, HuggingFaceDataModule))
def test_a_data_module_for_two_modules(tmp_path, kind):
    write_image_folder("images")
    write_mnist("mnist")
    shared = make(kind)
    shared.flip = True

    def fresh():
        data = make(kind)
        data.flip = True
        return data

    channels = 3 if kind is ImageFolderDataModule else 1
    expected = run(tmp_path / "fresh", small_module(network=network(channels)), fresh())
    for name in ("first", "second"):
        assert not differences(expected, run(tmp_path / name, small_module(network=network(channels)), shared))


@pytest.mark.parametrize("slots", [{}, {"objective": lit_ddpm.PosteriorKL(), "timesteps": ImportanceTimesteps(1)}])
def test_a_module_on_other_data(tmp_path, slots):
    """With the weights of its first fit; the levels, the shape and the second moments are those of the new data."""
    used = small_module(**slots)
    run(tmp_path / "first", used, FewDigits())
    fresh = small_module(**slots)
    fresh.load_state_dict(used.state_dict())
    write_mnist("mnist")
    expected = run(tmp_path / "fresh", fresh, make(TorchvisionDataModule))
    lightning.seed_everything(0, verbose=False)
    assert not differences(expected, run(tmp_path / "second", used, make(TorchvisionDataModule)))
    assert used.decoder.levels == 256
    assert used.data.image_shape == (1, 28, 28)
    assert torch.equal(used.sample(2), fresh.sample(2))


def test_a_notebook_of_five_fits(tmp_path):
    """One Trainer's callbacks, data module and module, fitted, tested and sampled again and again."""
    callbacks = [make(kind) for kind in public(callbacks_package, lightning.Callback, DDPMCallback, SampleWriter)]
    model, data = small_module(timesteps=ImportanceTimesteps(history=1), sampler=AncestralSampler(4)), Pixels()
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for number in range(5):
        model.load_state_dict(initial)  # the fit before left the average
        lightning.seed_everything(0, verbose=False)
        files = run(tmp_path / str(number), model, data, *callbacks)
        results.append((files, model.sample(3, seed=number % 2)))
    for number, (files, images) in enumerate(results):
        assert not differences(results[0][0], files), number
        assert torch.equal(images, results[number % 2][1])


def test_one_trainer_for_two_modules():
    """A Trainer counts on, so its second fit takes more epochs; the internal callbacks are those of the module."""
    reused = trainer(max_epochs=1, limit_val_batches=1)
    reused.fit(small_module(), FewDigits())
    reused.fit_loop.max_epochs = 2
    second = small_module(timesteps=ImportanceTimesteps(history=1))
    reused.fit(second, FewDigits())
    assert int(second.timesteps._counts.sum()) > 0
    kinds = [type(callback) for callback in reused.callbacks]
    assert len(kinds) == len(set(kinds))
    reused.test(second, FewDigits(), verbose=False)
    assert second.evaluation.last_report.num_images == 50


def test_one_evaluation_for_two_modules():
    """Each module has the settings, and second moments of its own."""
    shared = Evaluation(4)
    first, second = small_module(evaluation=shared), tiny_module(evaluation=shared)
    for each in (first, second):
        trainer(max_epochs=1, limit_val_batches=1).fit(each, FewDigits())
    moments = [each.evaluation.state_dict()["found_moment"] for each in (first, second)]
    assert [len(moment) for moment in moments] == [11, 19]
    assert shared.last_report is None


def test_references_to_the_denoiser_stay_valid():
    class Mine(lit_ddpm.Denoiser):
        pass

    used = small_module()
    used.denoiser = denoiser = Mine(**used.denoiser.settings)
    assert denoiser.clip
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    trainer(max_epochs=1, limit_val_batches=1).fit(used, ArrayDataModule(images, batch_size=16))
    assert used.denoiser is denoiser
    assert not denoiser.clip
    denoiser.network = network(1)
    denoiser.network.num_classes = 3
    assert denoiser.network_spec.num_classes == 3
