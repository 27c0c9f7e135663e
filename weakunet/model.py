"""WeakUNet: the paper's 3D regression fully convolutional network (section 2.2, Fig. 1).

    scan S -> encoder -> decoder -> feature maps f -> global pooling x = G(f) -> count = w . x + b
                                        |                                            (eq. 2)
                                        +--> heatmap M = sum_i w_i f_i               (eq. 3)

The encoder alternates 3x3x3 convolutions (each followed by a ReLU) with 2x2x2 max pooling, the
decoder goes back up by nearest-neighbour upsampling and concatenates the encoder's maps of the same
size. [paper] family, ReLU, 2x2x2 pooling and upsampling, skip connections, pooling, eqs. 1-3.
[ours, the paper leaves them open] the number of levels and maps, max pooling, concatenation.

Ours, too: the pooled features and the count are standardised, so that the last layer learns
    (count - count_mean) / count_std = w . (x - pool_mean) / pool_std + b
whatever the size of the volume; without it, learning starts late or never. pool_mean and pool_std
are running averages that backward holds constant. This rescales w and b and nothing else: `head()`
gives the w and b of eqs. 2 and 3 in terms of the features and counts themselves.
"""

import numpy as np

from weakunet.backend import array_module, is_cuda, to_device
from weakunet.layers.conv3d import Conv3D, conv3d_forward
from weakunet.layers.globalpool3d import GlobalPool3D
from weakunet.layers.linear import Linear, linear_forward
from weakunet.layers.maxpool3d import MaxPool3D
from weakunet.layers.relu import ReLU
from weakunet.layers.upconv3d import UpConv3D

# Intensities in [0, 1] are spread around 0 before the first convolution (ours): learning is faster.
INPUT_CENTRE, INPUT_GAIN = 0.4, 4.0
MIN_STD = 1e-6  # of a pooled feature: a map that is zero everywhere must not divide by zero


class WeakUNet:
    """The network; `forward` and `backward` to train, `predict` for the count and the heatmap.

    Parameters
    ----------
    channels: feature maps per level, from the input's size down; the last is the bottom.
    convs_per_level: 3x3x3 convolutions per level, going down and going up.
    pooling: 'max' | 'mean' | 'lmax'; block: edge of lmax's blocks, in voxels (see globalpool3d.py).
    rng: draws the Gaussian weights. dtype: float32, or float64 for gradient checks.

    The paper's scale is channels=(32, 64, 128), convs_per_level=2. Sizes must divide by `multiple`.
    """

    def __init__(
        self,
        channels=(8, 16, 32),
        convs_per_level=1,
        pooling="lmax",
        block=8,
        *,
        rng,
        dtype=np.float32,
    ):
        self.settings = {
            "channels": list(channels),
            "convs_per_level": convs_per_level,
            "pooling": pooling,
            "block": block,
        }
        self.multiple = 2 ** (len(channels) - 1)

        def level(c_in, c_out, first=Conv3D, needs_dx=True):
            """[convolution, ReLU, convolution, ReLU, ...]"""
            stack = [first(c_in, c_out, rng=rng, dtype=dtype, needs_dx=needs_dx), ReLU()]
            for _ in range(convs_per_level - 1):
                stack += [Conv3D(c_out, c_out, rng=rng, dtype=dtype), ReLU()]
            return stack

        maps_in = (1, *channels)
        self.encoder = [
            # nobody asks for the gradient in the image
            level(maps_in[i], maps_in[i + 1], needs_dx=i > 0)
            for i in range(len(channels))
        ]
        self.pools = [MaxPool3D() for _ in channels[1:]]
        self.decoder = [
            level(channels[i] + channels[i + 1], channels[i], UpConv3D)
            for i in range(len(channels) - 1)
        ]
        self.global_pool = GlobalPool3D(pooling, block)
        self.linear = Linear(channels[0], rng=rng, dtype=dtype)
        self.pool_mean = np.zeros(channels[0], dtype)
        self.pool_std = np.ones(channels[0], dtype)
        self.count_mean, self.count_std = np.zeros(1, dtype), np.ones(1, dtype)

    # -- the passes ---------------------------------------------------------------------------

    def features(self, scans, keep=False):
        """The last feature maps f (N, C, D, H, W) of scans (N, 1, D, H, W) in [0, 1]."""
        h = (scans - INPUT_CENTRE) * INPUT_GAIN
        skips = []
        for i, stack in enumerate(self.encoder):
            h = _forward(stack, h, keep)
            if i < len(self.pools):
                skips.append(h)
                h = self.pools[i].forward(h, keep)
        for i in reversed(range(len(self.decoder))):
            upconv, *rest = self.decoder[i]  # upsamples h, puts the skip before it, convolves
            h = _forward(rest, upconv.forward(skips.pop(), h, keep), keep)
        return h

    def forward(self, scans, momentum=None):
        """Predicted counts (N,) of scans (N, 1, D, H, W); remembers what backward needs (eq. 2).

        With `momentum` the running averages of the pooled features first move by 1 - momentum
        towards this batch.
        """
        pooled = self.global_pool.forward(self.features(scans, keep=True))
        if momentum is not None:
            self._average(pooled, momentum)
        standardised = self.linear.forward((pooled - self.pool_mean) / self.pool_std)
        return self.count_mean + self.count_std * standardised

    def _average(self, pooled, momentum):
        variance = ((pooled - self.pool_mean) ** 2).mean(axis=0)
        variance = momentum * self.pool_std**2 + (1 - momentum) * variance
        self.pool_std = variance**0.5 + MIN_STD
        self.pool_mean = momentum * self.pool_mean + (1 - momentum) * pooled.mean(axis=0)

    def start(self, scans, counts, standardise):
        """Set the averages from some training scans (list of batches) and all counts (numpy, n).

        Without `standardise` (the paper's plain recipe) only the mean count is taken, as the
        last layer's first bias.
        """
        self.count_mean[:] = float(counts.mean())
        if standardise:
            self.count_std[:] = max(float(counts.std()), 1.0)
            pooled = [self.global_pool.forward(self.features(batch), keep=False) for batch in scans]
            pooled = array_module(pooled[0]).concatenate(pooled)
            self.pool_mean, self.pool_std = pooled.mean(axis=0), pooled.std(axis=0) + MIN_STD

    def backward(self, dcount):
        """Set all gradients from the loss's gradient dcount (N,) in the predicted counts."""
        dpooled = self.linear.backward(dcount * self.count_std) / self.pool_std
        dh = self.global_pool.backward(dpooled)
        dskips = []
        for i in range(len(self.decoder)):
            upconv, *rest = self.decoder[i]
            dskip, dh = upconv.backward(_backward(rest, dh))
            dskips.append(dskip)
        for i in reversed(range(len(self.encoder))):
            if i < len(self.pools):
                # a skip connection splits the forward path in two, so here two gradients add up
                dh = self.pools[i].backward(dh) + dskips.pop()
            dh = _backward(self.encoder[i], dh)

    def predict(self, scans):
        """Counts (N,) and heatmaps (N, 1, D, H, W) of scans, from one pass (eqs. 2 and 3)."""
        f = self.features(scans)
        w, b = self.head()
        heatmap = conv3d_forward(f, w.reshape(1, -1, 1, 1, 1), w[:1] * 0)
        return linear_forward(self.global_pool.forward(f, keep=False), w, b), heatmap

    def head(self):
        """w (C,) and b (1,) of eqs. 2 and 3: the standardisation folded into the last layer."""
        w = self.count_std * self.linear.params["w"] / self.pool_std
        b = self.count_mean + self.count_std * self.linear.params["b"]
        return w, b - (w * self.pool_mean).sum()

    # -- the parameters -----------------------------------------------------------------------

    def _learning_layers(self):
        for i, stack in enumerate(self.encoder):
            yield from ((f"encoder{i}.conv{j}", conv) for j, conv in enumerate(stack[::2]))
        for i, stack in enumerate(self.decoder):
            yield from ((f"decoder{i}.conv{j}", conv) for j, conv in enumerate(stack[::2]))
        yield "linear", self.linear

    @property
    def params(self):
        """name -> array of every learnt parameter, the arrays themselves."""
        return {
            f"{layer_name}.{name}": value
            for layer_name, layer in self._learning_layers()
            for name, value in layer.params.items()
        }

    @property
    def grads(self):
        """name -> gradient, as the last backward left them."""
        return {
            f"{layer_name}.{name}": value
            for layer_name, layer in self._learning_layers()
            for name, value in layer.grads.items()
        }

    def state(self):
        """name -> array of everything that a checkpoint keeps: parameters and running averages."""
        return {
            **self.params,
            "pool.mean": self.pool_mean,
            "pool.std": self.pool_std,
            "count.mean": self.count_mean,
            "count.std": self.count_std,
        }

    def load_state(self, arrays):
        """Copy `arrays` (as from `state`) into the network.

        Raises ValueError when names or shapes differ, or a value is not finite.
        """
        own = self.state()
        if own.keys() != arrays.keys():
            raise ValueError(f"its parameters differ: {sorted(own.keys() ^ arrays.keys())[:4]} ...")
        for name, value in own.items():
            if value.shape != arrays[name].shape:
                raise ValueError(f"{name} is {arrays[name].shape}, expected {value.shape}")
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} holds NaN or infinity")
            value[...] = to_device(arrays[name], self.device)

    @property
    def device(self):
        """'cpu' or 'cuda', wherever its arrays are."""
        return "cuda" if is_cuda(self.pool_mean) else "cpu"

    def to(self, device):
        """Move all arrays to `device` ('cpu' or 'cuda'); returns the network."""
        for _, layer in self._learning_layers():
            for arrays in (layer.params, layer.grads):
                arrays.update({name: to_device(value, device) for name, value in arrays.items()})
        for name in ("pool_mean", "pool_std", "count_mean", "count_std"):
            setattr(self, name, to_device(getattr(self, name), device))
        return self


def _forward(stack, h, keep):
    for layer in stack:
        h = layer.forward(h, keep)
    return h


def _backward(stack, dh):
    for layer in reversed(stack):
        dh = layer.backward(dh)
    return dh
