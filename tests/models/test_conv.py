"""NatureCNN: the folded first layer is the plain one, images of any layout work, and the right model is chosen."""

import pytest
import torch
from torch.nn import functional

from mpirl.errors import UserError
from mpirl.models.conv import NatureCNN, fold, model_for, relu
from mpirl.models.mlp import MLP
from mpirl.models.packed import can_pack
from mpirl.specs import ArraySpec, Specs

torch.set_num_threads(1)
ACTION = ArraySpec((), "int64", num_values=3)


def specs(*shape, dtype="uint8", **others):
    image = {"observation.image": ArraySpec(shape, dtype)}
    return Specs(image | {f"observation.{name}": spec for name, spec in others.items()}, ACTION)


def frames(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def outputs(model, image, **others):
    observation = {"observation.image": image} | {f"observation.{name}": value for name, value in others.items()}
    return model(observation, torch.zeros(len(image), dtype=torch.uint8), model.initial(len(image)))[0]


def slow_reference(model, images):
    """The network as the paper draws it, on [B, channels, H, W] bytes."""
    images = (images.float() - model.pixel_mean) / model.pixel_std
    hidden = functional.relu(functional.conv2d(images, model.conv1.weight, model.conv1.bias, stride=4))
    hidden = functional.relu(model.conv3(functional.relu(model.conv2(hidden))))
    hidden = functional.relu(model.hidden(hidden.flatten(1)))
    return model.heads(hidden, hidden)


@pytest.mark.parametrize("size", [(84, 84), (36, 40), (37, 45)])
@pytest.mark.parametrize("pixels", [{}, {"pixel_mean": 87, "pixel_std": 40}], ids=["plain", "centred"])
def test_network_is_the_plain_one_in_values_and_gradients(size, pixels):
    torch.manual_seed(0)
    model = NatureCNN(specs(*size), hidden=32, **pixels)
    images = frames(5, 4, *size)
    gradients = []
    for output in (outputs(model, images), slow_reference(model, images)):
        model.zero_grad()
        (output.parameters.square().sum() * 100 + output.value.square().sum()).backward()
        gradients.append(model.conv1.weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(outputs(model, images), slow_reference(model, images), atol=1e-5, rtol=1e-5)


def test_first_layer_keeps_the_standard_weight():
    assert NatureCNN(specs(84, 84)).conv1.weight.shape == (32, 4, 8, 8)


@pytest.mark.parametrize("is_compiling", [False, True])
def test_fold_is_pixel_unshuffle_also_on_a_strided_view(is_compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)  # then it is as on a GPU
    trajectory = frames(3, 9, 8, 12)
    view = trajectory[:, 2:6]
    assert torch.equal(fold(view), functional.pixel_unshuffle(view.contiguous(), 4))
    assert torch.equal(fold(view.transpose(2, 3)), functional.pixel_unshuffle(view.transpose(2, 3).contiguous(), 4))
    assert fold(view).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_relu_and_its_gradient_are_torchs_bit_for_bit(dtype, memory_format):
    hidden = torch.randn(2, 16, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype, memory_format=memory_format)
    hidden[0, :5, 0, 0] = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1e-40])
    results = []
    for function in (relu, functional.relu_):
        leaf = hidden.clone().requires_grad_()
        output = function(leaf * 1)
        results.append((output, *torch.autograd.grad(output.float().square().sum(), leaf)))
    with torch.no_grad():
        results.append((relu(hidden.clone()), results[0][1]))
    for output, gradient in results:
        assert torch.equal(output, results[1][0]) and torch.equal(gradient, results[1][1])
        assert output.is_contiguous(memory_format=memory_format)


def test_colour_channels_count_with_the_stack():
    model = NatureCNN(specs(40, 44, 3), frame_stack=2, hidden=32)
    images = frames(5, 2, 40, 44, 3)
    expected = slow_reference(model, torch.cat([images[:, 0], images[:, 1]], -1).permute(0, 3, 1, 2))
    torch.testing.assert_close(outputs(model, images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(36, 36), (36, 36, 1)])
def test_one_frame_comes_without_a_stack_axis(shape):
    model = NatureCNN(specs(*shape), frame_stack=1, hidden=32)
    expected = slow_reference(model, frames(2, 1, 36, 36))
    torch.testing.assert_close(outputs(model, frames(2, *shape)), expected, atol=1e-5, rtol=1e-5)


def test_other_fields_reach_the_output():
    model = NatureCNN(specs(36, 36, speed=ArraySpec((2,), "float32")), frame_stack=2, hidden=16)
    image = frames(2, 2, 36, 36)[:1].expand(2, -1, -1, -1)
    value = outputs(model, image, speed=torch.tensor([[[0.0, 0], [0, 0]], [[0, 0], [9, 9]]])).value
    assert value[0] != value[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [(84, 84), (37, 45)])
@pytest.mark.parametrize("mean", [0, 87])
def test_acting_copy_computes_what_the_model_does_in_its_precision(size, mean, dtype):
    torch.manual_seed(0)
    model = NatureCNN(specs(*size, speed=ArraySpec((), "float32")), hidden=32, pixel_mean=mean)
    image, speed = frames(3, 4, *size), torch.randn(3, 4)
    acting = model.acting_copy(dtype)
    with torch.inference_mode():
        output = outputs(acting, image, speed=speed)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            expected = outputs(model, image, speed=speed)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)  # one product for both heads sums in another order
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("bad", [specs(84, 84, dtype="float32"), specs(3, 84, 84), specs(35, 84), specs(84)])
def test_observations_without_an_image_are_refused(bad):
    with pytest.raises(UserError, match="observation.image"):
        NatureCNN(bad)


def test_acting_copy_for_continuous_actions_computes_what_autocast_does():
    torch.manual_seed(0)
    model = NatureCNN(Specs(specs(84, 84).observation, ArraySpec((2,), "float32")), hidden=32)
    acting, image = model.acting_copy(torch.bfloat16), frames(3, 4, 84, 84)
    with torch.inference_mode():
        output = outputs(acting, image)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(output, outputs(model, image), rtol=1e-5, atol=1e-6)


def test_two_images_are_refused():
    with pytest.raises(UserError, match="exactly one image"):
        NatureCNN(specs(84, 84, second=ArraySpec((84, 84), "uint8")))


def test_model_is_chosen_by_the_observation():
    assert isinstance(model_for(specs(84, 84), hidden=8), NatureCNN)
    assert isinstance(model_for(specs(84, dtype="float32"), hidden=[8]), MLP)
    assert isinstance(model_for(specs(10, 5)), MLP)


def test_unknown_settings_of_the_chosen_model_are_named():
    with pytest.raises(UserError, match="model.activation; NatureCNN, chosen for this emulator, takes: frame_stack, hidden"):
        model_for(specs(84, 84), activation="relu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_acting_copy_is_packed_where_this_machine_can_and_takes_any_number_of_rows(dtype):
    model = NatureCNN(specs(84, 84), hidden=64)
    acting = model.acting_copy(dtype)
    assert (acting is model) == (dtype == torch.float32 and not can_pack(torch.zeros(1)))
    for rows in (3, 1, 8):  # the first fixes the layout
        image = frames(rows, 4, 84, 84)
        with torch.inference_mode():
            value = outputs(acting, image).value
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                torch.testing.assert_close(value, outputs(model, image).value, rtol=1e-5, atol=1e-6)


def test_acting_copy_without_packed_layers_is_autocast_too(monkeypatch):
    monkeypatch.setattr("mpirl.models.conv.can_pack", lambda weight: False)
    test_acting_copy_computes_what_the_model_does_in_its_precision((84, 84), 87, torch.bfloat16)
    model = NatureCNN(specs(84, 84), hidden=8)
    assert model.acting_copy(torch.float32) is model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_subclass_acts_as_itself(dtype):
    class Own(NatureCNN):
        """Without the second convolution's activation."""

        def _layers(self, kernel=None):
            first, _, *others = super()._layers(kernel)
            return first, self.conv2, *others

    model = Own(specs(84, 84), hidden=8)
    assert model.acting_copy(dtype) is model


def test_channels_set_the_width_of_each_convolution():
    model = NatureCNN(specs(84, 84), hidden=16, channels=[4, 8, 12])
    assert [layer.out_channels for layer in (model.conv1, model.conv2, model.conv3)] == [4, 8, 12]
    assert model.hidden.in_features == 12 * 7 * 7
    images = frames(2, 4, 84, 84)
    torch.testing.assert_close(outputs(model, images), slow_reference(model, images), atol=1e-5, rtol=1e-5)


REFUSED = [{"channels": [4, 8]}, {"channels": [4, 8, 0]}, {"hidden": 0}, {"hidden": [64]}, {"pixel_mean": 256}, {"pixel_std": 0}]


@pytest.mark.parametrize("settings", REFUSED)
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(UserError, match=f"model.{next(iter(settings))}="):
        NatureCNN(specs(84, 84), **settings)
