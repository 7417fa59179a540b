"""A run's code, versions and machine, which are recorded in its folder and with its rows."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NotRequired, TypedDict

from rgpo import distributed
from rgpo.runtime import reader
from rgpo.version import __version__

REDACTED = "[redacted]"
_NAME = (
    "token|secret|passw(?:or)?d|passphrase|credential|cookie|(?:api|access|private|auth)[_-]?key"
    "|(?<![a-z])(?:keys?|auth|pwd|pass)(?![a-z])"
)
_NUMBER = r"(?:(?:null|none|true|false|[-+]?[\d._]+(?:e[-+]?\d+)?)(?![\w-])|\[[\d\s,.]*\])"  # no secret: task.max_new_tokens=32
_INNER = r"[\[{][^\[\]{}]*[\]}]"
_NODE = rf"[\[{{](?:[^\[\]{{}}]|[\[{{](?:[^\[\]{{}}]|{_INNER})*[\]}}])*[\]}}]|[\[{{].*"  # or one without a closing bracket
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_ASSIGNMENT = re.compile(
    rf"((?:{_NAME})\w*['\"]?\s*[=:]\s*)(?!{_NUMBER}|\$\{{)(?:'[^']*'|\"[^\"]*\"|{_NODE}|[^\s,;'\"{{}}()\[\]]+)", re.IGNORECASE
)
_SECRET = re.compile(  # recognizable by the issuers' formats
    r"\b(?:hf_|sk-|gh[opsur]_|github_pat_|glpat-|xox[abprs]-|AKIA|AIza)[\w-]{8,}|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*|(?<=://)[^\s/@'\"]+(?=@)"
    r"|(?<=[Bb]earer )[\w.~+/-]{8,}=*"
)
NO_HOOKS = ("-c", "core.fsmonitor=", "-c", "core.hooksPath=/dev/null")  # git options that prevent it from running other programs
LIBRARIES = ("torch", "numpy", "gymnasium", "mujoco", "transformers")  # libraries that determine numbers
PACKAGES = (*LIBRARIES, "hydra-core", "omegaconf", "pyarrow")


class Attempt(TypedDict):
    """One start of a run, as recorded in provenance.json."""

    attempt: int
    started: str  # UTC
    commit: str | None
    dirty: bool
    code: str  # digest of the code that determines numbers
    own_code: dict[str, str]  # the user's files -> digests
    versions: dict[str, str]
    host: dict[str, str | int | None]
    num_threads: int
    num_processes: int


SIGNS = (1.0, -1.0)  # signs of the advantage; a gate has one curve for each


class GateCurve(TypedDict):
    """Gate value g and weight w = dg/dd over the log ratio d, for each sign in SIGNS; None where a value is not finite."""

    log_ratio: list[float]  # nats
    gate_value: list[list[float | None]]
    weight: list[list[float | None]]


class Provenance(TypedDict):
    """The contents of provenance.json."""

    run_id: str
    config_hash: str
    commit: str | None
    dirty: bool
    code: str  # digests of the code that determines numbers, of all attempts with different code: "first+second"
    versions: dict[str, str]
    algorithm: dict[str, str]  # its own description of its parts
    gate_curve: NotRequired[GateCurve | None]  # the gate's curve, if it has a gate
    command: str
    host: dict[str, str | int | None]
    num_threads: int
    num_processes: int
    started: str  # UTC
    attempt: int
    attempts: list[Attempt]


def collect(
    run_id: str, config_hash: str, command: str, num_threads: int, attempt: int, algorithm: Mapping[str, str], code: str
) -> Provenance:
    """The provenance of an attempt that starts now."""
    commit, dirty = _commit()
    return {
        "run_id": run_id,
        "config_hash": config_hash,
        "commit": commit,
        "dirty": dirty,
        "code": code,
        "versions": versions(),
        "algorithm": dict(algorithm),
        "command": redact(command),
        "host": {"cpu": _cpu(), "cores": os.cpu_count(), "platform": platform.platform(terse=True)},
        "num_threads": num_threads,
        "num_processes": distributed.world_size(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "attempt": attempt,
        "attempts": [],
    }


def attempt_of(facts: Provenance, code: str, own_code: dict[str, str]) -> Attempt:
    """The entry for the current attempt; code: its own digest."""
    return {
        "attempt": facts["attempt"],
        "started": facts["started"],
        "commit": facts["commit"],
        "dirty": facts["dirty"],
        "code": code,
        "own_code": own_code,
        "versions": facts["versions"],
        "host": facts["host"],
        "num_threads": facts["num_threads"],
        "num_processes": facts["num_processes"],
    }


def changes(attempts: Sequence[Attempt]) -> str:
    """A clause about code and packages that changed between the last two attempts, or ""."""
    if len(attempts) < 2:
        return ""
    before, now = attempts[-2], attempts[-1]
    old, new = before.get("own_code", {}), now["own_code"]
    clauses = ["the code of rgpo"] if before.get("code") != now["code"] else []
    clauses += [file for file in sorted(old.keys() | new.keys()) if old.get(file) != new.get(file)]
    old, new = before.get("versions", {}), now["versions"]
    clauses += [
        f"{name} ({old.get(name, 'not recorded')}, now {new.get(name, 'not recorded')})"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if not clauses:
        return ""
    since = f"changed since attempt {before.get('attempt', '?')}: {', '.join(clauses)}"
    return f"{since}; iterations before and after may not be comparable"


def with_earlier_code(run_dir: Path, code: str) -> str:
    """The digests of the run's earlier code followed by this one, joined by "+", without repetition."""
    try:
        earlier = reader.read_json(run_dir / "provenance.json", Provenance).get("code", "unknown")
    except reader.Unreadable:  # a new run, or damaged provenance that will be rewritten
        return code
    return earlier if code in earlier.split("+") else f"{earlier}+{code}"


def redact(text: str) -> str:
    """Redact tokens, passwords in URLs, and values of keys that name a secret."""
    return _SECRET.sub(REDACTED, _ASSIGNMENT.sub(rf"\1{REDACTED}", text))


def redact_word(word: str) -> str:
    """Redact a command-line argument key=value, where spaces and quotes belong to the value."""
    key, equals, value = word.partition("=")
    if not equals or not _SECRET_NAME.search(key) or re.fullmatch(rf"{_NUMBER}|\$\{{.*|", value, re.IGNORECASE):
        return redact(word)
    return f"{key}={REDACTED}"


def redact_values(node: object, key: str = "") -> object:
    """Redact a configuration; numbers are kept."""
    if isinstance(node, Mapping):
        return {
            name: redact_values(value, key if key == "metrics" else f"{key}.{name}".lstrip(".")) for name, value in node.items()
        }
    if isinstance(node, list):
        return [redact_values(value, key) for value in node]
    if not isinstance(node, str):
        return node
    return REDACTED if node and _SECRET_NAME.search(key) else _SECRET.sub(REDACTED, node)


def versions() -> dict[str, str]:
    """Installed versions of rgpo, Python and the packages that can affect numbers."""
    found = {"python": platform.python_version(), "rgpo": __version__}
    return found | {name: _version(name) for name in PACKAGES}


def git_sha(facts: Provenance) -> str:
    """The short commit hash, with -dirty if there were changes; the package's version if there is no repository."""
    if facts["commit"] is None:
        return f"v{facts['versions']['rgpo']}"
    return facts["commit"][:10] + ("-dirty" if facts["dirty"] else "")


def git_environment() -> dict[str, str]:
    """The environment without GIT_ variables, which select another repository or configuration; also prevents fetching."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {"GIT_ALLOW_PROTOCOL": "none", "GIT_OPTIONAL_LOCKS": "0"}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> tuple[str | None, bool]:
    """The commit of the checkout that contains this package, and True if rgpo/ or conf/ differ or could not be compared."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str | None:
        try:
            out = subprocess.run(  # noqa: S603  # only the fixed arguments below
                ["git", *NO_HOOKS, "-C", str(root), *words],  # noqa: S607  # the user's own git
                capture_output=True,
                env=git_environment(),
                text=True,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return out.stdout.strip() if out.returncode == 0 else None

    if not (root / ".git").exists():
        return None, False
    commit = git("rev-parse", "HEAD")
    return commit, commit is not None and git("status", "--porcelain", "--", "rgpo", "conf") != ""


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
