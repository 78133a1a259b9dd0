import pytest
import torch

from lit_ddpm import UNet


def small(**kwargs):
    return UNet(**{"width": 16, "num_blocks": 1, "head_channels": 16, "dropout": 0.0, **kwargs})


def randomised(network):
    """Random weights, so that no branch is zero."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def call(network, x, **kwargs):
    return network(x, torch.arange(1, len(x) + 1), **kwargs)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (7, 5), (1, 3), (32, 16)])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 2)])
def test_any_image_size_works(size, multipliers):
    levels = [len(multipliers) - 1]
    network = small(in_channels=3, multipliers=multipliers, attention_levels=levels)
    assert call(network, torch.randn(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("size", [(33,), (1,), (7, 5), (6, 5, 4), (1, 2, 3)])
def test_sequences_images_and_volumes(size):
    network = randomised(small(dims=len(size), in_channels=2, attention_levels=[0, 1], fourier_features=[2])).eval()
    x = torch.randn(2, 2, *size)
    expected = call(network, x)
    assert expected.shape == x.shape


@pytest.mark.parametrize("dims", [2, 3])
def test_a_flat_volume_is_an_image(dims):
    """With one entry along an axis, each kernel acts by its middle slice: the network of one dimension less."""
    settings = {"in_channels": 2, "attention_levels": [0, 1], "fourier_features": [2]}
    high, low = randomised(small(dims=dims, **settings)).eval(), small(dims=dims - 1, **settings).eval()
    middle = {k: v[:, :, v.shape[2] // 2] if v.ndim == dims + 2 else v for k, v in high.state_dict().items()}
    low.load_state_dict(middle)
    x = torch.randn(2, 2, *[7, 5][: dims - 1])
    torch.testing.assert_close(call(high, x[:, :, None])[:, :, 0], call(low, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_condition_of_any_resolution(dims):
    network = randomised(small(dims=dims, cond_channels=3)).eval()
    x, cond = torch.randn(2, 1, *[8] * dims), torch.randn(2, 3, *[4] * dims)
    out = call(network, x, cond=cond)
    assert not torch.equal(out, call(network, x, cond=cond + 1))
    large = cond
    for axis in range(2, 2 + dims):
        large = large.repeat_interleave(2, axis)
    torch.testing.assert_close(call(network, x, cond=large), out)


def test_a_condition_must_fit():
    x = torch.randn(2, 1, 8, 8)
    for cond, found in ((None, "None"), (torch.randn(2, 1, 4, 4), r"\[2, 1, 4, 4\]"), (torch.zeros(2, 3), r"\[2, 3\]")):
        with pytest.raises(ValueError, match=rf"cond is {found}: a UNet with cond_channels = 3 needs \[2, 3, 8, 8\]"):
            call(small(cond_channels=3), x, cond=cond)
    with pytest.raises(ValueError, match="does not take a condition: its cond_channels is None"):
        call(small(), x, cond=x)


def test_output_channels_may_differ():
    assert call(small(in_channels=3, out_channels=6), torch.randn(2, 3, 8, 8)).shape == (2, 6, 8, 8)


def test_it_starts_at_zero_and_learns_everywhere():
    network = small()
    x = torch.randn(2, 1, 8, 8)
    assert bool((call(network, x) == 0).all())
    randomised(network)
    call(network, x).square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters())


def test_it_depends_on_time_and_label():
    network = randomised(small(num_classes=10)).eval()
    x = torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1)
    early, late, _ = network(x, torch.tensor([1, 500, 500]))
    assert not torch.allclose(early, late)
    t = torch.tensor([5, 5, 5])
    a, b, c = network(x, t, label=torch.tensor([0, 1, 1]))
    assert not torch.allclose(a, b)
    torch.testing.assert_close(b, c)
    assert not torch.allclose(network(x, t)[0], a)  # a missing label differs from label 0
    with pytest.raises(ValueError, match="num_classes is None"):
        small()(x, t, label=t)


def test_dropout_only_while_training():
    network = randomised(small(dropout=0.5))
    x = torch.randn(2, 1, 8, 8)
    assert not torch.equal(call(network, x), call(network, x))
    network.eval()
    assert torch.equal(call(network, x), call(network, x))


def test_fourier_features_are_added_to_the_image():
    network, seen = small(fourier_features=[3, 4]), []
    network.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(2, 1, 8, 8)
    call(network, x)
    waves = [f(n * torch.pi * x) for n in (8, 16) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(seen[0], torch.cat([x, *waves], dim=1))


def test_activation_checkpointing_changes_no_gradient():
    x = torch.randn(2, 1, 8, 8)
    gradients = []
    for on in (False, True):
        network = randomised(small(activation_checkpointing=on, attention_levels=[0, 1]))
        call(network, x).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_channels_last_gives_the_same():
    network = randomised(small(attention_levels=[0, 1])).eval()
    x = torch.randn(2, 1, 8, 8)
    expected = call(network, x)
    network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(call(network, x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [8, 32])
def test_bfloat16_evaluation_has_the_rounding_of_bfloat16_in_any_memory(size):
    network = randomised(small()).eval()
    x = torch.randn(2, 1, size, size)
    expected = call(network, x)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        network.to(memory_format=memory_format)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = call(network, x)
        assert float((found - expected).norm() / expected.norm()) < 2**-6


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_it_compiles_as_one_graph(dims):
    settings = {"num_classes": 3, "attention_levels": [1], "fourier_features": [3], "cond_channels": 1}
    network = randomised(small(dims=dims, **settings)).eval()
    x, t, label = torch.randn(2, 1, *[8] * dims), torch.tensor([3, 9]), torch.tensor([0, 2])
    cond = torch.randn(2, 1, *[4] * dims)
    # The eager backend traces the same graph as any other; fullgraph raises if the trace breaks.
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, label, cond), network(x, t, label, cond))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width = 0"),
        ({"multipliers": []}, r"multipliers = \[\]"),
        ({"attention_levels": [2]}, r"attention_levels = \[2\].*0\.\.1"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"dims": 4}, "dims = 4 of UNet must be one of 1, 2, 3"),
        ({"cond_channels": 0}, "cond_channels = 0"),
        ({"head_channels": 12, "width": 20}, "40 channels are not divisible by 3 attention heads"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        UNet(**settings)
