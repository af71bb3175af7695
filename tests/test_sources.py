"""Finding the kernels' sources: the include closure, its digest, and the text that is compiled."""

import re
import shutil
from pathlib import Path

import pytest
from kernels import ARCH, ROOT, TINY, VARIANT, need_nvrtc, use_tiny, write_tiny

from cuflash import _kernels, _sources
from cuflash._runtime import nvrtc
from cuflash._sources import read_closure
from cuflash.errors import CompileError


@pytest.fixture
def root(tmp_path):
    return write_tiny(tmp_path)


def edit(root, name, old, new):
    path = root / name
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_folder_is_the_checkouts():
    assert _sources.folder() == ROOT / "rawkernels"


def test_an_installed_package_uses_its_own_folder(tmp_path, monkeypatch):
    package = tmp_path / "site" / "cuflash"
    for place in (package / "rawkernels", tmp_path / "site" / "rawkernels"):
        write_tiny(place)
    monkeypatch.setattr(_sources, "PACKAGE", package)
    assert _sources.folder.__wrapped__() == package / "rawkernels"
    shutil.rmtree(package)
    assert _sources.folder.__wrapped__() == tmp_path / "site" / "rawkernels"
    shutil.rmtree(tmp_path / "site")
    with pytest.raises(CompileError, match=r"sources are missing.*install cuflash again"):
        _sources.folder.__wrapped__()


def test_closure_is_every_file_that_is_reached(root):
    (root / "core" / "unused.cuh").write_text("", encoding="utf-8")
    assert read_closure("tiny.cu", root).files == ("core/platform.cuh", "core/twice.cuh", "tiny.cu")
    assert read_closure("core/twice.cuh", root).files == ("core/platform.cuh", "core/twice.cuh")


def test_a_name_is_looked_for_beside_its_file_first_then_in_the_folder(root):
    (root / "platform.cuh").write_text("", encoding="utf-8")
    assert "platform.cuh" not in read_closure("tiny.cu", root).files
    (root / "core" / "platform.cuh").unlink()
    assert "platform.cuh" in read_closure("tiny.cu", root).files


def test_names_that_mean_one_file_are_one_file(root):
    edit(root, "tiny.cu", '"core/twice.cuh"', '"core/../core/./twice.cuh"')
    assert read_closure("tiny.cu", root).files == ("core/platform.cuh", "core/twice.cuh", "tiny.cu")


def test_files_may_include_each_other(root):
    edit(root, "core/platform.cuh", "#pragma once", '#pragma once\n#include "twice.cuh"')
    assert len(read_closure("tiny.cu", root).files) == 3


@pytest.mark.parametrize(
    "line",
    [
        '#include "more.cuh"',
        ' #  include"more.cuh" // why',
        '#if 0\n#include "more.cuh"\n#endif',
        '#include "more.cuh"\r',
    ],
)
def test_every_spelling_of_an_include_is_followed(line, root):
    (root / "core" / "more.cuh").write_text("", encoding="utf-8")
    edit(root, "core/platform.cuh", "#pragma once", line)
    assert "core/more.cuh" in read_closure("tiny.cu", root).files


@pytest.mark.parametrize("line", ['// #include "more.cuh"', '// see #include "more.cuh"', '#includes "more.cuh"'])
def test_what_only_looks_like_an_include_is_not_followed(line, root):
    edit(root, "core/platform.cuh", "#pragma once", line)
    assert len(read_closure("tiny.cu", root).files) == 3


@pytest.mark.parametrize("name", TINY)
def test_digest_follows_every_byte(name, root):
    before = read_closure("tiny.cu", root)
    assert read_closure("tiny.cu", root) == before
    (root / name).write_bytes((root / name).read_bytes() + b" ")
    after = read_closure("tiny.cu", root)
    assert after.files == before.files
    assert after.digest != before.digest


def test_digest_follows_names_and_where_files_end(root):
    """The same bytes, cut into files elsewhere: also where a text holds what could be the next file's name."""
    include, name = '#include "core/twice.cuh"\n', "core/twice.cuh\0"
    digests = set()
    for first, second in (
        (include, "//"),
        (include + "/", "/"),
        (f"{include}//", f"//{name}"),
        (f"{include}//{name}//", ""),
    ):
        (root / "aaa.cu").write_text(first, encoding="utf-8")
        (root / "core" / "twice.cuh").write_text(second, encoding="utf-8")
        digests.add(read_closure("aaa.cu", root).digest)
    assert len(digests) == 4
    shutil.move(root / "aaa.cu", root / "aab.cu")
    assert read_closure("aab.cu", root).digest not in digests


def test_digest_is_the_same_wherever_the_folder_lies(root, tmp_path_factory):
    other = write_tiny(tmp_path_factory.mktemp("other"))
    assert read_closure("tiny.cu", other) == read_closure("tiny.cu", root)


@pytest.mark.parametrize(
    ("include", "message"),
    [
        ('"nowhere.cuh"', r'core/twice.cuh, line 2: #include "nowhere.cuh" is neither beside that file nor in'),
        ('"../../above.cuh"', r'core/twice.cuh, line 2: #include "../../above.cuh" leads out of'),
        ('"/etc/passwd"', r"leads out of"),
        ("<stdint.h>", r'core/twice.cuh, line 2: only #include "file" can be followed, got #include <stdint.h>'),
        ("HEADER", r"got #include HEADER"),
        ('""', r'got #include ""'),
    ],
)
def test_an_include_that_cannot_be_followed_is_named(include, message, root):
    (root.parent / "above.cuh").write_text("", encoding="utf-8")
    edit(root, "core/twice.cuh", '"platform.cuh"', include)
    with pytest.raises(CompileError, match=message):
        read_closure("tiny.cu", root)


def test_a_missing_kernel_file_is_named(root):
    with pytest.raises(CompileError, match=r"kernels: none\.cu cannot be read in .*: No such file"):
        read_closure("none.cu", root)


def test_entry_is_three_lines(root, monkeypatch):
    use_tiny(root, monkeypatch)
    source = nvrtc.read_source(VARIANT, ARCH)
    assert source.text == (
        f"// tiny, sources {read_closure('tiny.cu', root).digest}\n"
        '#include "tiny.cu"\n'
        'using K = cf::Tiny<cf::TinyConfig{.threads = 32}>; extern "C" __global__ void '
        "__launch_bounds__(K::THREADS, K::BLOCKS_PER_SM) cuflash_tiny(const __grid_constant__ K::Params params) "
        "{ K::run(params); }\n"
    )


def test_values_are_spelled_as_in_cpp():
    variant = _kernels.spec("fwd_simt", dtype="Dtype::bfloat16", value_dim=64)
    spelled = "cf::FwdSimt<cf::SimtConfig{.dtype = cf::Dtype::bfloat16, .value_dim = 64}>"
    assert _kernels.instance(variant) == spelled
    assert _kernels.file_name(variant, "sm_90a") == "fwd_simt-bfloat16-value_dim64-sm_90a.cubin"


def test_every_line_of_the_register_follows_the_names():
    for name, kernel in _kernels.KERNELS.items():
        assert Path(kernel.file).stem == name
        assert kernel.struct == "".join(word.capitalize() for word in name.split("_"))
        text = (_sources.folder() / kernel.file).read_text(encoding="utf-8")
        assert re.search(rf"template <{kernel.config} \w+> struct {kernel.struct}\b", text)


def test_every_variant_has_a_file_name_of_its_own():
    names = [_kernels.file_name(variant, ARCH) for variant in _kernels.variants()]
    assert len(set(names)) == len(names) > 0


@pytest.mark.parametrize("path", sorted((ROOT / "rawkernels").rglob("*.cu*")), ids=lambda path: path.name)
def test_lines_are_short(path):
    assert all(len(line) <= 120 for line in path.read_text(encoding="utf-8").splitlines())


@pytest.mark.long
@pytest.mark.parametrize("name", _kernels.KERNELS)
def test_a_kernel_compiles_from_its_closure_alone(name, tmp_path, monkeypatch):
    """Nothing that the compiler reads is missing from the digest."""
    need_nvrtc()
    closure = read_closure(_kernels.KERNELS[name].file, ROOT / "rawkernels")
    for file in closure.files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "rawkernels" / file, tmp_path / file)
    monkeypatch.setattr(_sources, "folder", lambda: tmp_path)
    variant = next(variant for variant in _kernels.variants() if variant.kernel == name)
    assert nvrtc.compile_source(nvrtc.read_source(variant, "compute_80")).image
