"""WeakUNet: the paper's 3D regression fully convolutional network (section 2.2, Fig. 1).

    scan S -> encoder -> decoder -> feature maps f -> global pooling x = G(f) -> count = w . x + b
                                        |                                            (eq. 2)
                                        +--> heatmap M = sum_i w_i f_i               (eq. 3)

The encoder alternates 3x3x3 convolutions (each followed by a ReLU) with 2x2x2 max pooling. The
decoder upsamples (nearest neighbour) and concatenates the encoder's maps of the same size.
[paper] the family, ReLU, 2x2x2 pooling and upsampling, skip connections, global pooling, eqs. 1-3.
[ours, the paper leaves them open] the number of levels and maps, max pooling, concatenation.

Also ours: how the last layer starts. With Gaussian weights, as in the paper, the mean of the
untrained pooled features is 5 to 20 times their spread over scans: a small common change of all
features swamps the count, and whether a run learns is luck. `start` takes instead the positive w
with which the untrained network predicts the mean count on average.

Without the upsampling path it is the regression network that the paper compares with (section 3, b
and d): the encoder's last maps are pooled, and the small M is upsampled to the input's size.
"""

import itertools
import math

import numpy as np

from weakunet.gpu.backend import is_cuda, to_device, to_host
from weakunet.layers.conv.conv3d import Conv3D, conv3d_forward
from weakunet.layers.conv.folded import UpsampleConv3D
from weakunet.layers.conv.gpu import KERNEL_OF
from weakunet.layers.conv.packed import STORED, pack, unpack
from weakunet.layers.enlarge3d import enlarge3d
from weakunet.layers.globalpool3d import GlobalPool3D, localmax_forward
from weakunet.layers.level import Level
from weakunet.layers.linear import Linear, linear_forward
from weakunet.layers.maxpool3d import MaxPool3D
from weakunet.layers.relu import relu_backward

# Intensities in [0, 1] are spread around 0 before the first convolution (ours): learning is faster.
INPUT_CENTRE, INPUT_GAIN = 0.4, 4.0


class WeakUNet:
    """The network; `forward` and `backward` to train, `predict` for the count and the heatmap.

    Parameters
    ----------
    channels: feature maps per level, from the input's size down; the last is the bottom.
    convs_per_level: 3x3x3 convolutions per level, going down and going up.
    pooling: 'max' | 'mean' | 'lmax'; block: edge of lmax's blocks, in voxels of the INPUT
    (see globalpool3d.py). upsampling: False leaves the decoder out.
    region: lmax's blocks overlap and its count is that of the ROI; False: blocks side by side, and
    the count is that of the whole box, as older networks' is.
    rng: draws the Gaussian weights. dtype: float32, or float64 for gradient checks.

    The paper's scale is channels=(32, 64, 128), convs_per_level=2. Sizes must divide by `multiple`.
    """

    def __init__(
        self,
        channels=(8, 16, 32),
        convs_per_level=1,
        pooling="lmax",
        block=8,
        upsampling=True,
        region=True,
        *,
        rng,
        dtype=np.float32,
    ):
        self.settings = {
            "channels": list(channels),
            "convs_per_level": convs_per_level,
            "pooling": pooling,
            "block": block,
            "upsampling": upsampling,
            "region": region and pooling == "lmax",
        }
        self.multiple = 2 ** (len(channels) - 1)
        # (D, H, W) of the padded scans it was trained on: a mean over the whole box depends on it
        self.shape = (1, 1, 1)
        self.spacing_mm = None  # (z, y, x) of the scans it was trained on; None: not known
        self.flips = ""  # axes of 'zyx' along which training mirrored its scans, see tta.py

        def level(c_in, c_out, first=Conv3D):
            more = range(convs_per_level - 1)
            first = first(c_in, c_out, rng=rng, dtype=dtype)
            return Level([first, *(Conv3D(c_out, c_out, rng=rng, dtype=dtype) for _ in more)])

        maps_in = (1, *channels)
        self.encoder = [level(maps_in[i], maps_in[i + 1]) for i in range(len(channels))]
        self.pools = [MaxPool3D() for _ in channels[1:]]
        self.decoder = [
            level(channels[i] + channels[i + 1], channels[i], UpsampleConv3D)
            for i in range(len(channels) - 1 if upsampling else 0)
        ]
        self.last = (self.decoder or self.encoder[::-1])[0]  # the level whose maps are pooled
        # edge length, in input voxels, of what a voxel of the last maps covers
        self.coarseness = 1 if upsampling else self.multiple
        overlap = 2 if self.settings["region"] else 1
        k = overlap * max(1, block // self.coarseness // overlap)
        self.global_pool = GlobalPool3D(pooling, k, overlap, channels[0 if upsampling else -1])
        # voxels after which the grids of pooling and blocks repeat
        self.period = math.lcm(self.multiple, k // overlap * self.coarseness)
        self.linear = Linear(self.global_pool.channels, rng=rng, dtype=dtype)
        self.stored = None  # how a GPU keeps feature maps, where not as numpy does: `to` sets it

    # -- the passes ---------------------------------------------------------------------------

    def features(self, scans, keep=False):
        """The last feature maps f (N, C, D, H, W) of scans (N, 1, D, H, W) in [0, 1].

        Where convolutions run on tensor cores, all maps and f are packed (layers/conv/packed.py).
        Without upsampling they are `coarseness` times smaller along each axis.
        """
        h = (scans - INPUT_CENTRE) * INPUT_GAIN
        masks = [None] * len(self.encoder)
        if self.settings["region"]:
            # all maps are 0 outside the ROI, as they are outside the array: the network cannot
            # tell one from the other, and zeros around a scan change nothing
            masks = [_coarse(scans > 0, 2**i).astype(scans.dtype) for i in range(len(masks))]
            h = h * masks[0]
            self.inside = masks[0]
        h, skips = pack(h, self.stored), []
        for i, level in enumerate(self.encoder):
            # (N, C, D, H, W) -> (N, channels[i], D, H, W)
            h = level.forward(h, keep=keep, inside=masks[i])
            if i < len(self.pools):
                skips.append(h)
                h = self.pools[i].forward(h, keep)  # -> (N, channels[i], D/2, H/2, W/2)
        for i in reversed(range(len(self.decoder))):
            # upsamples h, puts the skip before it, convolves: twice the size, as many maps as skip
            h = self.decoder[i].forward(skips.pop(), h, keep=keep, inside=masks[i])
        return h

    def region(self, scans, counted=None):
        """Where lesions were counted, (N, d, h, w) uint8 of the last feature maps' size.

        It is the ROI (scans > 0), and where one slice was counted the part of it in `counted`, bool
        and broadcastable to the scans' shape. None: the whole box, as for older networks.
        """
        if not self.settings["region"]:
            return None
        inside = scans > 0 if counted is None else (scans > 0) & counted
        return _coarse(inside, self.coarseness)[:, 0].astype(np.uint8)

    def measure_blocks(self, batches, slabs=None):
        """Set the constant of the global pooling: the mean number of blocks that touch the region.

        batches: iterable of training scans (n, 1, D, H, W); slabs: where each batch was counted.
        """
        if not self.settings["region"]:
            return
        pool, touching = self.global_pool, []
        for scans, counted in zip(batches, slabs or itertools.repeat(None), strict=False):
            region = self.region(scans, counted)
            ones = region[:, None].astype(np.float32)  # each block that touches the region adds 1
            touching.append(to_host(localmax_forward(ones, pool.k, region, 1, pool.overlap)[0]))
        pool.blocks = float(np.concatenate(touching).mean())

    def forward(self, scans, counted=None):
        """Predicted counts (N,) of scans (N, 1, D, H, W); keeps what backward needs (eq. 2)."""
        f = self.features(scans, keep=True)
        count = self.linear.forward(self.global_pool.forward(f, self.region(scans, counted)))
        return count + self._bias_of_more(self.linear.params["b"])

    def _bias_of_more(self, b):
        """b (size - 1): what a scan with a larger region than usual has of the bias beyond one b.

        Each block brings its part of the bias (ours), or the counts of two regions would not add
        up: y = w . x + b size, where size is the region's blocks over their mean in training.
        Today's training leaves b at 0 until `fit` sets it; networks trained before learned one.
        """
        known = self.settings["region"] and self.global_pool.blocks is not None
        return b * (self.global_pool.size - 1 if known else 0)

    def start(self, batches, count, slabs=None):
        """Set the last layer so that the mean prediction over `batches` is the mean `count`.

        w_i = count / (C mean x_i), b = 0, with x = G(f) over all scans of the batches (iterable of
        (n, 1, D, H, W); slabs: where each was counted): every feature map contributes equally, but
        a map weaker than the average gets no larger weight: where a map is 0 almost everywhere, its
        first activation would otherwise make the count jump.
        """
        pooled = [
            to_host(self.global_pool.forward(self.features(scans), self.region(scans, counted)))
            for scans, counted in zip(batches, slabs or itertools.repeat(None), strict=False)
        ]
        level = np.concatenate(pooled).mean(axis=0)
        w = 1 / np.maximum(level, level.mean()) if level.any() else np.ones(level.shape)
        w *= count / (w @ level) if level.any() else 1 / len(w)
        self.load(self.params | {"linear.w": w, "linear.b": np.zeros(1)})

    def fit(self, batches, counts, slabs=None, level=True):
        """Scale w and b, at most twofold, and with `level` add to b, for the least squared error.

        Parameters as for `start`, but counts t (number of scans,) in the place of their mean. The
        scale is sum y t / sum y^2 of predictions y; with a level, of the parts that no level gives.
        """
        predicted, sizes = [], []
        for scans, counted in zip(batches, slabs or itertools.repeat(None), strict=False):
            predicted.append(to_host(self.predict(scans, counted=counted)[0]))
            sizes.append(np.ones(len(scans)) * to_host(1 + self._bias_of_more(1)))
        y, size = np.concatenate(predicted).astype(float), np.concatenate(sizes)
        own_y, own_t = (v - level * (v @ size) / (size @ size) * size for v in (y, counts))
        scale = np.clip(own_y @ own_t / max(own_y @ own_y, 1e-30), 0.5, 2)
        for value in self.linear.params.values():
            value *= value.dtype.type(scale)
        if level:
            self.linear.params["b"] += float((counts - scale * y) @ size / (size @ size))

    def backward(self, dcount, to_image=False, guided=False):
        """Set all gradients, from the loss's gradient dcount (N,) with respect to the counts.

        Returns the gradient with respect to the scans (N, 1, D, H, W) if `to_image`, else None.
        """
        # with respect to a, where the last maps are f = max(a, 0)
        da = self.global_pool.backward(self.linear.backward(dcount), self.last.y)
        self.linear.grads["b"] = self.linear.grads["b"] + self._bias_of_more(dcount).sum(
            keepdims=True
        )
        return self._backward_levels(da, to_image, guided)

    def backward_features(self, df, to_image=False, guided=False):
        """As `backward`, from the gradient df with respect to the last maps: no last layer."""
        df = pack(df, self.last.y.dtype)
        return self._backward_levels(relu_backward(df, self.last.y), to_image, guided)

    def _backward_levels(self, da, to_image, guided):
        """da has been through the backward of the last ReLU, as every level's `backward` wants."""
        dskips, bottom = [], len(self.encoder) - 1
        if self.decoder:
            dh, dskips = self.backward_decoder(da, guided)
            da = relu_backward(dh, self.encoder[bottom].y)
        for i in reversed(range(len(self.encoder))):
            level = self.encoder[i]
            if i < bottom and dskips:
                # a skip connection splits the forward path in two, so here two gradients add up
                da = self.pools[i].backward_skip(dh, dskips.pop(), level.y)
            elif i < bottom:
                da = relu_backward(self.pools[i].backward(dh), level.y)
            # training has no use for the gradient with respect to the image
            dh = level.backward(da, guided, needs_dx=to_image or i > 0)
        if not to_image:
            return None
        return unpack(dh, 1) * INPUT_GAIN * (self.inside if self.settings["region"] else 1)

    def backward_decoder(self, da, guided=False):
        """The gradients with respect to the bottom's maps and to each skip; sets its own, from da.

        da: as Level.backward takes it, which also says what `guided` is.
        """
        dh, dskips = da, []
        for level in self.decoder:
            dskip, dh = level.backward(dh, guided, mask=level is not self.decoder[-1])
            dskips.append(dskip)
        return dh, dskips

    def predict(self, scans, counted=None):
        """Counts (N,) and heatmaps (N, 1, D, H, W) of scans, from one pass (eqs. 2 and 3)."""
        f = self.features(scans)
        w, b = self.linear.params["w"], self.linear.params["b"]
        x = self.global_pool.forward(f, self.region(scans, counted), keep=False)
        count = linear_forward(x, w, b) + self._bias_of_more(b)
        return count, enlarge3d(self.heatmap(f), self.coarseness)

    def heatmap(self, f):
        """M = sum_i w_i f_i (N, 1, D, H, W) of the last feature maps f, at their size (eq. 3)."""
        w = self.linear.params["w"]
        return conv3d_forward(f, w.reshape(1, -1, 1, 1, 1), w[:1] * 0)

    # -- the parameters -----------------------------------------------------------------------

    def _learning_layers(self):
        for path, levels in (("encoder", self.encoder), ("decoder", self.decoder)):
            for i, level in enumerate(levels):
                yield from ((f"{path}{i}.conv{j}", conv) for j, conv in enumerate(level.convs))
        yield "linear", self.linear

    @property
    def params(self):
        """name -> array of every learnt parameter, the arrays themselves."""
        layers = self._learning_layers()
        return {f"{at}.{name}": a for at, layer in layers for name, a in layer.params.items()}

    @property
    def grads(self):
        """name -> gradient, as the last backward set it."""
        layers = self._learning_layers()
        return {f"{at}.{name}": a for at, layer in layers for name, a in layer.grads.items()}

    def load(self, arrays):
        """Copy `arrays` (name -> array, as `params`) into the network.

        Raises ValueError when names or shapes differ, or a value is not finite.
        """
        own = self.params
        if own.keys() != arrays.keys():
            raise ValueError(f"its parameters differ: {sorted(own.keys() ^ arrays.keys())[:4]} ...")
        for name, value in own.items():
            if value.shape != arrays[name].shape:
                raise ValueError(f"{name} is {arrays[name].shape}, expected {value.shape}")
            if not np.isfinite(to_host(arrays[name])).all():
                raise ValueError(f"{name} holds NaN or infinity")
            value[...] = to_device(arrays[name], self.device)

    @property
    def device(self):
        """'cpu' or 'cuda', wherever its arrays are."""
        return "cuda" if is_cuda(self.linear.params["b"]) else "cpu"

    def to(self, device, precision="fp32"):
        """Move all arrays to `device` ('cpu' or 'cuda'); returns the network.

        precision: how a GPU computes the 3x3x3 convolutions, 'fp32', 'tf32' or 'bf16'
        (layers/conv/gpu.py).
        """
        for layer in (*self.encoder, *self.decoder):
            layer.to(device, precision)
        self.linear.to(device)
        self.stored = STORED.get(KERNEL_OF[precision]) if device == "cuda" else None
        return self


def _coarse(mask, m):
    """mask (N, 1, D, H, W): True where any of m x m x m voxels is."""
    n, c, d, h, w = mask.shape
    return mask.reshape(n, c, d // m, m, h // m, m, w // m, m).any(axis=(3, 5, 7))
