"""The demo's language model: its gradient, its cache, its file format, and its command line as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cuflash._demo import command, compare
from cuflash._demo.chat import Conversation
from cuflash._demo.generation import CachedReader, StandardReader, Step, generate
from cuflash._demo.gradients import loss_and_gradients
from cuflash._demo.model import Config, Model, initial_weights, load_model, losses
from cuflash._demo.safetensors import read_safetensors
from cuflash._demo.text import Vocabulary

TINY = Config(vocabulary=11, width=12, layers=2, query_heads=4, kv_heads=2, head_dim=6, hidden=20, context=32)


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model()


@pytest.fixture
def tiny() -> Model:
    weights = initial_weights(TINY, np.random.default_rng(1))
    weights["embedding"] *= 20
    return Model(weights, TINY, Vocabulary("\n abcdefghi"))


def demo(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    """Run ``python -m cuflash demo`` in a process of its own."""
    line = [sys.executable, "-m", "cuflash", "demo", *arguments]
    return subprocess.run(line, input=stdin, capture_output=True, text=True, timeout=60, encoding="utf-8")


# ---- model ---------------------------------------------------------------------------------------------------------


def test_gradient_agrees_with_finite_differences():
    rng = np.random.default_rng(0)
    weights = {name: 3 * value for name, value in initial_weights(TINY, rng, np.float64).items()}
    text = rng.integers(0, TINY.vocabulary, (3, 10))
    loss, gradients = loss_and_gradients(weights, TINY, text[:, :-1], text[:, 1:])
    assert loss == pytest.approx(losses(weights, TINY, text[:, :-1], text[:, 1:]).mean(), rel=1e-13)
    for name, gradient in gradients.items():
        direction = rng.standard_normal(gradient.shape)

        def moved(step, name=name, direction=direction):
            changed = weights | {name: weights[name] + step * direction}
            return losses(changed, TINY, text[:, :-1], text[:, 1:]).mean()

        assert np.vdot(gradient, direction) == pytest.approx((moved(1e-6) - moved(-1e-6)) / 2e-6, rel=1e-6), name


@pytest.mark.parametrize(
    "chunks", [[20], [7, 1, 1, 1, 1, 1, 8], [1] * 20], ids=["at once", "prompt and tokens", "one by one"]
)
def test_cached_reader_gives_the_scores_of_recomputing(tiny, chunks):
    tokens = np.random.default_rng(2).integers(0, 11, 20)
    cached, standard = CachedReader(tiny, 20), StandardReader(tiny)
    for chunk in np.split(tokens, np.cumsum(chunks)[:-1]):
        np.testing.assert_allclose(cached.read(chunk), standard.read(chunk), rtol=2e-5, atol=2e-5)


def test_same_seed_draws_the_same_tokens_with_either_reader(tiny):
    tokens = np.array([0, 3, 4])

    def draw(reader, seed):
        return [step.token for step in generate(reader, tokens, 20, temperature=1.0, seed=seed)]

    assert draw(CachedReader(tiny, 23), 5) == draw(StandardReader(tiny), 5) != draw(CachedReader(tiny, 23), 6)


def test_generation_is_greedy_at_temperature_0(tiny):
    steps = list(generate(StandardReader(tiny), np.array([0]), 3))
    scores = StandardReader(tiny).read(np.array([0]))
    assert steps[0].token == np.argmax(scores)
    assert steps[0].score == scores.max() >= steps[0].other_score


def test_shipped_model_has_learned_its_text(shipped):
    text = "And God said, Let there be light: and there was light.\n"
    tokens = shipped.vocabulary.encode("\n" + text)[None]
    bits = losses(shipped.weights, shipped.config, tokens[:, :-1], tokens[:, 1:]).mean() / np.log(2)
    assert bits < 1.5


def test_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    for package in ("matplotlib", "safetensors", "tqdm"):
        pytest.importorskip(package)
    path = Path(__file__).parent.parent / "docs" / "examples" / "train_lm.py"
    spec = importlib.util.spec_from_file_location("train_lm", path)
    train_lm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train_lm)
    monkeypatch.setattr(train_lm, "Config", lambda vocabulary: replace(TINY, vocabulary=vocabulary))
    for name, value in (("BATCH", 64), ("MICRO_BATCH", 32), ("LENGTHS", (16, 32))):
        monkeypatch.setattr(train_lm, name, value)
    text = tmp_path / "text"
    text.write_text("".join(f"Ge{n // 9}:{n % 9} And God said {n * 'x'}\n" for n in range(60)), encoding="utf-8")
    line = ["--text", str(text), "--steps", "6", "--out"]
    train_lm.main([*line, str(tmp_path / "once")])

    class Interrupted(train_lm.Optimiser):
        def step(self, weights, gradients, step, rate):
            if step == 4:
                raise KeyboardInterrupt
            super().step(weights, gradients, step, rate)

    with monkeypatch.context() as context:
        context.setattr(train_lm, "Optimiser", Interrupted)
        with pytest.raises(SystemExit, match="130"):
            train_lm.main([*line, str(tmp_path / "twice")])
    train_lm.main([*line, str(tmp_path / "twice"), "--resume"])
    for name in ("model.safetensors", "train_lm_log.csv", "train_lm_loss.svg"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


# ---- two runs that differ ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gap", "code", "word"), [(2e-5, 0, "a tie"), (2e-2, 1, "an error")], ids=["tie", "error"])
def test_difference_shows_both_top_two_and_fails_unless_tied(tiny, capsys, gap, code, word):
    same = Step(2, 1.0, 3, 0.0, 0.1)
    ours = [same, Step(4, 1.0 + gap, 5, 1.0, 0.1)]
    theirs = [same, Step(5, 1.0 + gap / 2, 4, 1.0, 0.1)]
    assert compare.report_difference(tiny, ours, theirs) == code
    out = capsys.readouterr().out
    assert "they part at token 1" in out
    assert word in out
    assert f"'c' {1 + gap:.6f}, then 'd' 1.000000" in out
    assert f"'d' {1 + gap / 2:.6f}, then 'c' 1.000000" in out


def test_demo_fails_where_recomputing_disagrees(shipped, monkeypatch, capsys):
    monkeypatch.setattr("cuflash._demo.generation.standard_attention", lambda layer, q, k, v: np.zeros_like(q))
    arguments = Namespace(weights=None, chat=False, prompt="Lo", tokens=8, temperature=0.0, seed=0)
    assert command.run(arguments) == 1
    assert "an error" in capsys.readouterr().out


# ---- files and text ------------------------------------------------------------------------------------------------


def write_safetensors(path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_safetensors_reader_reads_a_file_made_by_hand(tmp_path):
    values = np.arange(6, dtype="<f2")
    entry = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}
    write_safetensors(tmp_path / "a", {"x": entry, "__metadata__": {"note": "é"}}, values.tobytes())
    arrays, metadata = read_safetensors(tmp_path / "a")
    assert metadata == {"note": "é"}
    np.testing.assert_array_equal(arrays["x"], values.reshape(2, 3), strict=True)


def test_safetensors_reader_agrees_with_the_package(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    made = {
        str(dtype): (9 * rng.standard_normal((3, 2))).astype(dtype) for dtype in ("f2", "f4", "f8", "i4", "i8", "u1")
    }
    made |= {"scalar": np.array(1.5), "empty": np.zeros((0, 4), np.float32)}
    package.save_file(made, tmp_path / "a", {"key": "value"})
    arrays, metadata = read_safetensors(tmp_path / "a")
    assert metadata == {"key": "value"}
    assert arrays.keys() == made.keys()
    for name, array in made.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)


@pytest.mark.parametrize(
    ("entry", "data", "message"),
    [
        ({"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}, b"1234", "'x' is BF16, expected one of F16"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, b"1234", "lies at bytes 0 to 8 of 4"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}, b"1234", "of shape [3] lies at bytes 0 to 4"),
        ({"dtype": "F32"}, b"", "missing"),
        ([], b"", "not a safetensors file"),
    ],
    ids=["dtype", "cut off", "size", "no shape", "no entry"],
)
def test_safetensors_reader_refuses(tmp_path, entry, data, message):
    write_safetensors(tmp_path / "a", {"x": entry}, data)
    with pytest.raises(ValueError, match=r"read_safetensors: `path`") as error:
        read_safetensors(tmp_path / "a")
    assert message in str(error.value)


@pytest.mark.parametrize("content", [b"", b"12345678", b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0\xff\xff"])
def test_safetensors_reader_refuses_other_files(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        read_safetensors(tmp_path / "a")


def test_load_model_refuses_other_safetensors(tmp_path):
    write_safetensors(tmp_path / "a", {}, b"")
    with pytest.raises(ValueError, match="has no metadata of such a model"):
        load_model(tmp_path / "a")
    description = json.dumps({"config": vars(TINY), "vocabulary": "abc"})
    write_safetensors(tmp_path / "b", {"__metadata__": {"model": description}}, b"")
    with pytest.raises(ValueError, match="has weights"):
        load_model(tmp_path / "b")


def test_vocabulary_fits_any_text(shipped, capsys):
    fitted = shipped.vocabulary.fit("“Naïve” — 漢\udcff\t7")
    assert fitted == "'Naive' -     "
    assert r"does not know '\u6f22\udcff7': replaced" in capsys.readouterr().err
    tokens = shipped.vocabulary.encode(fitted)
    assert shipped.vocabulary.decode(tokens) == fitted


# ---- chat ----------------------------------------------------------------------------------------------------------


def test_a_turn_reads_its_new_tokens_only(tiny):
    conversation = Conversation(tiny, reply_tokens=4, temperature=1.0, seed=0)
    first = "".join(conversation.turn("ab"))
    assert conversation.read_tokens == 3
    assert conversation.written_tokens == len(first) == 4
    list(conversation.turn("cd"))
    assert conversation.read_tokens == 1 + 3  # the last token of the reply was written, but not yet read
    again = StandardReader(tiny).read(np.array(conversation.tokens))
    np.testing.assert_allclose(
        conversation.reader.read(np.array(conversation.tokens[-1:])), again, rtol=2e-5, atol=2e-5
    )


def test_a_full_context_drops_the_oldest_tokens(tiny):
    conversation = Conversation(tiny, reply_tokens=8, temperature=0.0, seed=0)
    list(conversation.turn("abc" * 6))
    assert conversation.dropped_tokens == 0
    list(conversation.turn("defghi"))
    assert conversation.dropped_tokens > 0
    assert conversation.read_tokens == TINY.context // 2
    list(conversation.turn("abc" * 30))
    assert conversation.read_tokens == TINY.context // 2
    assert len(conversation.tokens) <= TINY.context


def test_chat_takes_turns_from_stdin():
    run = demo("--chat", "--tokens", "6", "--prompt", "In the", stdin="And “God” said 7\n\nAnd")
    assert run.returncode == 0
    assert run.stdout.count("tokens read") == 4
    assert "you> And 'God' said" in run.stdout
    assert "(7 tokens read" in run.stdout.replace("ms: ", "(")
    assert "the model does not know '7'" in run.stderr


def test_chat_ends_with_the_input():
    run = demo("--chat")
    assert run.returncode == 0
    assert run.stderr == ""


# ---- command -------------------------------------------------------------------------------------------------------


def test_demo_writes_and_compares():
    run = demo("--tokens", "12", "--prompt", "And Moses")
    assert run.returncode == 0
    assert run.stderr == ""
    assert run.stdout.startswith("And Moses")
    assert "yes: all 12 tokens are equal" in run.stdout
    for word in ("with the cache", "recomputed", "tokens/s", "speed-up", "peak memory"):
        assert word in run.stdout


def test_demo_takes_an_empty_prompt_unknown_characters_and_no_tokens():
    assert "all 1 tokens are equal" in demo("--tokens", "1", "--prompt", "", "--temperature", "0.7").stdout
    run = demo("--tokens", "0", "--prompt", "Æon\udcff")
    assert run.returncode == 0
    assert "Nothing to write" in run.stdout
    assert "does not know" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "-1"], "argument --tokens: expected a whole number from 0 on, got '-1'"),
        (["--tokens", "many"], "argument --tokens: expected a whole number"),
        (["--tokens", "1024"], "the model's context is 1024 characters, one of them before the prompt, but the prompt"),
        (["--temperature", "nan"], "argument --temperature: expected a finite number from 0 on, got 'nan'"),
        (["--temperature", "-1"], "argument --temperature"),
        (["--seed", "0.5"], "argument --seed"),
        (["--weights", os.devnull], "is not a safetensors file"),
        (["--weights", "does/not/exist"], "No such file"),
        (["--chat", "--tokens", "0"], "a reply of the chat is 1 to 512 tokens long, got 0"),
        (["--what"], "unrecognized arguments"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_demo_refuses(arguments, message, capsys):
    from cuflash.__main__ import main

    with pytest.raises(SystemExit) as error:
        main(["demo", *arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes as on POSIX")
@pytest.mark.parametrize("chat", [False, True], ids=["demo", "chat"])
def test_interrupt_ends_cleanly(chat):
    # A test run in the background of a shell ignores SIGINT, and its children would as well.
    program = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "runpy.run_module('cuflash', run_name='__main__', alter_sys=True)"
    )
    line = [sys.executable, "-c", program, "demo", *(["--chat"] if chat else [])]
    with subprocess.Popen(line, **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)) as process:
        process.stdout.read(4)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert stderr == b""


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes as on POSIX")
def test_closed_pipe_ends_cleanly():
    line = [sys.executable, "-m", "cuflash", "demo", "--tokens", "200"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(4)
        process.stdout.close()
        stderr = process.stderr.read()
    assert process.wait(timeout=30) == 141
    assert stderr == b""


def test_other_subcommands_reach_their_functions(capsys):
    from cuflash.__main__ import main

    assert main(["info"]) == 0
    assert capsys.readouterr().out
    assert main(["warmup"]) == 0
    with pytest.raises(SystemExit) as error:
        main([])
    assert error.value.code == 2
