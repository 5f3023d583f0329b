import logging
import os
import threading
import warnings

import pytest

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.readers import read_image
from fusion_jax.data.readers.guard import open_file, optional, quiet, reading


@pytest.mark.parametrize(
    "error", [ValueError("a"), EOFError("b"), RecursionError(), SyntaxError("c"), OSError("no number")]
)
def test_whatever_a_decoder_raises_becomes_the_one_error(error):
    with (
        pytest.raises(UnreadableFile, match=f"ct.nii: cannot be decoded .{type(error).__name__}") as found,
        reading("ct.nii"),
    ):
        raise error
    assert found.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "absent"), PermissionError(13, "no"), OSError(28, "disk full"), MemoryError(), ImportError()],
)
def test_errors_that_are_not_the_files_pass(error):
    with pytest.raises(type(error)) as found, reading("ct.nii"):
        raise error
    assert found.value is error


def test_warnings_are_quiet_inside_and_as_before_outside():
    before = list(warnings.filters)
    with quiet(), quiet():
        warnings.warn("inside", UserWarning, stacklevel=1)
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="outside"):
        warnings.warn("outside", UserWarning, stacklevel=1)


def test_filters_come_back_when_threads_leave_in_any_order():
    """`warnings.catch_warnings` alone would leave the filters of the first thread behind."""
    before = list(warnings.filters)
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

    def first():
        with quiet():
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second():
        first_in.wait(10)
        with quiet():
            second_in.set()
            first_out.wait(10)
            warnings.warn("still quiet", UserWarning, stacklevel=1)

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert warnings.filters == before


def test_log_lines_of_decoders_go_to_our_logger(caplog):
    noisy = logging.getLogger("nibabel.global")
    with caplog.at_level(logging.DEBUG):
        with quiet():
            noisy.warning("qfac should be 1")
        assert [(record.name, record.levelname) for record in caplog.records] == [("fusion_jax.data.readers", "DEBUG")]
        noisy.warning("by the user")
        assert caplog.records[-1].name == "nibabel.global"


def test_reading_never_reserves_more_than_the_file_holds(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x" * 100)
    with open_file(tmp_path / "a.bin") as file:
        assert len(file.read(2**62)) == 100


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableFile, match="is no ordinary file"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.parametrize(("reader", "package"), [("nifti", "nibabel"), ("nrrd", "SimpleITK"), ("dicom", "pydicom")])
def test_a_missing_package_gives_the_install_command(tmp_path, monkeypatch, reader, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(ImportError, match=rf'needs {package}. Install it with `pip install "fusion-jax\[imaging\]"`'):
        read_image(tmp_path / "a", reader=reader)


def test_a_package_that_is_there_is_returned():
    assert optional("nibabel", "nibabel").__name__ == "nibabel"
