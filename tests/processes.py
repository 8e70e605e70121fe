"""Processes of their own that start fast: forked from one that has imported the package."""

import multiprocessing
import os
import sys
import warnings
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["maskwright.api", "tests.conftest"])


def maskwright(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """What `maskwright ARGUMENTS` does and prints."""
    words = [str(word) for word in arguments]
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = FORKS.Process(target=_command, args=(words, cwd or Path.cwd(), out, err))
        process.start()
        process.join()
        return CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def _command(words: list[str], cwd: Path, out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ["COLUMNS"] = "200"
    warnings.filterwarnings("error", category=UserWarning, module="maskwright")
    multiprocessing.set_start_method("fork", force=True)  # of workers, as it is outside of tests
    sys.argv = ["maskwright", *words]
    from maskwright.cli import main  # its console reads COLUMNS

    main()
