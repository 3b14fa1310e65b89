"""Write files whole or not at all, and hash them."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeprune.errors import EdgepruneError, InputError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write to; it takes the target's name on success only.

    The temporary file keeps the target's suffix, since Keras chooses its format by it. On any
    error, Ctrl-C included, it is removed and a previous `target` stays as it was.

    Raises:
      InputError: the folder does not exist or cannot be written.
      EdgepruneError: the disk is full or fails while writing.
    """
    with atomic_paths(target) as (temporary,):
        yield temporary


@contextmanager
def atomic_paths(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Like `atomic_path` for files that belong together: all take their names, or none does.

    Raises:
      InputError: a folder does not exist or cannot be written.
      EdgepruneError: the disk is full or fails while writing.
    """
    temporaries: list[Path] = []
    try:
        for target in targets:
            check_target(target)
            temporaries.append(_temporary(target))
        try:
            yield tuple(temporaries)
            # mkstemp makes files private; a result gets the permissions any new file would have.
            mask = os.umask(0)
            os.umask(mask)
            for temporary in temporaries:
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
                temporary.chmod(0o666 & ~mask)
            for temporary, target in zip(temporaries, targets, strict=True):
                temporary.replace(target)
        except OSError as error:
            # Which of them it was, a failed write does not say.
            raise EdgepruneError(
                f"writing {' and '.join(map(str, targets))} failed: {error.strerror or error}; "
                "nothing was left behind"
            ) from error
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def check_target(target: Path) -> None:
    """Refuse a file that could not be written, before any work is done for it.

    Raises:
      InputError: its folder does not exist or cannot be written, or it is a directory itself.
    """
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a directory; name a file")
    if not target.parent.exists():
        raise InputError(
            f"cannot write {target}: folder {target.parent} does not exist; make it first"
        )
    try:
        # Permissions do not tell of read-only file systems. On Linux this file has no name.
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise _unwritable(target, error) from error


def _temporary(target: Path) -> Path:
    try:
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix
        )
    except OSError as error:
        raise _unwritable(target, error) from error
    os.close(handle)
    return Path(name)


def _unwritable(target: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {target}: {error.strerror}; choose an output in a folder you may write"
    )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_folder(path: str | Path) -> Path:
    """Make a folder for results, its parents too, unless it is there.

    Raises:
      InputError: it cannot be made, or a file has its name.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
    return folder
