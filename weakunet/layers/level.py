"""One level of the network, going down or up: convolution, ReLU, convolution, ReLU, ...

The same numbers as Conv3D and ReLU one after the other, which are its oracle (test_precision.py).
What it saves is passes over the maps. On a GPU a convolution's kernel also computes, before it
writes y, the ReLU behind it and the zeros outside the ROI; in backward, before it writes dx, the
ReLU in front of it.
"""

from weakunet.layers.relu import relu_forward


class Level:
    """`convs`: its convolutions, the first a Conv3D or an UpsampleConv3D, the others Conv3D."""

    def __init__(self, convs):
        self.convs = convs
        self.y = None

    def forward(self, *x, keep=True, inside=None):
        """What the first convolution takes -> y (N, C, D, H, W).

        inside: (N, 1, D, H, W), 1 inside the ROI and 0 outside; all maps are multiplied by it.
        Backward needs none: where y is 0, no gradient passes.
        """
        for conv in self.convs:
            y = conv.forward(*x, keep=keep, relu=True, inside=inside)
            x = (y,)
        self.y = y if keep else None
        return y

    def backward(self, da, guided=False, **first):
        """da -> what the backward of the first convolution, called with `first`, returns.

        da: the gradient with respect to a, where y = max(a, 0). Who computes the gradient with
        respect to y does the last ReLU's backward as well, for that saves a pass. guided: every
        ReLU also drops what is negative of the gradient that comes in (guided backpropagation, for
        pictures only, see baselines.py).
        """
        self.y = None
        for conv in reversed(self.convs):
            da = relu_forward(da) if guided else da
            if conv is self.convs[0]:
                return conv.backward(da, **first)
            da = conv.backward(da, mask=True)  # the ReLU before it, whose output is its x

    def to(self, device, precision="fp32"):
        """Move it to `device` ('cpu' or 'cuda'); `precision` is that of a GPU (conv/gpu.py)."""
        for conv in self.convs:
            conv.to(device, precision)
