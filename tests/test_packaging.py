"""The wheel, built here by setuptools without a network: what is in it, and that it works away from the checkout."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cuflash

ROOT = Path(__file__).parent.parent
SOURCES = ("cuflash", "rawkernels", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Path of a wheel built from a copy of the sources, so that nothing is written into the checkout."""
    setuptools = pytest.importorskip("setuptools", "77", reason="building the wheel needs setuptools 77 or newer")
    assert setuptools
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    (folder / "dist").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "dist").iterdir()
    return built


def test_wheel_is_pure_python(wheel):
    assert wheel.name == f"cuflash-{cuflash.__version__}-py3-none-any.whl"


def test_wheel_carries_every_module_and_its_data(wheel):
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "cuflash").rglob("*.py")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "cuflash" / "_demo").rglob("*.safetensors")}
    sources = {path.relative_to(ROOT) for path in (ROOT / "rawkernels").rglob("*.cu*")}
    expected |= {"cuflash/py.typed", "cuflash/rawkernels/README.md", *(f"cuflash/{path}" for path in sources)}
    assert "cuflash/rawkernels/attention/params.cuh" in expected
    assert any(name.endswith(".safetensors") for name in expected), "the demo's weights are missing"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"cuflash-{cuflash.__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        assert any(name.startswith(info) and name.endswith("LICENSE") for name in archive.namelist())
    fields = re.findall(r"^([A-Z][\w-]+): (.*)$", metadata.partition("\n\n")[0], re.M)
    core = [value for key, value in fields if key == "Requires-Dist" and "extra ==" not in value]
    required = {re.split(r"[<>=!~;\[ ]", value)[0] for value in core}
    assert required == {"numpy", "scipy", "threadpoolctl"}
    extras = {value for key, value in fields if key == "Provides-Extra"}
    assert {"cuda12", "cuda13", "bf16", "examples", "docs", "bench", "test"} <= extras
    assert dict(fields)["Requires-Python"] == ">=3.10"


def test_wheel_runs_away_from_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run("-c", "import cuflash; print(cuflash.__file__)").startswith(str(tmp_path / "site"))
    folder = tmp_path / "site" / "cuflash" / "rawkernels"
    assert run("-c", "from cuflash import _sources; print(_sources.folder())") == f"{folder}\n"
    assert "equal" in run("-m", "cuflash", "demo", "--tokens", "4")
    assert "2. Decoding" in run("-m", "cuflash", "bench", "--lengths", "16", "--rounds", "1")


def test_every_folder_of_the_package_is_listed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(config["options"]["packages"].split())
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "cuflash").rglob("*.py")}
    assert listed == {".".join(folder.parts) for folder in folders} | {"cuflash.rawkernels"}


def test_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {cuflash.__version__}\n" in citation
    assert f"\n## [{cuflash.__version__}]" in changelog
