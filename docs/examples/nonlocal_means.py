"""Denoising a photograph with non-local means, tuned by an estimate of its error that needs no clean picture.

Non-local means (Buades, Coll, Morel 2005) replaces a pixel by an average over all pixels, weighted by how much the
patches around them look alike: exp(-|p_i - p_j|^2 / h^2). That is attention: patches are queries and keys, pixels are
values, the scale is 2 / h^2 and -|p_j|^2 / h^2 a bias per key. The pixels stand in the order of their rows, so `window`
lets each look at a band of rows around it, and no matrix of pixels by pixels is ever stored.

How wide should h be? For noise of known variance sigma^2, Stein's unbiased risk estimate (SURE) of the mean squared
error is |out - noisy|^2 / n - sigma^2 + 2 sigma^2 div / n, where the divergence div is the sum of d out_i / d noisy_i.
For a random sign vector b it is estimated by b . J^T b (Ramani, Blu, Unser 2008), and J^T b is one call of the function
that `cuflash.attention_vjp` returns. The picture shows how well the estimate follows the error it cannot see.

    python docs/examples/nonlocal_means.py [picture.svg]
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize_scalar
from sklearn.datasets import load_sample_image

import cuflash

SIGMA = 0.1  # of the noise; the picture lies between 0 and 1
REACH = 2  # patches are 5 by 5
ROWS = 10  # a pixel looks at so many rows above and below its own


def patches(image):
    """Every pixel's neighbourhood, (pixels, 25); the border is reflected."""
    return image.ravel()[neighbours(image.shape)]


def neighbours(shape):
    """Index of each pixel of each patch, (pixels, 25)."""
    padded = np.pad(np.arange(np.prod(shape)).reshape(shape), REACH, mode="reflect")
    size = (2 * REACH + 1, 2 * REACH + 1)
    return np.lib.stride_tricks.sliding_window_view(padded, size).reshape(np.prod(shape), -1)


def nonlocal_means(noisy, h):
    """The denoised picture, and the function that takes a gradient of it to one of the noisy picture."""
    patch, scale = patches(noisy), 2 / float(h) ** 2  # a NumPy float64 would promote the bias
    bias = -0.5 * scale * (patch * patch).sum(axis=1)
    window = ROWS * noisy.shape[1]
    out, vjp = cuflash.attention_vjp(patch, patch, noisy.reshape(-1, 1), scale=scale, bias=bias, window=window)

    def pull_back(gradient):
        grads = vjp(gradient.reshape(-1, 1))
        dpatch = grads.dq + grads.dk - scale * grads.dbias[:, None] * patch
        through_patches = np.bincount(neighbours(noisy.shape).ravel(), dpatch.ravel())
        return (through_patches + grads.dv[:, 0]).reshape(noisy.shape)

    return out.reshape(noisy.shape), pull_back


def denoise(noisy, h, signs):
    """The denoised picture, and Stein's unbiased estimate of its mean squared error."""
    out, pull_back = nonlocal_means(noisy, h)
    divergence = np.sum(signs * pull_back(signs))
    return out, np.mean((out - noisy) ** 2) - SIGMA**2 + 2 * SIGMA**2 * divergence / noisy.size


def decibels(image, clean):
    """Peak signal-to-noise ratio."""
    return -10 * np.log10(np.mean((image - clean) ** 2))


def main():
    rng = np.random.default_rng(0)
    clean = load_sample_image("china.jpg")[28:130, 130:258].mean(axis=2, dtype=np.float32) / 255
    noisy = clean + SIGMA * rng.standard_normal(clean.shape, dtype=np.float32)
    signs = rng.choice(np.array([-1, 1], dtype=np.float32), clean.shape)

    best = minimize_scalar(lambda h: denoise(noisy, h, signs)[1], bounds=(0.2, 0.9), options={"xatol": 0.02}).x
    out, _ = nonlocal_means(noisy, best)
    blurred = max((gaussian_filter(noisy, s) for s in np.linspace(0.3, 2, 18)), key=lambda b: decibels(b, clean))
    print(f"h = {best:.2f}, chosen without the clean picture")
    for name, image in (("noisy", noisy), ("best Gaussian blur", blurred), ("non-local means", out)):
        print(f"{name:18}  {decibels(image, clean):.1f} dB")

    plt.rcParams.update({"svg.hashsalt": "nonlocal_means", "svg.fonttype": "none"})
    figure, panels = plt.subplots(1, 3, figsize=(9, 2.7), layout="constrained", width_ratios=(1.25, 1.25, 1))
    for axes, image, title in zip(panels, (noisy, out), ("noisy", f"non-local means, h = {best:.2f}")):
        levels = np.round(np.clip(image, 0, 1) * 31) / 31  # fewer grey levels make a smaller file
        axes.imshow(levels, cmap="gray", vmin=0, vmax=1, interpolation="none")
        axes.set(title=title, xticks=[], yticks=[])
    widths = np.linspace(0.3, 0.8, 9)
    outs, estimates = zip(*[denoise(noisy, h, signs) for h in widths])
    errors = [np.mean((image - clean) ** 2) for image in outs]
    panels[2].plot(widths, errors, color="#333333", label="error, from the clean picture")
    panels[2].plot(widths, estimates, "o", color="#e07b28", label="SURE, without it")
    panels[2].set(xlabel="h", title="mean squared error", ylim=(0, None))
    panels[2].legend(frameon=False, fontsize=8)
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "nonlocal_means.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
