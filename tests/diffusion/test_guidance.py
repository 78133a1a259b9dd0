"""Classifier-free guidance."""

import pytest
import torch
from helpers import PARAMETRIZATIONS, LabelledNetwork, TinyNetwork, learned_variance_denoiser

from lit_ddpm import Denoiser, EDMParametrization, Guidance, GuidedDenoiser, LinearSchedule, VParametrization


def labeled_denoiser(parametrization=None, **kwargs):
    torch.manual_seed(0)
    return Denoiser(LabelledNetwork(), LinearSchedule(50), parametrization or VParametrization(), **kwargs)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=lambda p: type(p).__name__)
def test_guidance_of_the_estimate_is_guidance_of_the_output(parametrization):
    plain = labeled_denoiser(parametrization).double()
    x_t, t, label = (
        torch.randn(4, 1, 5, 5, dtype=torch.float64),
        torch.tensor([2, 9, 30, 50]),
        torch.tensor([0, 1, 2, 2]),
    )
    with torch.no_grad():
        scale = parametrization.input_scale(plain.schedule, t)
        x_in = x_t if scale is None else scale[:, None, None, None] * x_t
        with_label, without = plain.network(x_in, t, label), plain.network(x_in, t)
        output = without + 3 * (with_label - without)
        expected = parametrization.x0_hat(plain.schedule, output, x_t, t)
        found = GuidedDenoiser(plain, 3)(x_t, t, label=label)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_guidance_scales_one_and_zero():
    plain = labeled_denoiser()
    x_t, t, label = torch.randn(4, 1, 5, 5), torch.tensor([2, 9, 30, 50]), torch.tensor([0, 1, 2, 2])
    with torch.no_grad():
        torch.testing.assert_close(GuidedDenoiser(plain, 1)(x_t, t, label=label), plain(x_t, t, label=label))
        torch.testing.assert_close(GuidedDenoiser(plain, 0)(x_t, t, label=label), plain(x_t, t))


def test_guidance_clips_and_calls_the_network_once():
    plain = labeled_denoiser(clip=True)
    plain.network.embedding.weight.data *= 50
    x_t, label = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2])
    with torch.no_grad():
        plain.network.calls = 0
        x0_hat = GuidedDenoiser(plain, 5)(x_t, 20, label=label)
        assert plain.network.calls == 1
        assert plain.network.seen[-1].tolist() == [0, 1, 2, 3, 3, 3]
        free = GuidedDenoiser(Denoiser(plain.network, plain.schedule, plain.parametrization), 5)
        unclipped = free(x_t, 20, label=label)
        assert float(unclipped.min()) < -1
        assert torch.equal(x0_hat, unclipped.clamp(min=-1, max=1))
        p = GuidedDenoiser(plain, 5).p_posterior(x_t, 20, 10, label=label)
        torch.testing.assert_close(p.mean, plain.p_given_x0_hat(x_t, x0_hat, 20, 10).mean)


def test_other_conditions_are_those_of_both_halves():
    class Shifted(LabelledNetwork):
        def forward(self, x_t, t, label, image, shift, factor):
            return super().forward(x_t, t, label) + factor * (image + shift[:, None, None, None])

    torch.manual_seed(0)
    plain = Denoiser(Shifted(), LinearSchedule(50), VParametrization())
    x_t, image = torch.randn(2, 3, 1, 4, 4)
    cond = {"image": image, "shift": torch.tensor([1.0, 2.0, 3.0]), "factor": 0.5}
    label, no_label = torch.tensor([0, 1, 2]), torch.full((3,), 3)
    with torch.no_grad():
        with_label, without = (plain(x_t, 20, label=each, **cond) for each in (label, no_label))
        guided = GuidedDenoiser(plain, 3)(x_t, 20, label=label, **cond)
    torch.testing.assert_close(guided, without + 3 * (with_label - without))


def test_a_guided_denoiser_shares_the_network():
    plain = labeled_denoiser(EDMParametrization(0.5), variance="analytic", clip=True, x0_mse=torch.rand(50))
    guided = GuidedDenoiser(plain, 2)
    for name, value in plain.settings.items():
        found = getattr(guided, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found is value, name


def test_guidance_keeps_the_conditional_variance():
    model = learned_variance_denoiser(num_classes=3)
    x_t, label = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1])
    guided = GuidedDenoiser(model, 2.0).p_posterior(x_t, 20, label=label)
    torch.testing.assert_close(guided.var, model.p_posterior(x_t, 20, label=label).var)


def test_label_dropout_replaces_the_stated_share():
    torch.manual_seed(0)
    label = torch.arange(20_000) % 3
    cond = Guidance(dropout=0.3).drop({"label": label, "other": 1}, no_label=3)
    dropped = cond["label"] == 3
    assert float(dropped.double().mean()) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 20_000) ** 0.5)
    assert torch.equal(cond["label"][~dropped], label[~dropped])
    assert cond["other"] == 1


def test_no_label_dropout_draws_nothing():
    before, cond = torch.get_rng_state(), {"label": torch.tensor([0, 1, 2])}
    assert Guidance().drop(cond, no_label=3) is cond
    assert Guidance().drop({}, no_label=None) == {}
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_label_dropouts_are_refused():
    for probability in (-0.1, 1.0, 1.5):
        with pytest.raises(ValueError, match=rf"dropout = {probability} of Guidance must be in \[0, 1\)"):
            Guidance(dropout=probability)


def test_a_scale_of_one_is_the_denoiser_itself():
    plain = labeled_denoiser()
    assert Guidance(dropout=0.2).guided(plain) is plain
    guided = Guidance(3.0).guided(plain)
    assert isinstance(guided, GuidedDenoiser)
    assert (guided.scale, guided.no_label) == (3.0, 3)


@pytest.mark.parametrize(
    ("guidance", "setting"),
    [(Guidance(2.0), "scale = 2.0"), (Guidance(0), "scale = 0"), (Guidance(dropout=0.1), "dropout = 0.1")],
)
def test_guidance_needs_labels_and_no_label(guidance, setting):
    guidance.check(labeled_denoiser())
    unlabeled, without_no_label = TinyNetwork(num_steps=50), LabelledNetwork()
    without_no_label.no_label = False
    for network, missing in (
        (unlabeled, "a class-conditional network: num_classes of TinyNetwork is None"),
        (without_no_label, 'a network with "no label": no_label of LabelledNetwork is False'),
    ):
        denoiser = Denoiser(network, LinearSchedule(50), VParametrization())
        Guidance().check(denoiser)
        with pytest.raises(ValueError, match=f"{setting} of Guidance needs {missing}"):
            guidance.check(denoiser)
    with pytest.raises(ValueError, match="scale = 2 of Guidance needs a class-conditional network"):
        GuidedDenoiser(Denoiser(unlabeled, LinearSchedule(50), VParametrization()), 2)
