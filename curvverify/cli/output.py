"""Where the commands write: answers on stdout, everything else on stderr."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from curvverify.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


def stdout_console() -> Console:
    """For tables: as wide as the terminal, or wide enough for a file."""
    return _console(stderr=False)


def stderr_console() -> Console:
    """For messages, progress and logs."""
    return _console(stderr=True)


def setup_logging(verbose: bool) -> None:
    """Show the log of the stages on stderr where the user asked for it."""
    logger = logging.getLogger("curvverify")
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    if logger.handlers:
        return
    if verbose and stderr_console().is_terminal:
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(console=stderr_console(), show_path=False, log_time_format="%X")
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(relativeCreated)8.0f ms  %(message)s"))
    logger.addHandler(handler)


def write_file(path: Path, text: str) -> None:
    """Write the whole file or nothing: a reader never sees half of it.  UsageError where it cannot be written."""
    temporary = None
    path = path.resolve()
    try:
        if path.exists() and not path.is_file():  # a device or pipe
            path.write_text(text)
            return
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            temporary = stream.name
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _console(stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=int(os.environ.get("COLUMNS", "140")))
    return console
