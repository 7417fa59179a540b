"""Shared by rgpo-eval and rgpo-export: argument parsing, --help, and one-sentence error messages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rgpo import interrupt

Words = Mapping[str, str]


def run_command(name: str, usage: str, main: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Handle --help and --version, or call main(words) and report its errors in one sentence; returns the exit code."""
    if argv is None:
        interrupt.exit_at_once()
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word in ("-h", "--help", "help") for word in words):
        print(usage, end="")
        return 0
    if "--version" in words:
        from rgpo.version import __version__

        print(f"{name} {__version__}")
        return 0
    import traceback

    from rgpo.errors import (
        MAX_LINE,
        ConfigError,
        NonFiniteError,
        OutOfMemory,
        StorageError,
        first_line,
        is_out_of_memory,
        printable,
    )

    try:
        with interrupt.Raising():
            return main(words)
    except (ConfigError, NonFiniteError, OutOfMemory, StorageError) as error:
        print(f"{name}: {printable(str(error), MAX_LINE)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:
        file = error.filename or "a file"
        print(f"{name}: {printable(f'{file}: cannot be used ({error.strerror or error})', MAX_LINE)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; every file is either complete or unchanged", file=sys.stderr)
        return 130
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        sentence = f"{type(error).__name__}: {first_line(error)} (raised in {place.filename}, line {place.lineno})"
        if is_out_of_memory(error):
            sentence = "out of memory; close other programs or use another machine"
        print(f"{name}: {printable(sentence, MAX_LINE)}", file=sys.stderr)
        return 1


def split(words: Sequence[str], places: Sequence[str], keys: Sequence[str]) -> tuple[list[str], Words]:
    """Split arguments into the positional ones, in the order of places, and key=value pairs as a dictionary.

    Raises: ConfigError for a missing or extra positional argument, or a key that is unknown or repeated.
    """
    from rgpo.errors import ConfigError, close_matches, require

    found: dict[str, str] = {}
    plain: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in keys:
            require(key not in found, key, value, "is given twice; leave one out.")
            found[key] = value
        elif equals and key.isidentifier() and not Path(word).exists():
            raise ConfigError(f"{word}: is not a setting; choose from {', '.join(keys)}.{close_matches(key, keys)}")
        else:
            plain.append(word)
    if len(plain) != len(places) or not all(plain):
        raise ConfigError(f"{' '.join(plain) or 'nothing'}: give exactly {' and '.join(places)}; --help shows an example.")
    return plain, found


def flag(words: Words, key: str) -> bool:
    """The value of a boolean setting; False if it was not given.

    Raises: ConfigError if the value is neither true nor false.
    """
    from rgpo.errors import require

    value = words.get(key, "false").lower()
    require(value in ("true", "false"), key, words.get(key), "must be true or false.")
    return value == "true"


def number(words: Words, key: str, default: int, least: int, most: int) -> int:
    """The value of an integer setting, or the default.

    Raises: ConfigError if the value is not a whole number from least to most.
    """
    from rgpo.errors import require

    text = words.get(key, str(default))
    digits = text.isascii() and text.isdigit() and len(text) <= 18
    require(digits and least <= int(text) <= most, key, text, f"must be a whole number from {least} to {most:,}.")
    return int(text)
