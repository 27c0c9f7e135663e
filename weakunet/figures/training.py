"""The training curves: error of the count per epoch, and the correlation of the counts."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from weakunet.figures.drawing import new_figure, save_figure

TRAINING, VALIDATION = "#D55E00", "#0072B2"


def training_curves(path, history, mean_error=None):
    """Error of the count on training and validation scans per epoch, and validation's r below it.

    Parameters: history (epochs, 5 or more), columns epoch, learning rate, training and validation
    mean squared error, validation r (as log.csv); mean_error: that of predicting the mean count.
    """
    history = np.asarray(history, float) if len(history) else np.zeros((0, 5))
    epoch, _, train, validation, r = history[:, :5].T
    figure = new_figure(7, 5.6)
    error, correlation = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
    error.plot(epoch, train, "--s", color=TRAINING, markersize=4, label="training (augmented)")
    error.plot(epoch, validation, "-o", color=VALIDATION, markersize=4, label="validation")
    if mean_error is not None:
        error.axhline(mean_error, color="black", linestyle=":", label="predicting the mean")
    if np.isfinite(validation).any():
        best = int(np.nanargmin(validation))
        label = f"lowest: {validation[best]:.2f} at epoch {epoch[best]:.0f}"
        error.plot(epoch[best], validation[best], "*", color="black", markersize=13, label=label)
    error.set_ylabel("mean squared error of the count\n(lesions²)")
    if (np.append(train, validation) > 0).any():  # without errors there is nothing to scale
        error.set_yscale("log")  # the first epochs can be ten times worse than all that follows
    error.yaxis.set_major_formatter("{x:g}")
    error.yaxis.set_minor_formatter("{x:g}")
    error.tick_params(axis="y", which="minor", labelsize=8)
    error.legend(fontsize=9)
    correlation.plot(epoch, r, "-o", color=VALIDATION, markersize=4)
    correlation.axhline(0, color="grey", linewidth=0.8)
    correlation.set_ylim(min(-0.05, np.nanmin(np.append(r, 0)) - 0.05), 1.05)
    correlation.set_ylabel("r of true and predicted\ncount, validation")
    correlation.set_xlabel("epoch")
    correlation.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for panel in (error, correlation):
        panel.grid(alpha=0.3)
    save_figure(figure, path)
