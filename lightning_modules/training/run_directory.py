"""Where a run keeps its files, and that no two commands write there at the same time."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from io import FileIO
from pathlib import Path

from bnfree.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
METRICS = "metrics.csv"
LOCK = ".lock"
# Without content, in the directory of a run that has come to its end.
FINISHED = ".finished"
# Seconds that a lock is waited for.
PATIENCE = 0.3
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

# Processes that Lightning starts run the same command again and must not choose a directory of their own.
SHARED = "BNFREE_RUN_DIR"


def run_directory_of(checkpoint: str | Path) -> Path | None:
    """The run directory that a checkpoint lies in; None if it lies somewhere else."""
    for directory in (Path(checkpoint).absolute().parent.parent, Path(checkpoint).absolute().parent):
        if (directory / CONFIG).is_file():
            return directory
    return None


def latest_config(directory: Path) -> Path:
    """The config of the last fit that wrote into a run directory."""
    number = 1
    while (directory / _resumed(number)).is_file():
        number += 1
    return directory / (_resumed(number - 1) if number > 1 else CONFIG)


def config_to_write(directory: Path) -> Path:
    """A name for a new config, which leaves the earlier ones of a resumed run alone."""
    if not (directory / CONFIG).exists():
        return directory / CONFIG
    number = 1
    while (directory / _resumed(number)).exists():
        number += 1
    return directory / _resumed(number)


def _resumed(number: int) -> str:
    return f"config-resumed-{number}.yaml"


def choose_run_directory(
    given: str | None, name: str, environment: Mapping[str, str] = os.environ, label: str = ""
) -> Path:
    """The directory of this run, which is not created yet.

    Args:
        given: what the user asked for; None: `runs/<name>/<date>-<time>-<label>`, with a number if that exists.
        name: name of the recipe.
        environment: the process's environment variables.
        label: what the run changes of the recipe, or what the user calls it; may be empty.
    """
    if is_child(environment) and SHARED in environment:
        return Path(environment[SHARED])
    if given is not None:
        return Path(given).expanduser()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S") + (f"-{label}" if label else "")
    path, number = Path("runs") / name / stamp, 1
    while path.exists():
        number += 1
        path = path.with_name(f"{stamp}-{number}")
    return path


def is_child(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several and not the first."""
    return any(int(environment.get(name) or 0) > 0 for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def check_free(directory: Path, checkpoint: str | None) -> None:
    """Refuses a directory that holds an earlier run, unless that run is resumed from one of its checkpoints.

    Raises:
        InputError: the directory is taken.
    """
    taken = next((name for name in (CONFIG, METRICS, CHECKPOINTS) if (directory / name).exists()), None)
    if taken is None or is_child():
        return
    if checkpoint is not None and directory.resolve() in Path(checkpoint).resolve().parents:
        return
    last = directory / CHECKPOINTS / "last.ckpt"
    raise InputError(
        f"run_dir={str(directory)!r} holds an earlier run ({taken}), which would be overwritten; give another "
        f"directory, or resume that run with --ckpt_path={last}."
    )


def claim(given: str | None, name: str, label: str = "") -> tuple[Path, list[Path]]:
    """Chooses the directory of this run and creates it, one that no other run has if the user has named none.

    Args:
        given: what the user asked for.
        name: name of the recipe.
        label: what the run changes of it.

    Returns:
        The directory, and what `create` returns.

    Raises:
        InputError: it cannot be created or written to.
    """
    while True:
        directory = choose_run_directory(given, name, label=label)
        try:
            return directory, create(directory, new=given is None)
        except FileExistsError:
            # Another run has been started in this second, and was quicker.
            continue


def create(directory: Path, new: bool = False) -> list[Path]:
    """Creates the directory in the first process, and tells its name to the processes that will be started.

    Args:
        directory: the directory.
        new: whether it must not exist.

    Returns:
        What has been created: the directory and its missing parents, the innermost first.

    Raises:
        InputError: it cannot be created or written to.
        FileExistsError: it exists, and is to be new.
    """
    if is_child():
        return []
    given, directory = str(directory), directory.absolute()
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            directory.mkdir()
        except FileExistsError:
            if new or not directory.is_dir():
                raise
        probe = directory / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        if new and isinstance(error, FileExistsError) and directory.is_dir():
            raise
        raise InputError(
            f"run_dir={given!r} cannot be written to ({error.strerror}); give a writable directory with --run_dir."
        ) from error
    os.environ[SHARED] = str(directory)
    return missing


def discard_start(directory: Path) -> None:
    """Removes what a training has left that was stopped before its first `last.ckpt`, and nothing else.

    Args:
        directory: a run directory, which may not exist.
    """
    names = (
        "config*.yaml", METRICS, "hparams.yaml", "events.out.tfevents.*",
        f"{CHECKPOINTS}/best.ckpt", f"{CHECKPOINTS}/.*.ckpt.unfinished",
    )  # fmt: skip
    for path in [path for name in names for path in directory.glob(name)]:
        path.unlink()
    checkpoints = directory / CHECKPOINTS
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()


def remove_if_unused(created: list[Path]) -> None:
    """Removes a run directory in which no training has started.

    Args:
        created: what `create` has returned.
    """
    if not created or not created[0].is_dir():
        return
    # Loggers open their files before the first thing that can go wrong; the config is written after the last.
    unused = [*created[0].glob("events.out.tfevents.*"), created[0] / "hparams.yaml", created[0] / METRICS]
    if set(created[0].iterdir()) - set(unused):
        return
    for path in unused:
        path.unlink(missing_ok=True)
    for path in created:
        # Another command may have written something there meanwhile.
        with suppress(OSError):
            path.rmdir()


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Holds a directory, which is created, for this command and the processes that it starts.

    The lock ends with the process, however it ends. On systems without `fcntl`, and file systems without locks, there
    is none.

    Args:
        directory: the directory.

    Raises:
        InputError: another command holds it, or it cannot be written to.
    """
    if is_child():
        yield
        return
    path = directory.absolute() / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except BlockingIOError as error:
        raise InputError(
            f"run_dir={str(directory)!r} is in use by another command that has not ended{_holder(path)}; wait for it, "
            "or give another directory."
        ) from error
    except OSError as error:
        raise InputError(
            f"run_dir={str(directory)!r} cannot be written to ({error.strerror}); give a writable directory."
        ) from error
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
        path.unlink(missing_ok=True)
        file.close()


def is_in_use(directory: Path) -> bool:
    """Whether a command holds a directory by `only_one`, in this process or another."""
    if fcntl is None:
        return False
    try:
        with (directory / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


# Open as long as they are locked.
_held: set[FileIO] = set()


def _close_in_child() -> None:
    """A data loader's worker, forked from here, would hold on to a lock after this process has been killed."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _locked(path: Path) -> FileIO:
    """A file, made if it is not there, that this process alone holds open and locked.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: it cannot be written.
    """
    patience = time.monotonic() + PATIENCE
    while True:
        file = path.open("a+b", buffering=0)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before has removed it, and a file of that name is another one by now, if there is any.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                # Who it is matters less than the lock, on a full disk for instance.
                with suppress(OSError):
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return file
        except BlockingIOError:
            # It may be looked at by `is_in_use` for a moment.
            if time.monotonic() > patience:
                file.close()
                raise
            time.sleep(PATIENCE / 10)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                file.close()
                raise
            return file
        file.close()


def _holder(path: Path) -> str:
    try:
        text = path.read_text(errors="replace").strip()
    except OSError:
        return ""
    return f" ({text[:100]})" if text else ""
