"""Files appear whole or not at all."""

import hashlib
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune.errors import EdgepruneError, InputError
from edgeprune.files import atomic_path, atomic_paths, check_target, sha256


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_with(error, *targets):
    with atomic_paths(*targets) as paths:
        for path in paths:
            path.write_text("half")
        raise error


def test_content_and_permissions_of_a_new_file(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_path(target) as path:
        assert path.suffix == ".txt"
        assert not target.exists()
        path.write_text("new")
    assert target.read_text() == "new"
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert listing(tmp_path) == ["a.txt", "plain"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_previous_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error):
        fail_with(error, target)
    assert target.read_text() == "old"
    assert listing(tmp_path) == ["a.txt"]


def test_files_that_belong_together_appear_together(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    with pytest.raises(RuntimeError):
        fail_with(RuntimeError, first, second)
    assert listing(tmp_path) == []
    with atomic_paths(first, second) as (a, b):
        a.write_text("1")
        b.write_text("2")
    assert (first.read_text(), second.read_text()) == ("1", "2")


def test_one_bad_target_stops_both(tmp_path):
    (tmp_path / "b").mkdir()
    with (
        pytest.raises(InputError, match="is a directory"),
        atomic_paths(tmp_path / "a", tmp_path / "b"),
    ):
        pytest.fail("a directory was accepted as a target")
    assert listing(tmp_path) == ["b"]


def test_missing_folder(tmp_path):
    with (
        pytest.raises(InputError, match=r"cannot write .*folder .*/none does not exist; make it"),
        atomic_path(tmp_path / "none" / "a"),
    ):
        pytest.fail("a missing folder was accepted")


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"), atomic_path(tmp_path / "file" / "a"):
        pytest.fail("a file was accepted as a folder")


FULL_DISK = """
import resource, sys
from pathlib import Path
from edgeprune.errors import EdgepruneError
from edgeprune.files import atomic_paths
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
folder = Path(sys.argv[1])
try:
    with atomic_paths(folder / "small", folder / "large") as (small, large):
        small.write_bytes(b"x" * 10)
        large.write_bytes(b"x" * 100_000)
except EdgepruneError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more(tmp_path):
    (tmp_path / "small").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "/small and " in done.stdout
    assert "/large failed: File too large" in done.stdout
    assert "nothing was left behind" in done.stdout
    assert listing(tmp_path) == ["small"]
    assert (tmp_path / "small").read_text() == "old"


def test_os_errors_of_the_body_are_edgeprune_errors(tmp_path):
    with pytest.raises(EdgepruneError, match=r"writing .* failed"), atomic_path(tmp_path / "a"):
        Path(tmp_path / "missing").read_bytes()


def test_a_target_is_checked_without_leaving_a_trace(tmp_path):
    check_target(tmp_path / "a")
    assert listing(tmp_path) == []
    for target, message in [
        (tmp_path, "it is a directory"),
        (tmp_path / "none" / "a", "does not exist; make it first"),
        (Path("/proc/a"), "choose an output in a folder you may write"),
    ]:
        with pytest.raises(InputError, match=message):
            check_target(target)


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
