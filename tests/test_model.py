"""The network: identities of eqs. 2 and 3, its whole backward, and PyTorch where installed."""

import json

import numpy as np
import pytest
from scipy import ndimage

from weakunet.layers.enlarge3d import enlarge3d
from weakunet.layers.gradcheck import check_direction, numerical_gradient, relative_error
from weakunet.layers.loss import mse_backward, mse_forward
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import load_model, save_checkpoint


def network(pooling, channels=(3, 4, 5), convs_per_level=2, seed=3, upsampling=True):
    rng = np.random.default_rng(seed)
    model = WeakUNet(channels, convs_per_level, pooling, 4, upsampling, rng=rng, dtype=np.float64)
    return model, rng


@pytest.mark.parametrize("upsampling", [True, False])
@pytest.mark.parametrize("pooling", ["max", "mean", "lmax"])
def test_backward_of_the_whole_network_along_a_random_direction(pooling, upsampling):
    model, rng = network(pooling, upsampling=upsampling)
    scans, counts = rng.random((2, 1, 8, 4, 12)), np.array([1.0, 5.0])
    scans[0, :, :, :, 7:] = 0  # outside the ROI
    model.global_pool.blocks = 1.3
    model.backward(mse_backward(model.forward(scans), counts))
    grads = model.grads
    assert grads.keys() == model.params.keys()
    error = check_direction(
        lambda: mse_forward(model.forward(scans), counts), model.params, grads, rng
    )
    assert error < 1e-6


def test_mean_of_heatmap_plus_b_is_the_count_with_mean_pooling():
    model, rng = network("mean")
    count, heatmap = model.predict(rng.random((2, 1, 4, 8, 8)))
    assert heatmap.shape == (2, 1, 4, 8, 8)
    np.testing.assert_allclose(
        heatmap.mean(axis=(1, 2, 3, 4)) + model.params["linear.b"], count, rtol=1e-12
    )


def test_w_max_f_plus_b_is_the_count_with_max_pooling_and_one_map():
    model, rng = network("max", channels=(1, 2))
    scans = rng.random((2, 1, 4, 6, 8))
    count, heatmap = model.predict(scans)
    w, b = model.params["linear.w"], model.params["linear.b"]
    f_max = model.features(scans).max(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(w[0] * f_max + b, count, rtol=1e-12)
    np.testing.assert_allclose(heatmap, w[0] * model.features(scans), rtol=1e-12)


@pytest.mark.parametrize("pooling", ["max", "mean", "lmax"])
def test_count_is_the_same_in_training_and_testing(pooling):
    model, rng = network(pooling)
    scans = rng.random((3, 1, 8, 8, 4))
    np.testing.assert_allclose(model.forward(scans), model.predict(scans)[0], rtol=1e-10)


def test_paper_scale_has_the_layers_that_design_says():
    model = WeakUNet((32, 64, 128), 2, "max", rng=np.random.default_rng(0))
    shapes = {
        name: value.shape[:2] for name, value in model.params.items() if name.endswith("v0.w")
    }
    assert shapes == {
        "encoder0.conv0.w": (32, 1),
        "encoder1.conv0.w": (64, 32),
        "encoder2.conv0.w": (128, 64),
        "decoder1.conv0.w": (64, 192),
        "decoder0.conv0.w": (32, 96),
    }
    assert model.params["decoder0.conv1.w"].shape == (32, 32, 3, 3, 3)
    assert model.multiple == 4


def test_two_networks_are_the_same_bits_when_their_seed_is():
    first, second = (network("lmax", seed=5)[0].params for _ in range(2))
    other = network("lmax", seed=6)[0].params
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["encoder0.conv0.w"], other["encoder0.conv0.w"])


def test_float32_stays_float32_through_forward_and_backward():
    model = WeakUNet(rng=np.random.default_rng(0))
    scans = np.random.default_rng(1).random((2, 1, 8, 8, 8), dtype=np.float32)
    count = model.forward(scans)
    model.backward(mse_backward(count, np.zeros(2, np.float32)))
    assert count.dtype == np.float32
    assert {value.dtype for value in model.grads.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("pooling", ["max", "mean", "lmax"])
def test_counts_and_gradients_agree_with_pytorch(pooling):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    functional = torch.nn.functional
    model, rng = network(pooling, convs_per_level=1)
    scans, counts = rng.random((2, 1, 12, 12, 12)), np.array([2.0, 7.0])
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in model.params.items()}

    def level(name, h):
        w, b = theirs[f"{name}.conv0.w"], theirs[f"{name}.conv0.b"]
        return functional.conv3d(h, w, b, padding=1).relu()

    h, skips = (torch.tensor(scans) - 0.4) * 4, []
    for i in range(3):
        h = level(f"encoder{i}", h if i == 0 else functional.max_pool3d(skips[-1], 2))
        skips.append(h)
    for i in (1, 0):
        up = functional.interpolate(h, scale_factor=2, mode="nearest")
        h = level(f"decoder{i}", torch.cat((skips[i], up), dim=1))
    pooled = {
        "max": lambda f: f.amax((2, 3, 4)),
        "mean": lambda f: f.mean((2, 3, 4)),
        # each voxel is in 8 blocks of 4, and 27 lie side by side
        "lmax": lambda f: functional.max_pool3d(f, 4, 2, padding=2).sum((2, 3, 4)) / 8 / 27,
    }[pooling](h)
    prediction = pooled @ theirs["linear.w"] + theirs["linear.b"]
    ((prediction - torch.tensor(counts)) ** 2).mean().backward()

    count = model.forward(scans)
    model.backward(mse_backward(count, counts))
    np.testing.assert_allclose(count, prediction.detach().numpy(), rtol=1e-9)
    for name, grad in model.grads.items():
        reference = theirs[name].grad.numpy()
        np.testing.assert_allclose(grad, reference, rtol=0, atol=1e-9 * np.abs(reference).max())


def test_start_makes_the_untrained_network_predict_the_mean_count_in_bounded_parts():
    model, rng = network("lmax")
    batches = [rng.random((3, 1, 8, 8, 8)), rng.random((1, 1, 8, 8, 8))]
    model.start(batches, 4.0)
    counts = np.concatenate([model.predict(scans)[0] for scans in batches])
    assert counts.mean() == pytest.approx(4.0, rel=1e-12)
    f = np.concatenate([model.features(scans) for scans in batches])
    level, w = model.global_pool.forward(f).mean(axis=0), model.params["linear.w"]
    strong = level >= level.mean()
    assert strong.any() and not strong.all()
    parts = w * level
    np.testing.assert_allclose(parts[strong], parts.max(), rtol=1e-12)  # equal
    np.testing.assert_allclose(w[~strong], parts.max() / level.mean(), rtol=1e-12)  # not larger


def test_start_survives_maps_that_are_zero_everywhere():
    model, rng = network("lmax")
    model.params["decoder0.conv1.b"][:] = -1e6
    model.start([rng.random((2, 1, 8, 8, 8))], 4.0)
    assert np.isfinite(model.params["linear.w"]).all()


def test_fit_scales_the_last_layer_to_the_least_error_and_at_most_twofold():
    model, rng = network("lmax")
    batches = [rng.random((3, 1, 8, 8, 8)), rng.random((3, 1, 8, 8, 8))]
    before = {name: value.copy() for name, value in model.params.items()}
    y = np.concatenate([model.predict(scans)[0] for scans in batches])
    for counts, scale in (
        (1.5 * y, 1.5),
        (y + y[::-1] / 9, 1 + y @ y[::-1] / (y @ y) / 9),
        (9 * y, 2),
    ):
        model.load(before)
        model.fit(batches, counts, level=False)
        for name, value in model.params.items():
            assert value == pytest.approx(before[name] * (scale if "linear" in name else 1))


def test_fit_gives_a_larger_region_more_of_the_level():
    model, rng = network("lmax")
    batches = [rng.random((1, 1, 8, 8, n)) for n in (8, 16, 24, 8)]
    model.measure_blocks(batches)
    w, b = model.linear.params["w"].copy(), model.linear.params["b"]
    model.linear.params["w"][:], b[:] = 0, 1
    size = np.concatenate([model.predict(scans)[0] for scans in batches])
    assert size[0] == size[3] < size[1] < size[2] and size.mean() == pytest.approx(1)
    model.linear.params["w"][:], b[:] = w, 0
    y = np.concatenate([model.predict(scans)[0] for scans in batches])
    model.fit(batches, 0.7 * y - 3 * size)
    fitted = np.concatenate([model.predict(scans)[0] for scans in batches])
    np.testing.assert_allclose(fitted, 0.7 * y - 3 * size)
    model.fit(batches, 9 * fitted)  # too far: twofold, and the level that is left
    again = np.concatenate([model.predict(scans)[0] for scans in batches])
    np.testing.assert_allclose(again - 2 * fitted, 7 * (fitted @ size) / (size @ size) * size)


# -- the gradient with respect to the image --------------------------------------------------------


@pytest.mark.parametrize("upsampling", [True, False])
@pytest.mark.parametrize("pooling", ["max", "mean", "lmax"])
def test_gradient_with_respect_to_the_image_is_the_numerical_one(pooling, upsampling):
    model, rng = network(pooling, channels=(3, 4), convs_per_level=1, upsampling=upsampling)
    scans, dcount = rng.random((2, 1, 4, 6, 2)), rng.standard_normal(2)
    model.forward(scans)
    dscans = model.backward(dcount, to_image=True)
    numerical = numerical_gradient(lambda: float(dcount @ model.predict(scans)[0]), scans)
    assert dscans.shape == scans.shape
    assert relative_error(dscans, numerical) < 1e-6


def test_gradient_with_respect_to_the_image_is_computed_only_when_asked_for():
    model, rng = network("mean")
    for to_image in (True, False):
        model.forward(rng.random((1, 1, 4, 4, 4)))
        assert (model.backward(np.ones(1), to_image) is not None) == to_image


def test_guided_backward_stops_at_a_negative_gradient_behind_a_relu():
    model, _ = network("mean", channels=(1,), convs_per_level=2)
    for value in model.params.values():
        value[...] = 0
    for name, centre in (("encoder0.conv0.w", 1.0), ("encoder0.conv1.w", -1.0)):
        model.params[name][0, 0, 1, 1, 1] = centre
    model.params["encoder0.conv1.b"][:] = 10.0
    model.params["linear.w"][:] = 1.0
    scans = np.full((1, 1, 1, 1, 2), 0.9)
    # count = mean of 10 - 4 (S - 0.4): d count / d S = -4 / 2 in each voxel; the second ReLU lets
    # 1/2 through, the convolution turns it to -1/2, and the first ReLU drops that when guided
    for guided, expected in ((False, -2.0), (True, 0.0)):
        assert model.forward(scans) == pytest.approx(8.0)
        np.testing.assert_allclose(model.backward(np.ones(1), True, guided), expected, atol=1e-12)


# -- without the upsampling path -------------------------------------------------------------------


def test_network_without_upsampling_pools_the_bottom_and_upsamples_the_map():
    model, rng = network("mean", upsampling=False)
    scans = rng.random((2, 1, 8, 4, 12))
    f = model.features(scans)
    assert f.shape == (2, 5, 2, 1, 3)
    assert not any(name.startswith("decoder") for name in model.params)
    count, heatmap = model.predict(scans)
    assert heatmap.shape == scans.shape
    w, b = model.params["linear.w"], model.params["linear.b"]
    cam = np.tensordot(w, f, axes=(0, 1))[:, None]
    np.testing.assert_allclose(cam.mean(axis=(1, 2, 3, 4)) + b, count, rtol=1e-12)
    expected = ndimage.zoom(cam, (1, 1, 4, 4, 4), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(heatmap, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("block", "expected"), [(16, 4), (8, 2), (3, 2)])
def test_block_of_the_network_without_upsampling_counts_input_voxels(block, expected):
    rng = np.random.default_rng(0)
    model = WeakUNet((2, 2, 2), 1, "lmax", block, upsampling=False, rng=rng)
    assert model.global_pool.k == expected


@pytest.mark.parametrize("m", [1, 2, 4])
def test_enlarging_agrees_with_scipys_zoom_on_grid_cells(m):
    x = np.random.default_rng(0).standard_normal((2, 1, 3, 1, 5))
    expected = ndimage.zoom(x, (1, 1, m, m, m), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(enlarge3d(x, m), expected, rtol=0, atol=1e-12)


def test_checkpoint_from_before_the_option_is_a_network_with_upsampling(tmp_path):
    model = WeakUNet((2, 3), rng=np.random.default_rng(0))
    save_checkpoint(tmp_path / "new.npz", model)
    arrays = dict(np.load(tmp_path / "new.npz"))
    header = json.loads(str(arrays.pop("header")))
    assert header["settings"].pop("upsampling") is True
    np.savez(tmp_path / "old.npz", header=np.array(json.dumps(header)), **arrays)
    assert load_model(tmp_path / "old.npz").settings == model.settings


@pytest.mark.parametrize("upsampling", [True, False])
def test_maps_and_gradients_on_cuda_are_those_of_numpy(cuda_on_cpu, monkeypatch, upsampling):
    model, rng = network("lmax", channels=(2, 3), convs_per_level=1, upsampling=upsampling)
    scans = rng.random((1, 1, 4, 4, 6))

    def passes():
        model.forward(scans)
        gradient = model.backward(np.ones(1), to_image=True, guided=True)
        return gradient, model.predict(scans)[1]

    on_cuda = passes()
    assert ("layers/relu", "relu_backward") in cuda_on_cpu.launched
    monkeypatch.undo()
    for ours, reference in zip(on_cuda, passes(), strict=True):
        atol = 1e-12 * np.abs(reference).max()
        np.testing.assert_allclose(ours, reference, rtol=0, atol=atol)
