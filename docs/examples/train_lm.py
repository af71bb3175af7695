"""Train the small language model of ``python -m cuflash demo``: a transformer in NumPy, its backward pass by hand.

Everything an attention layer needs comes from cuflash: `cuflash.attention_vjp` (which is `attention`, and
`attention_backward` on what it returned) and `cuflash.rotary`; the rest is NumPy. The script also fits an interpolated
trigram model of characters to the same text and measures both on the same held-out part, the last 5 %, which neither
ever sees.

The text
    The King James Bible of 1611, 4.1 million characters. It is in the public domain but for the United Kingdom, where
    printing it is a perpetual Crown prerogative. The electronic text is that of the Bible Retrieval System (Chip
    Chapin, 1989: unrestricted use), as packaged by Debian in ``bible-kjv-text``::

        apt-get install bible-kjv bible-kjv-text
        bible -f ge1:1-re22:21 > kjv.txt

    One verse per line; the references at the beginning of the lines are taken off, and an empty line put between
    chapters. Any other plain text works as well.

Run
    ::

        pip install ".[examples]"
        python docs/examples/train_lm.py --text kjv.txt --minutes 45
        python -m cuflash demo --weights train_lm/model.safetensors

    Writes into ``--out`` (train_lm): ``checkpoint.safetensors`` every few minutes (``--resume`` goes on from there, to
    the same weights bit for bit), ``model.safetensors`` (float16), ``train_lm_log.csv`` and ``train_lm_loss.svg``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import time
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from cuflash._demo.gradients import loss_and_gradients
from cuflash._demo.model import Config, Weights, initial_weights, losses
from cuflash._demo.text import Vocabulary

CHECKPOINT = "checkpoint.safetensors"
HELD_OUT = 0.05
BATCH = 4096  # tokens per step
MICRO_BATCH = 1024  # tokens per pass: the activations then stay in cache; 4096 at a time was 10 % slower
LENGTHS = (512, 1024)  # tokens per sequence: the first four fifths of the steps, and the last fifth
RATE_MATRICES, RATE_EMBEDDING = 0.03, 0.003  # at the peak


# ---- text ----------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """Return the text of `path`; where each line is a verse with its reference, without the references."""
    text = path.read_text(encoding="utf-8")
    verses = re.findall(r"^([0-9]?[A-Za-z]+[0-9]+):[0-9]+ (.*)$", text, re.M)
    if len(verses) < 0.9 * text.count("\n"):
        return text
    lines, chapter = [], verses[0][0]
    for reference, verse in verses:
        if reference != chapter:
            lines.append("")
            chapter = reference
        lines.append(verse.strip())
    return "\n".join(lines) + "\n"


def trigram_bits(train: np.ndarray, held_out: np.ndarray, vocabulary: int) -> float:
    """Bits per character of an interpolated trigram model (Jelinek and Mercer 1980, deleted interpolation).

    ``p(c | ab) = w3 n(abc)/n(ab) + w2 n(bc)/n(b) + w1 n(c)/n + w0/vocabulary``, with weights that depend on how often
    the context ab was seen (by powers of two). They are fitted by expectation-maximisation on the last tenth of the
    training text, against counts of the rest; then the counts of all the training text are used.
    """

    def estimates(counted, text):
        """The four estimates (4, n) for each character of `text` from its third on, and its context's class (n,)."""
        counts = np.zeros((vocabulary,) * 3)
        np.add.at(counts, (counted[:-2], counted[1:-1], counted[2:]), 1)
        a, b, c = text[:-2], text[1:-1], text[2:]
        pairs, singles = counts.sum(axis=2), counts.sum(axis=(0, 2))
        trigram = counts[a, b, c] / np.maximum(pairs[a, b], 1)
        bigram = counts.sum(axis=0)[b, c] / np.maximum(singles[b], 1)
        unigram = counts.sum(axis=(0, 1))[c] / counts.sum()
        seen = np.log2(pairs[a, b] + 1).astype(int)
        return np.stack([trigram, bigram, unigram, np.full(len(c), 1 / vocabulary)]), seen

    cut = len(train) * 9 // 10
    parts, seen = estimates(train[:cut], train[cut:])
    weights = np.full((64, 4), 0.25)
    for _ in range(50):
        shares = weights[seen].T * parts
        shares /= shares.sum(axis=0)
        sums = np.stack([np.bincount(seen, share, minlength=64) for share in shares], axis=1) + 1e-3
        weights = sums / sums.sum(axis=1, keepdims=True)
    parts, seen = estimates(train, held_out)
    return float(-np.log2((weights[seen].T * parts).sum(axis=0)).mean())


def model_bits(weights: Weights, config: Config, text: np.ndarray, length: int, windows: int | None = None) -> float:
    """Bits per character of the model in windows of `length`, each judged on the half that the one before left over.

    With `windows`, in so many of them, evenly spread.
    """
    step = length // 2
    starts = np.arange(0, max(1, len(text) - 1 - step), step)
    if windows is not None:
        starts = starts[np.linspace(0, len(starts) - 1, min(windows, len(starts))).astype(int)]
    total = count = 0.0
    for start in starts:
        window = text[start : start + length + 1][None]
        nats = losses(weights, config, window[:, :-1], window[:, 1:])[0]
        judged = nats if start == 0 else nats[step:]
        total += judged.sum(dtype=np.float64)
        count += len(judged)
    return float(total / count / np.log(2))


# ---- optimiser -----------------------------------------------------------------------------------------------------


def orthogonalised(matrix: np.ndarray) -> np.ndarray:
    """Return a matrix of about `matrix`'s singular vectors and singular values near 1, by a Newton-Schulz iteration."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * (gram @ gram) - 4.775 * gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Optimiser:
    """Muon (Jordan et al. 2024) for the matrices, Adam (Kingma and Ba 2015) for the embedding.

    `state` is a dict of arrays, saved in checkpoints.
    """

    def __init__(self, weights: Weights):
        self.state = {f"momentum.{name}": np.zeros_like(value) for name, value in weights.items()}
        self.state["square.embedding"] = np.zeros_like(weights["embedding"])

    def step(self, weights: Weights, gradients: Weights, step: int, rate: float) -> None:
        """Change the `weights` in place; `rate` is relative to the peak, `step` counts from 0."""
        for name, gradient in gradients.items():
            momentum = self.state[f"momentum.{name}"]
            if name == "embedding":
                square = self.state["square.embedding"]
                momentum += 0.1 * (gradient - momentum)
                square += 0.05 * (gradient**2 - square)
                unbiased = np.sqrt(square / (1 - 0.95 ** (step + 1))) + 1e-8
                weights[name] -= rate * RATE_EMBEDDING / (1 - 0.9 ** (step + 1)) * momentum / unbiased
            else:
                momentum *= 0.95
                momentum += gradient
                rows, columns = gradient.shape
                size = rate * RATE_MATRICES * max(1, columns / rows) ** 0.5
                weights[name] -= size * orthogonalised(gradient + 0.95 * momentum)


def clip(gradients: Weights, limit: float) -> float:
    """Scale the gradients to a joint Euclidean norm of at most `limit`; return the norm they had."""
    norm = float(np.sqrt(sum(np.vdot(g, g) for g in gradients.values())))
    if norm > limit:
        for gradient in gradients.values():
            gradient *= limit / norm
    return norm


def relative_rate(step: int, steps: int, warmup: int = 50) -> float:
    """Learning rate as a part of its peak: linear warm-up, then a half cosine to a hundredth."""
    progress = step / max(steps, 1)
    return min(1.0, (step + 1) / warmup) * (0.505 + 0.495 * np.cos(np.pi * progress))


# ---- files ---------------------------------------------------------------------------------------------------------


def save(path: Path, arrays: Weights, metadata: dict[str, str]) -> None:
    """Write a safetensors file in one step, so that an interruption leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, metadata)
    temporary.chmod(0o644)
    os.replace(temporary, path)


def save_checkpoint(path: Path, weights: Weights, optimiser: Optimiser, progress: dict) -> None:
    """Write all that `load_checkpoint` needs to go on as if nothing had happened."""
    arrays = {f"weight.{name}": value for name, value in weights.items()} | optimiser.state
    save(path, arrays, {"progress": json.dumps(progress)})


def load_checkpoint(path: Path, weights: Weights, optimiser: Optimiser) -> dict:
    """Read weights and optimiser back in place; return the progress."""
    with safe_open(path, "np") as file:
        for name in weights:
            weights[name] = file.get_tensor(f"weight.{name}")
        for name in optimiser.state:
            optimiser.state[name] = file.get_tensor(name)
        return json.loads(file.metadata()["progress"])


def save_model(path: Path, weights: Weights, config: Config, vocabulary: Vocabulary) -> Weights:
    """Write the model for the demo, in float16; return the weights as the demo will see them."""
    halves = {name: value.astype(np.float16) for name, value in weights.items()}
    # One entry: safetensors writes several in any order, and the same model is to have the same bytes.
    save(path, halves, {"model": json.dumps({"config": vars(config), "vocabulary": vocabulary.characters})})
    return {name: value.astype(np.float32) for name, value in halves.items()}


def save_curve(out: Path, log: list[dict], trigram: float) -> None:
    """Write the log as a table and as a picture."""
    with open(out / "train_lm_log.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=["step", "tokens", "train_bits", "held_out_bits"])
        writer.writeheader()
        writer.writerows(log)

    matplotlib.rcParams["svg.hashsalt"] = "train_lm"  # the same picture has the same bytes
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    tokens = [row["tokens"] / 1e6 for row in log]
    axes.plot(tokens, [row["train_bits"] for row in log], color="#b0b0b0", linewidth=1, label="training batches")
    axes.plot(tokens, [row["held_out_bits"] for row in log], color="#1f5fa8", linewidth=2, label="held-out text")
    axes.axhline(
        trigram, color="#a83232", linestyle="--", linewidth=1, label=f"trigram model, held-out text ({trigram:.2f})"
    )
    axes.set(xlabel="tokens read (millions)", ylabel="bits per character", ylim=(min(1.4, log[-1]["train_bits"]), 3.2))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out / "train_lm_loss.svg", metadata={"Date": None})
    pyplot.close(figure)


# ---- training ------------------------------------------------------------------------------------------------------


def sequence_length(step: int, steps: int) -> int:
    """Tokens per sequence at a step: the context is doubled for the last fifth."""
    return LENGTHS[0] if step < 0.8 * steps else LENGTHS[1]


def batch_gradients(weights: Weights, config: Config, text: np.ndarray, step: int, length: int, seed: int):
    """Loss and gradients of the batch of a step: windows drawn by (seed, step) alone, so that a resumed run agrees."""
    starts = np.random.default_rng([seed, step]).integers(0, len(text) - length, BATCH // length)
    windows = text[starts[:, None] + np.arange(length + 1)]
    rows = max(1, MICRO_BATCH // length)
    total, sums = 0.0, None
    for first in range(0, len(windows), rows):
        part = windows[first : first + rows]
        loss, gradients = loss_and_gradients(weights, config, part[:, :-1], part[:, 1:])
        share = len(part) / len(windows)
        total += share * loss
        if sums is None:
            sums = {name: np.zeros_like(gradient) for name, gradient in gradients.items()}
        for name, gradient in gradients.items():
            sums[name] += share * gradient
    return total, sums


def steps_within(minutes: float, weights: Weights, config: Config, text: np.ndarray) -> int:
    """How many steps fit, by the time that one of each length takes now; a twentieth is left for measuring."""
    seconds = []
    for length in LENGTHS:
        batch_gradients(weights, config, text, 0, length, 0)
        began = time.perf_counter()
        _, gradients = batch_gradients(weights, config, text, 0, length, 0)
        for gradient in gradients.values():
            orthogonalised(gradient)
        seconds.append(time.perf_counter() - began)
    return int(0.95 * 60 * minutes / (0.8 * seconds[0] + 0.2 * seconds[1]))


def train(arguments: argparse.Namespace) -> None:
    """Train, resume, measure and write, as the command line says."""
    text = read_text(arguments.text)
    vocabulary = Vocabulary("".join(sorted(set(text))))
    tokens = vocabulary.encode(text)
    cut = len(tokens) - int(HELD_OUT * len(tokens))
    tokens, held_out = tokens[:cut], tokens[cut:]
    config = Config(len(vocabulary))
    weights = initial_weights(config, np.random.default_rng(arguments.seed))
    optimiser = Optimiser(weights)
    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.out / CHECKPOINT
    if arguments.resume:
        progress = load_checkpoint(checkpoint, weights, optimiser)
    else:
        steps = arguments.steps or steps_within(arguments.minutes, weights, config, tokens)
        progress = {"step": 0, "steps": steps, "seed": arguments.seed, "log": []}
    trigram = trigram_bits(tokens, held_out, config.vocabulary)
    print(f"{len(tokens)} characters to train on, {len(held_out)} held out; trigram model {trigram:.4f} bits/character")
    print(f"{sum(value.size for value in weights.values())} parameters, {progress['steps']} steps of {BATCH} tokens")

    descend(weights, config, optimiser, tokens, held_out, progress, checkpoint)
    weights = save_model(arguments.out / "model.safetensors", weights, config, vocabulary)
    bits = model_bits(weights, config, held_out, config.context)
    save_curve(arguments.out, progress["log"], trigram)
    print(f"held-out text: model {bits:.4f} bits/character, trigram {trigram:.4f}, difference {trigram - bits:.4f}")


def descend(weights, config: Config, optimiser: Optimiser, tokens, held_out, progress: dict, checkpoint: Path) -> None:
    """Take the steps that are left; about every hundredth of them measure, and write the checkpoint."""
    steps, recent = progress["steps"], []
    every = max(1, steps // 100)
    bar = tqdm(total=steps, initial=progress["step"], unit="step", mininterval=1)
    for step in range(progress["step"], steps):
        length = sequence_length(step, steps)
        loss, gradients = batch_gradients(weights, config, tokens, step, length, progress["seed"])
        clip(gradients, 1.0)
        optimiser.step(weights, gradients, step, relative_rate(step, steps))
        recent.append(loss / np.log(2))
        bar.update()
        if (step + 1) % every == 0 or step + 1 == steps:
            held_out_bits = model_bits(weights, config, held_out, length, 16)
            progress["log"].append(
                {
                    "step": step + 1,
                    "tokens": (step + 1) * BATCH,
                    "train_bits": round(float(np.mean(recent)), 4),
                    "held_out_bits": round(held_out_bits, 4),
                }
            )
            progress["step"], recent = step + 1, []
            save_checkpoint(checkpoint, weights, optimiser, progress)
            bar.set_postfix(train=progress["log"][-1]["train_bits"], held_out=f"{held_out_bits:.4f}")
    bar.close()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("kjv.txt"))
    parser.add_argument("--out", type=Path, default=Path("train_lm"))
    parser.add_argument("--minutes", type=float, default=45, help="choose the number of steps to take about so long")
    parser.add_argument("--steps", type=int, help="the number of steps, instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    arguments = parser.parse_args(argv)
    if not arguments.text.is_file():
        parser.error(f"--text: there is no file {str(arguments.text)!r}; --help says how to obtain the text")
    if arguments.resume and not (arguments.out / CHECKPOINT).is_file():
        parser.error(f"--resume: there is no {CHECKPOINT} in {str(arguments.out)!r}")
    try:
        train(arguments)
    except KeyboardInterrupt:
        parser.exit(130, f"interrupted; --resume goes on from the last {CHECKPOINT}\n")


if __name__ == "__main__":
    main()
