"""What the kernels are tested on: CASES, name -> (numpy function, CUDA function, arguments).

Arguments are float64, but float32 can hold them exactly. Sizes: 1 along an axis, odd, unequal, one
more than a tile or a block of threads. Values: of both signs; where a maximum is looked for, few
different ones, so that it is shared by several voxels.
"""

import itertools
from functools import partial

import numpy as np

from weakunet.layers import concat, globalpool3d, linear, loss, maxpool3d, optim, relu, upsample3d
from weakunet.layers.conv import conv3d, folded
from weakunet.layers.conv import gpu as conv3d_cuda
from weakunet.layers.conv.packed import STORED, pack, unpack
from weakunet.training import augment

VOLUMES = [(1, 1, 1, 1, 1), (2, 3, 5, 7, 9), (1, 2, 1, 1, 33), (1, 1, 17, 1, 2), (2, 1, 13, 15, 16)]
EVEN = [(1, 1, 2, 2, 2), (2, 3, 4, 6, 10), (1, 2, 2, 2, 66), (1, 5, 6, 4, 2)]
# x (N, C_in, D, H, W), C_out: channels around 8, 16 and 32, volumes around the tiles' 4 x 8 x 16
CONVOLUTIONS = [
    ((1, 1, 1, 1, 1), 1),
    ((2, 3, 5, 9, 17), 4),
    ((1, 9, 4, 8, 16), 33),
    ((1, 2, 1, 5, 1), 17),
    ((1, 10, 3, 1, 18), 40),
    ((2, 1, 9, 7, 3), 8),
    ((2, 17, 5, 9, 17), 4),
]
# N, C_a, C_b, (D, H, W) of coarse, C_out: channels around 8, 16, 32, 64, tiles of 2 x 8 x 16
UPSAMPLE_CONVOLUTIONS = [
    (1, 8, 8, (1, 1, 1), 1),
    (2, 9, 10, (3, 2, 17), 17),
    (1, 8, 66, (1, 9, 2), 4),
    (1, 3, 4, (2, 1, 3), 2),  # too few for tensor cores: step by step
]
TRANSFORMS = {"flip": {}, "shift": {"shift_vox": 9}, "rotate": {"rotate_deg": 30, "scale": 0.2}}


def _values(rng, *shape):
    return rng.normal(size=shape).astype(np.float32).astype(np.float64)


def _whole(rng, *shape):
    """-1, 0 and 1: bfloat16, hence TF32, holds them and the sums of a few hundred of them exactly,
    so what rounds to these must agree as the others do.
    """
    return rng.integers(-1, 2, shape).astype(np.float64)


def _with_ties(rng, *shape):
    return rng.integers(-2, 3, shape) / 4


def _pair(module, name):
    return getattr(module, name), getattr(module, f"{name}_cuda")


def _plain_layers(rng):
    for s in VOLUMES:
        x, dy = _with_ties(rng, *s), _values(rng, *s)
        b = _values(rng, s[0], 3, *s[2:])
        joined = np.concatenate((x, b), axis=1)
        yield f"relu_forward {s}", *_pair(relu, "relu_forward"), (x,)
        yield f"relu_backward {s}", *_pair(relu, "relu_backward"), (dy, x)
        yield f"upsample3d_forward {s}", *_pair(upsample3d, "upsample3d_forward"), (x,)
        yield f"concat_forward {s}", *_pair(concat, "concat_forward"), (x, b)
        yield f"concat_backward {s}", *_pair(concat, "concat_backward"), (joined, s[1])
    for s in EVEN:
        x = _with_ties(rng, *s)
        y, winner = maxpool3d.maxpool3d_forward(x)
        dy = _values(rng, *y.shape)
        yield f"maxpool3d_forward {s}", *_pair(maxpool3d, "maxpool3d_forward"), (x,)
        yield f"maxpool3d_backward {s}", *_pair(maxpool3d, "maxpool3d_backward"), (dy, winner)
        yield f"upsample3d_backward {s}", *_pair(upsample3d, "upsample3d_backward"), (x,)
        args = dy, winner, _values(rng, *s), x
        yield f"maxpool3d_backward_skip {s}", *_pair(maxpool3d, "maxpool3d_backward_skip"), args


def _global_pooling(rng):
    for s in [*VOLUMES, (1, 2, 17, 16, 17)]:  # the last one: more than one part a map
        x, dy = _with_ties(rng, *s), _values(rng, *s[:2])
        argmax = globalpool3d.globalmax_forward(x)[1]
        yield f"globalmax_forward {s}", *_pair(globalpool3d, "globalmax_forward"), (x,)
        yield f"globalmax_backward {s}", *_pair(globalpool3d, "globalmax_backward"), (dy, argmax, s)
        yield f"globalmean_forward {s}", *_pair(globalpool3d, "globalmean_forward"), (x + 1,)
        yield f"globalmean_backward {s}", *_pair(globalpool3d, "globalmean_backward"), (dy, s)
        for k in (1, 3, 8):
            argmax = globalpool3d.localmax_forward(x, k)[1]
            name = f"localmax_forward {s}, blocks of {k}"
            yield name, *_pair(globalpool3d, "localmax_forward"), (x, k)
            name = f"localmax_backward {s}, blocks of {k}"
            yield name, *_pair(globalpool3d, "localmax_backward"), (dy, argmax, s, k)
        region = (rng.random((s[0], *s[2:])) < 0.2).astype(np.uint8)
        for overlap in (1, 2):
            more = 4, region, 2.5, overlap
            argmax = globalpool3d.localmax_forward(x, *more)[1]
            name = f"localmax_forward {s}, in a region, overlap {overlap}"
            yield name, *_pair(globalpool3d, "localmax_forward"), (x, *more)
            name = f"localmax_backward {s}, in a region, overlap {overlap}"
            more = 4, 2.5, overlap
            yield name, *_pair(globalpool3d, "localmax_backward"), (dy, argmax, s, *more)
            args = dy, argmax, s, *more, x  # x itself, as if it were the output of a ReLU
            yield f"{name}, masked", *_pair(globalpool3d, "localmax_backward"), args


def _packed(rng):
    """What stands between convolutions on tensor cores: on packed maps as on plain ones."""

    def pool(x, dskip, dy):
        y, winner = maxpool3d.maxpool3d_forward(x)
        skip = maxpool3d.maxpool3d_backward_skip(dy, winner, dskip, x)
        return y, maxpool3d.maxpool3d_backward(dy, winner), skip

    def local_maxima(x, dy, region):
        y, argmax = globalpool3d.localmax_forward(x, 4, region, 2, 2, dy.shape[1])
        return y, argmax, globalpool3d.localmax_backward(dy, argmax, x.shape, 4, 2, 2, x)

    for (rung, dtype), s in itertools.product(STORED.items(), [*EVEN, (2, 17, 4, 2, 6)]):

        def on_packed(function, dtype=dtype, s=s):
            """The function of packed maps, its results unpacked; other arguments as they are."""

            def run(*args):
                args = (pack(a, dtype) if a.ndim == 5 and a.shape[:2] == s[:2] else a for a in args)
                results = function(*args)
                results = results if isinstance(results, tuple) else (results,)
                return tuple(unpack(r, s[1]) if r.ndim == 6 else r for r in results)

            return run

        x, dx, dy = _with_ties(rng, *s), _with_ties(rng, *s), _with_ties(rng, *s[:2])
        dpooled = _with_ties(rng, *s[:2], *(size // 2 for size in s[2:]))
        region = (rng.random((s[0], *s[2:])) < 0.5).astype(np.uint8)
        w, b = _whole(rng, s[1] + 2, s[1], 1, 1, 1), _whole(rng, s[1] + 2)
        for function, *args in (
            (np.positive, x),
            (relu.relu_forward, x),
            (relu.relu_backward, dx, x),
            (pool, x, dx, dpooled),
            (local_maxima, x, dy, region),
            (conv3d.conv3d_forward, x, w, b),
        ):
            yield f"{function.__name__} {s}, packed for {rung}", function, on_packed(function), args


def _convolutions(rng):
    for (shape, c_out), k in ((convolution, k) for convolution in CONVOLUTIONS for k in (1, 3)):
        for kernel in conv3d_cuda.KERNELS:
            values = partial(_whole if kernel in STORED else _values, rng)
            x, w = values(*shape), values(c_out, shape[1], k, k, k)
            b, dy = values(c_out), values(shape[0], c_out, *shape[2:])
            where = f"{kernel}, k = {k}, {shape} -> {c_out}"
            forward, forward_cuda = _pair(conv3d, "conv3d_forward")
            yield f"conv3d_forward {where}", forward, _with(forward_cuda, kernel), (x, w, b)
            backward, backward_cuda = _pair(conv3d, "conv3d_backward")
            yield f"conv3d_backward {where}", backward, _with(backward_cuda, kernel), (dy, x, w)


def _upsample_convolutions(rng):
    values = partial(_whole, rng)

    def forward(skip, coarse, w, b):
        x = concat.concat_forward(skip, upsample3d.upsample3d_forward(coarse))
        return conv3d.conv3d_forward(x, w, b)

    def backward(dy, skip, coarse, w):
        x = concat.concat_forward(skip, upsample3d.upsample3d_forward(coarse))
        dx, dw, db = conv3d.conv3d_backward(dy, x, w)
        dskip, dup = concat.concat_backward(dx, skip.shape[1])
        return dskip, upsample3d.upsample3d_backward(dup), dw, db

    def masked(dy, skip, coarse, w):
        dskip, dcoarse, dw, db = backward(dy, skip, coarse, w)
        return dskip, relu.relu_backward(dcoarse, coarse), dw, db

    for n, c_a, c_b, volume, c_out in UPSAMPLE_CONVOLUTIONS:
        fine = [2 * size for size in volume]
        skip, coarse, dy = values(n, c_a, *fine), values(n, c_b, *volume), values(n, c_out, *fine)
        w, b = values(c_out, c_a + c_b, 3, 3, 3), values(c_out)
        for kernel in STORED:
            where = f"{kernel}, {n, c_a, c_b}, {volume} -> {c_out}"
            on_gpu = _with(folded.upsample_conv3d_forward, kernel)
            yield f"upsample_conv3d_forward {where}", forward, on_gpu, (skip, coarse, w, b)
            on_gpu = _with(folded.upsample_conv3d_backward, kernel)
            yield f"upsample_conv3d_backward {where}", backward, on_gpu, (dy, skip, coarse, w)
            on_gpu = _with(folded.upsample_conv3d_backward, kernel, mask=True)
            args = dy, skip, coarse, w
            yield f"upsample_conv3d_backward {where}, masked", masked, on_gpu, args


def _with(function, kernel, **more):
    return lambda *args: function(*args, kernel=kernel, **more)


def _last_layer_and_training(rng):
    for n, c in ((1, 1), (3, 7), (2, 300)):
        x, w, dy = _values(rng, n, c), _values(rng, c), _values(rng, n)
        yield f"linear_forward {n, c}", *_pair(linear, "linear_forward"), (x, w, _values(rng, 1))
        yield f"linear_backward {n, c}", *_pair(linear, "linear_backward"), (dy, x, w)
    for n in (1, 5, 300):
        y, t, w, g = (_values(rng, n) for _ in range(4))
        yield f"mse_forward {n}", *_pair(loss, "mse_forward"), (y, t)
        yield f"mse_backward {n}", *_pair(loss, "mse_backward"), (y, t)
        yield f"mse_backward {n}, bounded", *_pair(loss, "mse_backward"), (y, t, 0.25, 1.0)
        update, update_cuda = _pair(optim, "adadelta_update")
        args = w, g, y**2, t**2, 0.5, 0.9375, 2.0**-20
        yield f"adadelta_update {n}", _returning(update), _returning(update_cuda), args


def _returning(update):
    """An update in place, as a function that returns what it changed."""

    def run(*args):
        args = [arg.copy() if hasattr(arg, "copy") else arg for arg in args]
        update(*args)
        return args[0], args[2], args[3]

    return run


def _warps(rng):
    for shape in ((1, 1, 1), (5, 7, 9), (3, 18, 33)):
        for name, settings in TRANSFORMS.items():
            matrix = augment.draw_transform(rng, shape, **settings)
            args = _values(rng, *shape), matrix
            yield f"warp {shape}, {name}", *_pair(augment, "warp"), args
    matrices = [augment.draw_transform(rng, shape, **each) for each in TRANSFORMS.values()]
    batch = _values(rng, len(matrices), *shape), np.stack(matrices)
    yield f"warp {shape}, a batch", *_pair(augment, "warp"), batch


def _all():
    rng = np.random.default_rng(11)
    for generate in (
        _plain_layers,
        _global_pooling,
        _packed,
        _convolutions,
        _upsample_convolutions,
        _last_layer_and_training,
        _warps,
    ):
        for name, on_cpu, on_gpu, args in generate(rng):
            yield name, (on_cpu, on_gpu, args)


CASES = dict(_all())
