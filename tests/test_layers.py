"""Every layer against outside oracles and, in float64, against numerical gradients."""

import functools
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from skimage.measure import block_reduce

from weakunet.layers.concat import concat_backward, concat_forward
from weakunet.layers.conv.conv3d import Conv3D
from weakunet.layers.globalpool3d import GlobalPool3D, globalmax_forward, localmax_forward
from weakunet.layers.gradcheck import check_layer, numerical_gradient, relative_error
from weakunet.layers.level import Level
from weakunet.layers.linear import Linear, linear_forward
from weakunet.layers.loss import mse_backward, mse_forward
from weakunet.layers.maxpool3d import MaxPool3D, maxpool3d_backward, maxpool3d_forward
from weakunet.layers.optim import Adadelta
from weakunet.layers.relu import ReLU, relu_backward, relu_forward
from weakunet.layers.upsample3d import upsample3d_backward, upsample3d_forward

TOLERANCE = 1e-6


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def distinct(rng, shape):
    """Values of both signs, 0.01 apart and away from 0: no kink within reach of h = 1e-6."""
    n = int(np.prod(shape))
    return (0.01 * (rng.permutation(n) - n // 2) + 0.005).reshape(shape)


class PoolInRegion(GlobalPool3D):
    """Overlapping blocks over a region that leaves some of them out, divided by a constant."""

    def __init__(self):
        super().__init__("lmax", 4, overlap=2)
        self.blocks = 1.7
        self.region = np.zeros((2, 5, 7, 6), np.uint8)
        self.region[0, :, 1, 2:5], self.region[1, 3:, 5:, 4] = 1, 1

    def forward(self, x):
        return super().forward(x, self.region)


def upsample(wrong=lambda dx: dx):
    forward, backward = upsample3d_forward, upsample3d_backward
    return SimpleNamespace(forward=forward, backward=lambda dy: wrong(backward(dy)))


def concat(c_a):
    backward = functools.partial(concat_backward, c_a=c_a)
    return SimpleNamespace(forward=concat_forward, backward=backward)


class LastReLUFirst(Level):
    """A level's own backward begins behind its last ReLU."""

    def backward(self, dy):
        return super().backward(relu_backward(dy, self.y))


LAYERS = {
    "conv3": lambda rng: (Conv3D(2, 3, rng=rng, dtype=np.float64), [(2, 2, 3, 4, 5)]),
    "conv1": lambda rng: (Conv3D(3, 2, k=1, rng=rng, dtype=np.float64), [(2, 3, 2, 3, 1)]),
    "relu": lambda rng: (ReLU(), [(2, 3, 3, 2, 5)]),
    "maxpool": lambda rng: (MaxPool3D(), [(2, 2, 4, 2, 6)]),
    "upsample": lambda rng: (upsample(), [(2, 2, 3, 1, 2)]),
    "concat": lambda rng: (concat(3), [(2, 3, 2, 3, 2), (2, 1, 2, 3, 2)]),
    "globalmax": lambda rng: (GlobalPool3D("max"), [(2, 3, 3, 4, 5)]),
    "globalmean": lambda rng: (GlobalPool3D("mean"), [(2, 3, 3, 4, 5)]),
    "localmax": lambda rng: (GlobalPool3D("lmax", 2), [(2, 2, 4, 3, 5)]),
    "localmax, overlapping": lambda rng: (GlobalPool3D("lmax", 2, 2), [(2, 2, 4, 3, 5)]),
    "localmax in a region": lambda rng: (PoolInRegion(), [(2, 2, 5, 7, 6)]),
    "level": lambda rng: (
        LastReLUFirst([Conv3D(*c, rng=rng, dtype=np.float64) for c in ((2, 3), (3, 2))]),
        [(1, 2, 3, 4, 5)],
    ),
    "linear": lambda rng: (Linear(4, rng=rng, dtype=np.float64), [(3, 4)]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_backward_agrees_with_numerical_gradient_when_dy_is_random(name, rng):
    layer, shapes = LAYERS[name](rng)
    errors = check_layer(layer, [distinct(rng, shape) for shape in shapes], rng)
    assert set(errors) == {f"x{i}" for i in range(len(shapes))} | set(getattr(layer, "params", {}))
    assert max(errors.values()) < TOLERANCE, errors


class MissingFactor(GlobalPool3D):
    def backward(self, dy):
        return super().backward(dy) * 8


class LastTie(MaxPool3D):
    def backward(self, dy):
        self.winner = 7 - self.winner
        return super().backward(dy)


class OffByOnePad(Conv3D):
    def backward(self, dy):
        return np.roll(super().backward(dy), 1, axis=4)


class TransposedWeights(Conv3D):
    def backward(self, dy):
        dx = super().backward(dy)
        self.grads["w"] = self.grads["w"].swapaxes(0, 1)
        return dx


class DroppedTerm(Linear):
    def backward(self, dy):
        dx = super().backward(dy)
        self.grads["b"] = self.grads["b"] * 0
        return dx


def convolution(kind):
    return lambda rng: kind(2, 2, rng=rng, dtype=np.float64)


WRONG = {
    "swapped axes": (lambda rng: upsample(lambda dx: dx.swapaxes(3, 4)), (1, 2, 2, 3, 3), "x0"),
    "missing factor": (lambda rng: MissingFactor("lmax", 2), (1, 2, 4, 4, 4), "x0"),
    "wrong tie": (lambda rng: LastTie(), (1, 2, 4, 2, 2), "x0"),
    "off-by-one pad": (convolution(OffByOnePad), (1, 2, 3, 4, 5), "x0"),
    "transposed weights": (convolution(TransposedWeights), (1, 2, 3, 4, 5), "w"),
    "dropped term": (lambda rng: DroppedTerm(3, rng=rng, dtype=np.float64), (2, 3), "b"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_checker_rejects_a_planted_wrong_backward(mistake, rng):
    make, shape, where = WRONG[mistake]
    errors = check_layer(make(rng), [distinct(rng, shape)], rng)
    assert errors[where] > 0.01, errors


def test_relu_passes_nothing_back_at_zero():
    x = np.array([-2.0, 0.0, 3.0])
    y = relu_forward(x)
    np.testing.assert_array_equal(y, [0, 0, 3])
    np.testing.assert_array_equal(relu_backward(np.array([5.0, 6.0, 7.0]), y), [0, 0, 7])


def test_maxpool_agrees_with_block_reduce(rng):
    x = rng.standard_normal((2, 3, 6, 4, 8)).astype(np.float32)
    y, _ = maxpool3d_forward(x)
    np.testing.assert_array_equal(y, block_reduce(x, (1, 1, 2, 2, 2), np.max))


def test_maxpool_gives_a_tie_to_the_first_voxel_in_memory_order(rng):
    x = rng.integers(0, 3, (2, 2, 4, 6, 4)).astype(np.float64)
    y, winner = maxpool3d_forward(x)
    dy = rng.standard_normal(y.shape)
    expected = np.zeros_like(x)
    for n, c, d, h, w in np.ndindex(y.shape):
        block = x[n, c, 2 * d : 2 * d + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
        place = np.unravel_index(np.argmax(block), (2, 2, 2))  # argmax: first in memory order
        expected[(n, c, *(2 * np.array((d, h, w)) + place))] = dy[n, c, d, h, w]
    np.testing.assert_array_equal(maxpool3d_backward(dy, winner), expected)


@pytest.mark.parametrize("axis, name", [(2, "D"), (3, "H"), (4, "W")])
def test_maxpool_names_the_axis_when_a_size_is_odd(axis, name):
    shape = [1, 1, 4, 4, 4]
    shape[axis] = 5
    with pytest.raises(ValueError, match=f"{name} = 5 is odd"):
        maxpool3d_forward(np.zeros(shape))


def test_upsample_repeats_every_voxel(rng):
    x = rng.standard_normal((2, 3, 3, 1, 5))
    np.testing.assert_array_equal(
        upsample3d_forward(x), x.repeat(2, axis=2).repeat(2, axis=3).repeat(2, axis=4)
    )


def test_localmax_agrees_with_a_loop_over_blocks_when_the_last_block_is_cut(rng):
    x = rng.integers(-9, 3, (2, 2, 5, 7, 4)).astype(np.float64)  # ties and negative blocks
    k = 3
    y, argmax = localmax_forward(x, k)
    for n, c in np.ndindex(2, 2):
        maxima, places = [], []
        for z in range(0, 5, k):
            for y0 in range(0, 7, k):
                for x0 in range(0, 4, k):
                    block = x[n, c, z : z + k, y0 : y0 + k, x0 : x0 + k]
                    dz, dy, dx = np.unravel_index(block.argmax(), block.shape)
                    maxima.append(block.max())
                    places.append(np.ravel_multi_index((z + dz, y0 + dy, x0 + dx), (5, 7, 4)))
        assert y[n, c] == pytest.approx(np.mean(maxima), rel=1e-12)
        np.testing.assert_array_equal(argmax[n, c], places)


@pytest.mark.parametrize("overlap", [1, 2])
def test_localmax_in_a_region_agrees_with_a_loop_over_blocks(rng, overlap):
    k, step = 4, 4 // overlap
    x, region = distinct(rng, (2, 3, 5, 9, 6)), (rng.random((2, 5, 9, 6)) < 0.05).astype(np.uint8)
    region[:, :3, :5] = 0  # blocks without a voxel of the region
    y, argmax = localmax_forward(x, k, region, 7.0, overlap)
    for n, c in np.ndindex(2, 3):
        inside = np.where(region[n] > 0, x[n, c], -np.inf)
        maxima = []
        starts = [range(0 if overlap == 1 else -step, size, step) for size in inside.shape]
        for corner in itertools.product(*starts):
            block = inside[tuple(slice(max(0, i), i + k) for i in corner)]
            maxima.append(block.max())
        maxima = np.array(maxima)
        touches = maxima > -np.inf
        assert 0 < touches.sum() < len(maxima)
        assert y[n, c] == pytest.approx(maxima[touches].sum() / overlap**3 / 7)
        np.testing.assert_array_equal(argmax[n, c] >= 0, touches)
        np.testing.assert_array_equal(x[n, c].ravel()[argmax[n, c][touches]], maxima[touches])


def test_isolated_maximum_adds_the_same_wherever_it_is_when_blocks_overlap():
    for place in ((0, 0, 0), (3, 4, 5), (7, 8, 9)):
        x = np.zeros((1, 1, 8, 9, 10))
        x[(0, 0, *place)] = 3
        assert localmax_forward(x, 4, None, 6.0, 2)[0] == 0.5


def test_localmax_is_the_global_max_when_one_block_holds_all(rng):
    x = rng.standard_normal((2, 3, 4, 5, 3))
    np.testing.assert_array_equal(localmax_forward(x, 5)[0], globalmax_forward(x)[0])


def test_globalpool_refuses_an_unknown_mode():
    with pytest.raises(ValueError, match="median"):
        GlobalPool3D("median")


def test_linear_is_equation_2_in_numbers():
    x, w, b = np.array([[1.0, 2.0], [0.0, -1.0]]), np.array([3.0, 0.5]), np.array([10.0])
    np.testing.assert_array_equal(linear_forward(x, w, b), [14.0, 9.5])


def test_mse_in_numbers_and_against_numerical_gradient(rng):
    assert mse_forward(np.array([1.0, 4.0]), np.array([2.0, 1.0])) == 5.0
    y, t = rng.standard_normal(5), rng.standard_normal(5)
    numerical = numerical_gradient(lambda: float(mse_forward(y, t)), y)
    assert relative_error(mse_backward(y, t), numerical) < TOLERANCE


def test_gradient_of_weighed_and_bounded_errors(rng):
    y, t = rng.normal(size=5), rng.normal(size=5)

    def loss():
        error = y - t
        return error.var() + 0.3 * error.mean() ** 2

    assert relative_error(mse_backward(y, t, common=0.3), numerical_gradient(loss, y)) < TOLERANCE
    far = np.array([3.0, -900.0, 0.5])
    np.testing.assert_allclose(mse_backward(far, far * 0, bound=2.0), [4 / 3, -4 / 3, 1 / 3])


def test_adadelta_takes_the_first_two_steps_of_the_paper_by_hand():
    rho, eps, lr = 0.9, 1e-2, 0.5
    w = np.array([1.0])
    optimizer = Adadelta({"w": w}, lr=lr, rho=rho, eps=eps)
    g1, g2 = 2.0, -1.0
    optimizer.step({"w": np.array([g1])})
    s1 = -np.sqrt(eps / (0.4 + eps)) * g1  # G = 0.1 * 4
    assert w[0] == pytest.approx(1 + lr * s1, rel=1e-12)
    optimizer.step({"w": np.array([g2])})
    big_g, big_s = 0.9 * 0.4 + 0.1 * 1.0, 0.1 * s1**2
    s2 = -np.sqrt((big_s + eps) / (big_g + eps)) * g2
    assert w[0] == pytest.approx(1 + lr * (s1 + s2), rel=1e-12)


def test_adadelta_agrees_with_pytorch(rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    w = rng.standard_normal((3, 4))
    theirs = torch.nn.Parameter(torch.tensor(w))
    optimizer = Adadelta({"w": w}, lr=0.7, rho=0.95, eps=1e-6)
    reference = torch.optim.Adadelta([theirs], lr=0.7, rho=0.95, eps=1e-6)
    for _ in range(20):
        g = rng.standard_normal(w.shape)
        theirs.grad = torch.tensor(g)
        reference.step()
        optimizer.step({"w": g})
    np.testing.assert_allclose(w, theirs.detach().numpy(), rtol=1e-12)
