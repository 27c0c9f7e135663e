import numpy as np

from weakunet.layers import relu


def test_relu(cuda_on_cpu):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7, 1)).astype(np.float32)
    y = relu.relu_forward(x)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    assert cuda_on_cpu.launched == {("layers/relu", "relu_forward")}
