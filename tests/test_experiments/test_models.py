"""Networks of the experiments: published sizes, shapes, gradients, determinism, every activation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.experiments.models import ACTIVATIONS, MODELS, activation_names, build
from deep_sparse_coding.experiments.models.activations import activation_maker
from deep_sparse_coding.experiments.models.unet import UNet

# Published for CIFAR-10 (the VGGs with biases before batch norm, which ours leave out); U-Net for two classes.
SIZES = {
    "vgg11": (9_231_114, 2752),
    "vgg13": (9_416_010, 2944),
    "vgg16": (14_728_266, 4224),
    "vgg19": (20_040_522, 5504),
    "resnet18": (11_173_962, 0),
    "resnet34": (21_282_122, 0),
    "unet": (31_037_698, 0),
}
COUNTS = {"vgg11": 8, "vgg13": 10, "vgg16": 13, "vgg19": 16, "resnet18": 17, "resnet34": 33, "vit-tiny": 12, "unet": 18}


def small(name: str, **changes) -> nn.Module:
    return build(name, 7, **{"width": 1 / 16, "seed": 0, **changes})


def images(side: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(5))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    published, biases = SIZES[name]
    assert parameters(build(name, 2 if name == "unet" else 10, seed=0)) == published - biases


def test_size_of_vit_tiny():
    width, tokens = 192, 65
    block = 4 * width + 4 * width * (width + 1) + 2 * 4 * width**2 + 5 * width
    expected = 48 * width + width + width + tokens * width + 12 * block + 2 * width + 10 * (width + 1)
    assert parameters(build("vit-tiny", 10, seed=0)) == expected == 5_362_762


def test_vgg_without_batch_norm_has_biases():
    model = build("vgg11", 10, batch_norm=False, seed=0)
    assert parameters(model) == SIZES["vgg11"][0] - 2 * SIZES["vgg11"][1]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_shapes_and_gradients(name):
    model = small(name)
    scores = model(images())
    assert scores.shape == ((3, 7, 32, 32) if name == "unet" else (3, 7))
    assert torch.isfinite(scores).all()
    loss = (scores * torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))).sum()
    loss.backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert torch.isfinite(parameter.grad).all(), label
        assert bool(parameter.grad.any()), label


@pytest.mark.parametrize("name", MODELS)
def test_each_activation_is_its_own_and_runs_once(name):
    model = small(name)
    names = activation_names(model)
    assert len(names) == COUNTS[name] == len({id(model.get_submodule(item)) for item in names})
    calls = dict.fromkeys(names, 0)

    def count(label):
        def hook(*_):
            calls[label] += 1

        return hook

    for label in names:
        model.get_submodule(label).register_forward_hook(count(label))
    model(images())
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["vgg11", "resnet18", "vit-tiny", "unet"])
def test_every_activation(name, activation):
    model = small(name, activation=activation, width=1 / 32)
    kind = type(activation_maker(activation)())
    chosen = [model.get_submodule(item) for item in activation_names(model)]
    assert len(chosen) == COUNTS[name]
    assert all(type(module) is kind for module in chosen)
    assert not any(getattr(module, "inplace", False) for module in chosen)
    model(images()).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.parameters())
    if activation == "prelu":
        assert all(module.weight.item() == 0.25 for module in chosen)


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=3, deadline=None)
@pytest.mark.parametrize("name", ["vgg11", "resnet18", "vit-tiny", "unet"])
def test_weights_depend_on_the_seed_alone(name, seed):
    torch.manual_seed(seed + 1)
    before = torch.get_rng_state()
    first = small(name, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second, other = small(name, seed=seed), small(name, seed=seed + 1)
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    convolutions = [key for key, value in states[0].items() if value.ndim == 4]
    assert convolutions
    assert not any(torch.equal(states[0][key], other.state_dict()[key]) for key in convolutions)


@pytest.mark.parametrize("name", MODELS)
def test_every_value_is_set(name):
    """Memory that was never written would differ between two builds, or not be finite."""
    for value in small(name).state_dict().values():
        assert value.device.type == "cpu"
        assert torch.isfinite(value.double()).all()
        assert value.double().abs().max() < 4


@pytest.mark.parametrize("name", ["vgg19", "resnet34"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_scores_start_at_a_sane_size(name, batch_norm):
    model = small(name, width=0.25, batch_norm=batch_norm)
    deviation = float(model(images()).detach().std())
    assert 0.01 < deviation < 10


def test_channels_and_sizes():
    assert build("vgg11", 3, channels=1, image_size=48, width=0.1, seed=0)(images(48, 1)).shape == (3, 3)
    assert build("resnet18", 3, image_size=8, width=0.1, seed=0)(images(8)).shape == (3, 3)
    assert build("vit-tiny", 3, image_size=16, width=0.1, seed=0)(images(16)).shape == (3, 3)


@pytest.mark.parametrize("side", [(33, 47), (16, 16), (5, 64)])
def test_unet_takes_any_size(side):
    model = UNet(2, nn.ReLU, widths=(4, 8, 12, 16, 20), channels=3, batch_norm=True)
    assert model(torch.zeros(2, 3, *side)).shape == (2, 2, *side)


def test_unet_pads_below_and_to_the_right_with_zeros():
    model = small("unet").eval()
    cut = images(32)[..., :21, :30]
    padded = torch.zeros(3, 3, 32, 32)
    padded[..., :21, :30] = cut
    torch.testing.assert_close(model(cut), model(padded)[..., :21, :30])


def test_width_scales():
    model = build("vgg11", 10, width=0.25, seed=0)
    widths = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [16, 32, 64, 64, 128, 128, 128, 128]
    assert build("vit-tiny", 10, width=0.5, seed=0).get_submodule("norm").weight.shape == (96,)
    assert build("unet", 1, width=1 / 8, seed=0).get_submodule("head").weight.shape == (1, 8, 1, 1)


def test_bad_input():
    with pytest.raises(ParameterError, match=r"name is 'vgg12'; expected one of vgg11.*did you mean 'vgg1"):
        build("vgg12", 10, seed=0)
    with pytest.raises(ParameterError, match=r"activation is 'rleu'; expected one of relu.*did you mean 'relu'"):
        build("vgg11", 10, activation="rleu", seed=0)
    with pytest.raises(ParameterError, match="classes is 0"):
        build("vgg11", 0, seed=0)
    with pytest.raises(ParameterError, match="width is 0"):
        build("vgg11", 10, width=0, seed=0)
    with pytest.raises(ParameterError, match="VGG halves it 5 times: expected at least 32"):
        build("vgg11", 10, image_size=28, seed=0)
    with pytest.raises(ParameterError, match="expected at least 8"):
        build("resnet18", 10, image_size=7, seed=0)
    with pytest.raises(ParameterError, match="expected a multiple of 4"):
        build("vit-tiny", 10, image_size=30, seed=0)
    with pytest.raises(ParameterError, match="vit-tiny has layer norm"):
        build("vit-tiny", 10, batch_norm=False, seed=0)
    with pytest.raises(ParameterError, match=r"the images are 16×16; this network has positions for\s+32×32"):
        small("vit-tiny")(images(16))
    with pytest.raises(ParameterError, match="seed is -1"):
        build("vgg11", 10, width=0.1, seed=-1)
    with pytest.raises(ParameterError, match="widths has 1 entries"):
        UNet(2, nn.ReLU, widths=(8,), channels=3, batch_norm=True)
