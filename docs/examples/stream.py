"""Learning from a stream: a classifier that is nothing but a key/value cache, and that knows what it has not seen.

Keys are pictures, values their labels. Every new picture first asks the cache: `cuflash.decode` gives the average label
of the pictures it resembles, weighted by exp(-|x - x_i|^2 / (2 h^2)), and with `return_lse` the logarithm of the sum of
those weights, which is a density estimate: low where nothing similar was ever seen. Then the true label is told and the
picture joins the cache. There is no training, and nothing is forgotten.

As -|x - x_i|^2 / 2 = x.x_i - |x_i|^2 / 2 - |x|^2 / 2, a key carries -|x_i|^2 / 2 as one more feature, which meets a 1
in the query; the query's own norm cancels in the softmax and is taken off the log-sum-exp by hand.

The stream is scikit-learn's 1797 handwritten digits in random order, but no seven is among the first thousand.

    python docs/examples/stream.py [picture.svg]
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import cuflash

BANDWIDTH = 6.0  # grey levels of a picture with 64 pixels of 0 to 16
LATE, FIRST = 7, 1000  # the digit that comes late, and how many others come before it
MEMORY = 300  # a picture's familiarity is compared with that of so many before it


def digits_in_order():
    """Pictures (n, 64) and labels (n,), the late digit after the first thousand others."""
    pictures, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    first = rng.permutation(np.flatnonzero(labels != LATE))[:FIRST]
    order = np.concatenate([first, rng.permutation(np.setdiff1d(np.arange(len(labels)), first))])
    return pictures[order].astype(np.float32), labels[order]


def ask_and_learn(pictures, labels):
    """For each picture, before its label is told: label probabilities, and the log density of what came before."""
    n, d = pictures.shape
    half_norms = (pictures * pictures).sum(axis=1) / 2
    queries = np.column_stack([pictures, np.ones_like(half_norms)])
    keys = np.column_stack([pictures, -half_norms])
    values = np.eye(10, dtype=np.float32)[labels]
    cache = cuflash.KVCache(1, n, kv_heads=1, head_dim=d + 1, value_dim=10, dtype=np.float32)
    probabilities, log_density = np.zeros((n, 10)), np.full(n, -np.inf)
    for i in range(n):
        if i > 0:
            query = queries[i].reshape(1, 1, -1)
            out, lse = cuflash.decode(query, cache, scale=BANDWIDTH**-2, return_lse=True)
            probabilities[i] = out[0, 0]
            log_density[i] = lse[0, 0] - half_norms[i] / BANDWIDTH**2 - np.log(i)
        cache.append(keys[i].reshape(1, 1, 1, -1), values[i].reshape(1, 1, 1, -1))
    return probabilities, log_density


def nearest_before(pictures):
    """Index of the most similar earlier picture, by looking at all of them: what one would do otherwise."""
    similarity = pictures @ pictures.T - (pictures * pictures).sum(axis=1) / 2
    return np.where(np.tri(len(pictures), k=-1, dtype=bool), similarity, -np.inf).argmax(axis=1)


def main():
    pictures, labels = digits_in_order()
    probabilities, log_density = ask_and_learn(pictures, labels)
    right = probabilities.argmax(axis=1) == labels
    nearest = labels[nearest_before(pictures)] == labels
    print(f"named right before the label was told: {right[100:].mean():.1%} of the stream after the first 100")
    print(f"by their nearest neighbour:            {nearest[100:].mean():.1%}")
    late = np.flatnonzero(labels == LATE)
    for number, i in enumerate(late[:6]):
        named, rank = probabilities[i].argmax(), np.mean(log_density[i - MEMORY : i] > log_density[i])
        print(f"seven {number + 1}: taken for {named}, less familiar than {rank:.0%} of the {MEMORY} pictures before")
    print(f"the other sevens: {right[late[6:]].mean():.1%} named right")

    plt.rcParams.update({"svg.hashsalt": "stream", "svg.fonttype": "none"})
    figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
    shown = np.arange(FIRST - 150, FIRST + 300)
    for chosen, color, name in (
        (shown[labels[shown] != LATE], "#c4c9ce", "other digits"),
        (shown[(labels[shown] == LATE) & right[shown]], "#2c6fa6", "sevens, named right"),
        (shown[(labels[shown] == LATE) & ~right[shown]], "#e07b28", "sevens, taken for something else"),
    ):
        axes.plot(chosen, log_density[chosen], "." if color == "#c4c9ce" else "o", ms=4, color=color, label=name)
    axes.axvline(late[0] - 0.5, color="#333333", lw=0.8, ls=":")
    axes.set(xlabel="pictures seen", ylabel="log density", ylim=(-28, -5), title="how familiar every new picture is")
    axes.legend(frameon=False, ncols=3, loc="lower left")
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "stream.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
