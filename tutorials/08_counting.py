# %% [markdown]
# # 8. What a network learns from a count
#
# **Question.** All that the network is told about a scan is one number. How can it learn to count
# from that, and why does it so often learn to predict the mean count and nothing else?
#
# **You will see** what the squared error asks for, what a pooling can tell about a number of spots,
# and four small networks while they learn. The picture shows which of them learn, which are late,
# and which cannot count far.
#
# **Takes** about 60 seconds on 2 cores, nearly all of it training. Lesson 5 explains the network.

# %%
import lesson
import matplotlib.pyplot as plt
import numpy as np

from weakunet.data import phantom
from weakunet.evaluation.metrics import count_metrics
from weakunet.figures.drawing import line_style
from weakunet.layers.globalpool3d import GlobalPool3D
from weakunet.layers.loss import mse_backward, mse_forward
from weakunet.layers.optim import Adadelta, adadelta_update
from weakunet.model import WeakUNet
from weakunet.training.augment import draw_transform, warp

# %% [markdown]
# ## The scans
#
# 200 scans of the tiny phantom to train on, 60 others to watch. To be quick, we cut two voxels off
# each side. All lesions are still inside.

# %%
SEED, EDGE, BLOCK = 1, 2, 8
cohort = phantom.simulate_cohort("tiny", {"train": 200, "val": 60}, SEED)
inner = (slice(EDGE, -EDGE),) * 3
volumes = {
    split: np.stack([scan.volume.array[inner] for scan in scans])[:, None]
    for split, scans in cohort.items()
}
counts = {
    split: np.array([scan.count for scan in scans], np.float32) for split, scans in cohort.items()
}
print(f"{volumes['train'].shape}; training counts 0 to {counts['train'].max():.0f}", end=", ")
print(f"mean {counts['train'].mean():.2f}")

# %% [markdown]
# ## What the loss asks for
#
# The loss is the mean squared error L = 1/N sum (y - t)^2 of predicted counts y and true counts t.
# Without knowing anything about a scan, the best prediction is the mean of the counts. Its error is
# their variance. That is the bar. R2 says how far a network is above it,
#
#     R2 = 1 - error / variance        1: perfect, 0: no better than the mean, below 0: worse
#
# and r is the correlation of y and t, which ignores the scale of y.


# %%
def mse_by_hand(y, t):
    """The loss, and its gradient with respect to y."""
    return ((y - t) ** 2).mean(), 2 * (y - t) / len(y)


t = counts["val"]
constants = np.linspace(0, 6, 601, dtype=np.float32)
errors = [mse_by_hand(np.full_like(t, c), t)[0] for c in constants]
print(f"the best constant is {constants[np.argmin(errors)]:.2f}, the mean is {t.mean():.2f};")
print(f"its error is {min(errors):.2f}, the variance is {t.var():.2f}")
y = t + np.float32(0.5)
assert np.isclose(mse_by_hand(y, t)[0], mse_forward(y, t))
assert np.allclose(mse_by_hand(y, t)[1], mse_backward(y, t))

# %% [markdown]
# ## What a pooled map can tell
#
# Suppose a feature map is already perfect: 1 at each lesion, 0 elsewhere. What does the pooling
# leave of it? The maximum says that there IS a lesion, and then nothing more: it saturates. The
# mean adds up. So does our default, the sum of local maxima. It cuts the map into overlapping
# blocks of 8 x 8 x 8 voxels, adds up the largest value of each block, and divides by a constant.
# (Each voxel is in eight blocks. So two lesions must be close together to lose some of their sum.)
#
# Backward, the maximum sends all of its gradient to one voxel of a map (ties go to the first).

# %%
rng = np.random.default_rng(SEED)
spots = np.zeros((9, 1, 12, 28, 28))  # map n has n spots
for n, place in enumerate(rng.choice(spots[0].size, 8, replace=False), start=1):
    spots[n:].reshape(9 - n, -1)[:, place] = 1
for mode in ("max", "mean", "lmax"):
    of_n = GlobalPool3D(mode, BLOCK, overlap=2).forward(spots)[:, 0]
    print(f"{mode:4s} of 0 to 8 spots, relative to one:", *(f"{v:.1f}" for v in of_n / of_n[1]))

# %% [markdown]
# ## The step
#
# Adadelta, the paper's optimizer, gives each weight its own step size, from running averages of its
# squared gradients and of its squared steps.


# %%
def adadelta_by_hand(w, g, avg_g2, avg_s2, rho=0.95, eps=1e-6):
    avg_g2 = rho * avg_g2 + (1 - rho) * g**2
    step = -np.sqrt(avg_s2 + eps) / np.sqrt(avg_g2 + eps) * g
    return w + step, avg_g2, rho * avg_s2 + (1 - rho) * step**2


by_hand = np.ones(3), np.zeros(3), np.zeros(3)
library = [a.copy() for a in by_hand]
for _ in range(5):
    g = rng.standard_normal(3)
    by_hand = adadelta_by_hand(by_hand[0], g, *by_hand[1:])
    adadelta_update(library[0], g, *library[1:], 1.0, 0.95, 1e-6)
assert np.allclose(by_hand, library)

# %% [markdown]
# ## The level of the count, and two remedies
#
# The count is y = w . x + b, where x are the pooled maps. The paper draws w from a Gaussian. Look
# at x in an untrained network: it is large, and nearly the same in every scan. A step that makes
# all features a little larger moves ALL predictions together, and much more than one lesion moves
# one of them. So the gradient is mostly about the level of the count, and hardly about lesions.
#
# Two remedies are ours. `model.start` makes w positive and b = 0, such that the mean prediction
# (here of 32 scans) is the mean count from the beginning. Then a feature that answers to lesions
# adds to the count, and no sign has to be found first. And the loss's gradient counts the error
# that all scans of a batch have in common, m, only a tenth:
#
#     dL/dy_n = 2 (e_n - m + 0.1 m) / N,       e_n = y_n - t_n,   m = mean of e
#
# What is left is about telling one scan from another. (The package also bounds e_n, so that one
# scan cannot undo what the others have taught, and with the maximum gives m its full weight.)

# %%
NETWORKS = {  # the pooling; how the last layer starts; how much the common error counts
    "local maxima": ("lmax", "start", 0.1),
    "local maxima, the paper's start and loss": ("lmax", "Gaussian", 1.0),
    "maximum": ("max", "start", 0.1),
    "mean": ("mean", "start", 0.1),
}


def untrained(pooling, first):
    model = WeakUNet((8, 8, 8), pooling=pooling, rng=np.random.default_rng([SEED, 0]))
    model.measure_blocks([volumes["train"]])  # the constant of the local maxima
    if first == "start":
        model.start([volumes["train"][:32]], counts["train"].mean())
    return model


for name, (pooling, first, _) in NETWORKS.items():
    model = untrained(pooling, first)
    model.forward(volumes["val"])
    x = model.linear.x
    error = mse_forward(model.predict(volumes["val"])[0], counts["val"])
    ratio = (x.mean(axis=0) / x.std(axis=0)).mean()
    print(f"{name}: features are {ratio:.1f} times their spread over scans, error {error:.2f}")

# %% [markdown]
# ## Watch them learn
#
# 600 steps of 4 scans each, randomly flipped and shifted, with smaller steps at the end. After
# every 50 steps we compute R2 and r on the 60 other scans.

# %%
STEPS, BATCH, EVERY = 600, 4, 50


def judge(model):
    figures = count_metrics(counts["val"], model.predict(volumes["val"])[0])
    return figures["count_r2"], figures["count_r"]


def train(model, common):
    """Train; returns rows (step, R2, r)."""
    rng = np.random.default_rng([SEED, 1])
    n = len(counts["train"])
    order = np.concatenate([rng.permutation(n) for _ in range(STEPS * BATCH // n)])
    optimizer, history = Adadelta(model.params, eps=1e-6), [(0, *judge(model))]
    for step, chosen in enumerate(order.reshape(STEPS, BATCH), start=1):
        optimizer.lr = 1.0 if step <= 0.7 * STEPS else 0.3 if step <= 0.9 * STEPS else 0.1
        scans = volumes["train"][chosen, 0]
        moved = np.stack([warp(scan, draw_transform(rng, scan.shape)) for scan in scans])
        y = model.forward(moved[:, None])
        model.backward(mse_backward(y, counts["train"][chosen], common))
        optimizer.step(model.grads)
        if step % EVERY == 0:
            history.append((step, *judge(model)))
    return np.array(history)


histories, predictions = {}, {}
print(f"after every {2 * EVERY} steps:")
for name, (pooling, first, common) in NETWORKS.items():
    model = untrained(pooling, first)
    histories[name] = train(model, common)
    predictions[name] = model.predict(volumes["val"])[0]
    print(name, "\n  R2", *(f"{r2:5.2f}" for _, r2, _ in histories[name][::2]))
    print("   r", *(f"{r:5.2f}" for *_, r in histories[name][::2]))

# %% [markdown]
# Watch r and R2 together. R2 may stay near 0 for a long time, or rise and fall again, whether a
# network learns or not. But r tells the two apart. It rises first: a feature that answers to
# lesions comes before the last layer gives it the right scale and level. While r stays low there is
# nothing to scale: the network has collapsed to the mean, or has not left it yet. (Late is not
# lost: see whether r still rises at the end. The mean pushes every voxel alike, as lesson 9 shows,
# so that it hardly singles out the lesions.)
#
# What varies? Data, first weights and order follow from SEED, but on another computer the last
# digits differ. Then another network may come first, or take off later. Before you believe an
# order, train with several seeds.
#
# ## The picture
#
# Left and middle: R2 and r of the 60 scans. Right: the predicted against the true counts. Small
# dots are scans, large marks their means. The maximum flattens: 8 maps, each of which says little
# more than "there is one", run out of ways to count further.

# %%
figure, panels = plt.subplots(1, 3, figsize=(15, 5.4), layout="constrained")
true, shift = counts["val"], np.random.default_rng(0).uniform(-0.25, 0.25, len(counts["val"]))
groups = [true == n for n in range(6)] + [(true >= 6) & (true <= 7), true >= 8]
for k, (name, predicted) in enumerate(predictions.items()):
    steps, r2, r = histories[name].T
    panels[0].plot(steps, r2, label=name, **line_style(k, markersize=5))
    panels[1].plot(steps, r, **line_style(k, markersize=5))
    panels[2].plot(true + shift, predicted, **line_style(k, linestyle="", markersize=3), alpha=0.4)
    means = [(true[own].mean(), predicted[own].mean()) for own in groups if own.any()]
    panels[2].plot(*np.transpose(means), **line_style(k))
for panel, name in zip(panels[:2], ("R2", "r"), strict=True):
    panel.axhline(0, color="grey", linestyle=":")
    panel.set(title=f"{name} of the predicted count", xlabel="step", ylim=(-0.5, 1))
panels[0].text(STEPS, -0.02, "predicting the mean count", color="dimgrey", ha="right", va="top")
panels[0].legend(frameon=False, loc="lower right")
panels[2].axline((0, 0), slope=1, color="grey", linestyle=":")
panels[2].axhline(counts["train"].mean(), color="grey", linestyle=":")
panels[2].set(title="after training", xlabel="true count (lesions)", ylabel="predicted (lesions)")

for name, predicted in predictions.items():
    print(f"{name}: squared error {mse_forward(predicted, true):.2f}", end=" ")
    print(f"(of the mean count: {true.var():.2f})")
lesson.save(figure, "08_counting")

# %% [markdown]
# **Try.** Another SEED. Twice as many STEPS for the paper's start: is it late, or lost? Then write
# the loss, the pooling's backward pass and the optimizer yourself: exercise set `08_counting`.
