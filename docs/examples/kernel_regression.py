"""Kernel regression whose bandwidth is fitted by gradients: Nadaraya-Watson and local linear, on real measurements.

A softmax over keys is a kernel smoother. Up to a factor that depends on the query alone, which the softmax cancels,

    exp(-|x - x_i|^2 / (2 h^2))  =  exp(scale x.x_i - scale |x_i|^2 / 2),    scale = 1 / h^2,

so attention with points as queries and keys, a bias per key and responses y_i as values is the Nadaraya-Watson
estimate. With products of (1, x_i) and (1, x_i, y_i) as values the same call gives the moments of a weighted
least-squares fit around every query: local linear regression. The bandwidth h minimises the leave-one-out error, whose
gradient scipy.optimize gets from `cuflash.attention_vjp`. The data are scikit-learn's: ten measurements of 442 diabetes
patients, and how far the disease had come a year later.

    python docs/examples/kernel_regression.py [picture.svg]
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KNeighborsRegressor

import cuflash

RIDGE = 0.03  # keeps the local least squares solvable; in units of the variance of a measurement


def smooth(at, x, values, scale, **options):
    """Kernel averages around `at` of `values` at x, and what takes a gradient of theirs to one of the scale."""
    bias = -0.5 * scale * (x * x).sum(axis=1)
    averages, vjp = cuflash.attention_vjp(at, x, values, scale=scale, bias=bias, **options)

    def dscale(daverages):
        grads = vjp(daverages)
        return (np.sum(grads.dq * at) + grads.dbias @ bias) / scale  # products and bias are both linear in the scale

    return averages, dscale


def nadaraya_watson(at, x, y, scale, **options):
    """The kernel average of y, and its gradient."""
    average, dscale = smooth(at, x, y[:, None], scale, **options)
    return average[:, 0], lambda dprediction: dscale(dprediction[:, None])


def local_linear(at, x, y, scale, **options):
    """The value at each point of the plane fitted around it by kernel-weighted least squares, and its gradient."""
    z, at = np.insert(x, 0, 1, axis=1), np.insert(at, 0, 1, axis=1)
    products = (z[:, :, None] * z[:, None, :]).reshape(len(z), -1)
    moments, dscale = smooth(at[:, 1:], x, np.hstack([z * y[:, None], products]), scale, **options)
    zy, zz = np.split(moments, [z.shape[1]], axis=1)
    zz = zz.reshape(-1, z.shape[1], z.shape[1]) + RIDGE * np.diag([0, *np.ones(x.shape[1])])
    plane = np.linalg.solve(zz, zy[:, :, None])[:, :, 0]

    def dscale_of(dprediction):
        dzy = np.linalg.solve(zz, (dprediction[:, None] * at)[:, :, None])[:, :, 0]
        dzz = -dzy[:, :, None] * plane[:, None, :]
        return dscale(np.hstack([dzy, dzz.reshape(len(at), -1)]))

    return np.sum(at * plane, axis=1), dscale_of


def leave_one_out(method, x, y, log_h):
    """Mean squared error of predicting every y from the others, and its derivative with respect to log h."""
    scale = np.exp(-2 * log_h)
    prediction, dscale = method(x, x, y, scale, mask=~np.eye(len(x), dtype=bool))
    error = prediction - y
    return np.mean(error**2), -2 * scale * dscale(2 * error / len(y))


def fit(method, x, y):
    """The bandwidth with the least leave-one-out error, found by BFGS."""
    return np.exp(minimize(lambda log_h: leave_one_out(method, x, y, log_h[0]), [np.log(2)], jac=True).x[0])


METHODS = {"Nadaraya-Watson": nadaraya_watson, "local linear": local_linear}
COLORS = {"Nadaraya-Watson": "#e07b28", "local linear": "#2c6fa6"}


def cross_validate(x, y):
    """Predictions for every patient by models that have not seen her or him."""
    neighbours = GridSearchCV(KNeighborsRegressor(), {"n_neighbors": [4, 8, 12, 16, 24, 32]})
    ridge = GridSearchCV(KernelRidge(alpha=0.1, kernel="rbf"), {"gamma": [0.001, 0.003, 0.01]})
    theirs = {"k nearest neighbours": neighbours, "kernel ridge": ridge, "linear regression": LinearRegression()}
    predicted = {name: np.empty_like(y) for name in [*theirs, *METHODS]}
    for seen, held_out in KFold(5, shuffle=True, random_state=0).split(x):
        for name, model in theirs.items():
            predicted[name][held_out] = model.fit(x[seen], y[seen]).predict(x[held_out])
        for name, method in METHODS.items():
            h = fit(method, x[seen], y[seen])
            predicted[name][held_out], _ = method(x[held_out], x[seen], y[seen], h**-2)
    return predicted


def main():
    x, y = ((a - a.mean(axis=0)) / a.std(axis=0) for a in load_diabetes(return_X_y=True))
    explained = {name: 1 - np.mean((values - y) ** 2) for name, values in cross_validate(x, y).items()}
    for name, share in explained.items():
        print(f"{name:20}  R^2 of held-out patients = {share:.3f}")

    plt.rcParams.update({"svg.hashsalt": "kernel_regression", "svg.fonttype": "none"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for name, method in METHODS.items():
        for h, style in ((np.linspace(0.5, 6, 45), "-"), ([fit(method, x, y)], "o")):
            error = [leave_one_out(method, x, y, np.log(one))[0] for one in h]
            left.plot(h, error, style, color=COLORS[name], label=name if style == "-" else None)
    left.set(xlabel="bandwidth h", ylabel="leave-one-out error / variance", title="dots: where BFGS ends")
    left.legend(frameon=False)
    right.barh([*explained], [*explained.values()], color=[COLORS.get(name, "#b0b0b0") for name in explained])
    right.set(title="variance explained in held-out patients")
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "kernel_regression.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
