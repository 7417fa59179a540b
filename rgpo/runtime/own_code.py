"""The user's own code that a process has imported: modules from folders on Python's path outside of any installation."""

from __future__ import annotations

import functools
import hashlib
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

from rgpo.runtime.code_digest import LENGTH, without_comments

INSTALLED = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")}
PACKAGE = Path(__file__).resolve().parents[1]
MAX_FILES = 200
SITE = {"site-packages", "dist-packages"}


def own_folders() -> list[Path]:
    """The folders on Python's path that do not belong to an installation, in order."""
    entries = dict.fromkeys(Path(entry).resolve() for entry in sys.path)
    installed = {folder.resolve() for folder in INSTALLED}
    return [entry for entry in entries if not installed & {entry, *entry.parents} and not SITE & set(entry.parts)]


def digests() -> dict[str, str]:
    """Relative path -> digest (ignoring comments and docstrings) of imported source files in those folders, without rgpo's."""
    folders = [folder for folder in own_folders() if folder.is_dir()]
    found: dict[str, str] = {}
    for file in sorted({place.resolve() for place in _places()}):  # few are left; resolving all that torch imports is slow
        folder = next((folder for folder in folders if folder in file.parents), None)
        if folder is not None and len(found) < MAX_FILES and PACKAGE not in file.parents and not SITE & set(file.parts):
            found[file.relative_to(folder).as_posix()] = _digest(file)
    return found


def _places() -> set[Path]:
    """Source files of imported modules, except those that by name or path belong to an installation or to rgpo."""
    files = {str(getattr(module, "__file__", None) or "") for name, module in list(sys.modules.items()) if _is_own(name)}
    mine = f"{PACKAGE}/"  # compared as text: creating a Path for each of the thousands of files that torch imports is slow
    outside = (file for file in files if file.endswith(".py") and file.startswith("/") and not file.startswith(mine))
    return {Path(file) for file in outside if SITE.isdisjoint(file.split("/"))}


def _is_own(name: str) -> bool:
    return name != "__main__" and name.partition(".")[0] not in sys.stdlib_module_names


def _digest(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return "unreadable"
    return _digest_of(text)


@functools.lru_cache(maxsize=2 * MAX_FILES)  # cached, since one process may start many runs
def _digest_of(text: str) -> str:
    with suppress(SyntaxError, ValueError, RecursionError):  # the file is being edited
        text = without_comments(text)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]
