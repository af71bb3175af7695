"""What the documentation says runs: every docstring's example, every page's, the README's example and demo command."""

import doctest
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cuflash

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = ("cuflash", "cuflash.errors", "cuflash.masks", "cuflash.reference", "cuflash.testing")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_objects():
    """Every public function and class, under the first public name that leads to it."""
    found = {}
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isroutine(thing) or inspect.isclass(thing):
                found.setdefault(id(thing), (f"{module_name}.{name}", thing))
    return list(found.values())


OBJECTS = public_objects()
PAGES = [
    page for page in sorted((ROOT / "docs").rglob("*.rst"))
    if not {"_build", "generated"} & set(page.parts) and ">>> " in page.read_text(encoding="utf-8")
]  # fmt: skip


def run_doctest(test, extra_options=0):
    report = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS | extra_options, verbose=False)
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize(("name", "thing"), OBJECTS, ids=[name for name, _ in OBJECTS])
def test_docstring_example_runs(name, thing):
    for test in doctest.DocTestFinder(exclude_empty=True).find(thing, name, globs={}):
        run_doctest(test)


@pytest.mark.parametrize("module_name", MODULES)
def test_module_docstring_example_runs(module_name):
    module = importlib.import_module(module_name)
    run_doctest(doctest.DocTestParser().get_doctest(module.__doc__, {}, module_name, module.__file__, 0))


@pytest.mark.parametrize(("name", "thing"), OBJECTS, ids=[name for name, _ in OBJECTS])
def test_public_object_is_documented_with_an_example(name, thing):
    assert thing.__doc__, f"{name} has no docstring"
    if inspect.isclass(thing) and issubclass(thing, (Exception, tuple)):
        return  # its page is the place where it is raised or returned
    assert ">>> " in thing.__doc__, f"{name} has no example"


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_page_examples_run(page):
    text = page.read_text(encoding="utf-8")
    run_doctest(doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0))


EXAMPLES = {  # each script, what makes it short or says where its picture goes, and what it must find out
    "kernel_regression.py": (("{out}.svg",), r"local linear +R\^2 of held-out patients = 0\.50"),
    "nonlocal_means.py": (("{out}.svg",), r"non-local means +26\.[3-7] dB"),
    "stream.py": (("{out}.svg",), r"98\.[1-3]% of the stream"),
    "train_lm.py": (("--text", "{text}", "--out", "{out}", "--steps", "1"), "held-out text: model"),
}


def skip_without_examples_extra():
    for package in ("matplotlib", "safetensors", "sklearn", "tqdm"):
        pytest.importorskip(package, reason=f"the examples need {package}")


def test_every_example_is_run_here():
    assert {path.name for path in (ROOT / "docs" / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.long
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name, tmp_path):
    skip_without_examples_extra()
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} times {n + 1} is {n * (n + 1)}.\n" for n in range(2000)), encoding="utf-8")
    arguments, finding = EXAMPLES[name]
    arguments = [argument.format(text=text, out=tmp_path / "out") for argument in arguments]
    # One BLAS thread: scikit-learn's many small solves crawl where BLAS's threads wait for a core.
    environment = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = run_python(str(ROOT / "docs" / "examples" / name), *arguments, cwd=tmp_path, **environment)
    assert re.search(finding, done.stdout), done.stdout
    assert [path for path in tmp_path.rglob("*.svg") if path.stat().st_size > 1000]


def test_gallery_shows_every_example():
    pages = [ROOT / "docs" / "examples" / "index.rst", ROOT / "docs" / "training.rst"]
    told = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert [name for name in EXAMPLES if name not in told] == []


def load(path):
    """A script under docs as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("method", ["nadaraya_watson", "local_linear"])
def test_bandwidth_gradient_of_the_kernel_regression(method):
    skip_without_examples_extra()
    script = load(ROOT / "docs" / "examples" / "kernel_regression.py")
    x, y = np.random.default_rng(0).standard_normal((40, 3)), np.linspace(-1, 1, 40)
    low, high = (script.leave_one_out(getattr(script, method), x, y, 0.2 + step)[0] for step in (-1e-5, 1e-5))
    assert script.leave_one_out(getattr(script, method), x, y, 0.2)[1] == pytest.approx((high - low) / 2e-5, rel=1e-6)


def test_divergence_of_the_nonlocal_means():
    skip_without_examples_extra()
    script = load(ROOT / "docs" / "examples" / "nonlocal_means.py")
    rng = np.random.default_rng(0)
    image, signs = rng.random((14, 17)), rng.choice([-1.0, 1.0], (14, 17))
    low, high = (script.nonlocal_means(image + step * signs, 0.5)[0] for step in (-1e-6, 1e-6))
    _, pull_back = script.nonlocal_means(image, 0.5)
    assert np.sum(signs * pull_back(signs)) == pytest.approx(np.sum(signs * (high - low)) / 2e-6, rel=1e-6)


def test_drawn_masks_show_what_the_library_does():
    for name, drawing in load(ROOT / "docs" / "drawn_masks.py").drawings().items():
        committed = (ROOT / "docs" / "_static" / name).read_text(encoding="utf-8")
        assert committed == drawing, f"{name} is out of date: run docs/figures.py"


def test_readme_example_runs():
    (example,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    exec(compile(example, "README.md", "exec"), {})


def readme_command(ending):
    lines = re.findall(rf"^python3 -m venv .* {re.escape(ending)}$", README, re.M)
    assert len(lines) == 1, f"README.md needs one command that ends in {ending!r}, has {lines}"
    return lines[0]


def test_readme_demo_command_runs():
    command = readme_command("-m cuflash demo")
    arguments = command.rpartition("&& .venv/bin/python ")[2].split()
    done = run_python("-W", "error", *arguments, "--tokens", "8", cwd=ROOT)
    assert "equal" in done.stdout


def test_ci_runs_the_readme_commands():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for ending, variable in (("-m cuflash demo", "demo_command"), ("-m pytest", "test_command")):
        readme_command(ending)
        assert f'{variable}=$(readme_command "{ending}")' in script
        assert f'bash -euo pipefail -c "${variable}' in script


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "rawkernels/README.md"])
def test_links_lead_to_files(name):
    page = ROOT / name
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_public_name_is_on_the_api_page():
    page = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")
    documented, module = set(), None
    for line in page.splitlines():
        if line.startswith(".. currentmodule:: "):
            module = line.split()[-1]
        elif re.fullmatch(r"   \w+", line):
            documented.add(f"{module}.{line.strip()}")
    expected = set()
    for module_name in MODULES:
        public = importlib.import_module(module_name)
        expected |= {f"{module_name}.{name}" for name in public.__all__ if not inspect.ismodule(getattr(public, name))}
    expected -= {f"cuflash.{name}" for name in cuflash.errors.__all__} | {"cuflash.reference.Gradients"}
    assert expected - documented == set()
    assert documented - expected == set()


def run_python(*arguments, cwd, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done
