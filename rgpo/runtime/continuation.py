"""resume_from: a new run that extends a finished one, starting from its checkpoint and keeping its rows.

The earlier run's rows are copied under the new run's name, so that the new run's files cover the whole training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from rgpo import atomic
from rgpo.errors import ConfigError
from rgpo.runtime import checkpoint, manifest, reader, run_folder
from rgpo.runtime.former import canonical_config, flat_config
from rgpo.runtime.provenance import Provenance
from rgpo.runtime.schema import NOT_IDENTITY

LENGTH = ("total_env_steps", "num_iterations", "resume_from")  # keys in which the two runs may differ
ANNEALED = ("anneal_lr",)


def source_of(config: Mapping[str, object]) -> Path | None:
    """The folder of the run that a configuration continues, or None."""
    folder = config.get("resume_from")
    return None if folder is None else reader.user_path(str(folder)).absolute()


def check(config: Mapping[str, object], num_iterations: int) -> None:
    """Compare a configuration with the run that it continues, before anything starts.

    Raises: ConfigError if that run is not finished, is damaged, has another configuration or already has num_iterations.
    """
    source = source_of(config)
    if source is None:
        return
    try:
        earlier = canonical_config(reader.read_yaml(source / "config.yaml"))
    except reader.Unreadable as error:
        raise _refusal(config, f"{error}; give the folder of a finished run") from error
    status = run_folder.status(source)
    if status != "completed":
        raise _refusal(config, f"the run is not complete ({status}); repeat its own command to finish it")
    if damaged := manifest.problems(source):
        raise _refusal(config, f"{'; '.join(damaged)}; restore the files or repeat that run with force=true")
    for key, mine, theirs in _differences(config, earlier):
        raise _refusal(config, f"the run has {key}={_shown(theirs)} and not {_shown(mine)}; only its length can be changed")
    done = run_folder.read_state(source).get("num_iterations", 0)
    if num_iterations <= done:
        why = f"the run has {done:,} iterations already, and this one would have {num_iterations:,}"
        raise _refusal(config, f"{why}; give a greater total_env_steps or num_iterations")


def begin(config: Mapping[str, object], run_dir: Path, config_hash: str, num_iterations: int) -> str:
    """Copy rows and checkpoint of the run that is continued to a new run's folder; returns a notice, or "" if nothing was copied.

    The checkpoint is written last, so that after a kill the copy starts over.

    Raises: ConfigError if the earlier run cannot be continued; StorageError if a file cannot be written.
    """
    source = source_of(config)
    if source is None or (run_dir / checkpoint.NAME).exists() or (run_dir / checkpoint.PREVIOUS).exists():
        return ""
    try:
        saved = checkpoint.load(source, reader.read_json(source / "provenance.json", Provenance)["config_hash"])
    except (reader.Unreadable, KeyError) as error:
        raise _refusal(config, f"{error}; restore the files of the run") from error
    if saved is None:
        raise _refusal(config, f"has no {checkpoint.NAME}; give another run")
    from rgpo.runtime.parts import KINDS

    done = saved["iteration"]
    for kind in KINDS:
        _copy_rows(source / f"{kind}.parquet", run_dir, kind, config_hash)
    checkpoint.save(run_dir, cast(checkpoint.Checkpoint, {**saved, "config_hash": config_hash}))
    left = 1 - done / num_iterations
    text = f"continues {source.name} after iteration {done:,}"
    if _anneals(config):
        text += (
            f"; its learning rate was annealed to 0 over {done:,} iterations and continues at {left:.3g} of its initial value, "
            f"to reach 0 at iteration {num_iterations:,}"
        )
    return text


def _copy_rows(path: Path, run_dir: Path, kind: str, config_hash: str) -> None:
    """Write the rows of a finished run as the first part file of another run."""
    import pyarrow as pa

    from rgpo.runtime.parts import storing, write_part

    if not path.exists():
        return
    with storing(run_dir):
        with reader.parquet(path) as file:
            table = file.read()
        for name, value in (("run_id", run_dir.name), ("config_hash", config_hash)):
            if name in table.column_names:
                place, kept = table.column_names.index(name), table.schema.field(name).type
                table = table.set_column(place, pa.field(name, kept), pa.array([value] * len(table)).cast(kept))
        atomic.make_folder(run_dir / kind)
        write_part(run_dir / kind, table)


def _differences(config: Mapping[str, object], earlier: Mapping[str, object]) -> Iterator[tuple[str, object, object]]:
    mine, theirs = ({key: value for key, value in flat_config(x).items() if value != {}} for x in (config, earlier))
    for key in sorted(mine.keys() | theirs.keys()):
        top = key.partition(".")[0]
        if top not in (*NOT_IDENTITY, *LENGTH) and mine.get(key) != theirs.get(key):
            yield key, mine.get(key), theirs.get(key)


def _anneals(config: Mapping[str, object]) -> bool:
    return any(key.rpartition(".")[2] in ANNEALED and value is True for key, value in flat_config(config).items())


def _shown(value: object) -> str:
    return {None: "null", True: "true", False: "false"}[value] if isinstance(value, bool | None) else str(value)


def _refusal(config: Mapping[str, object], why: str) -> ConfigError:
    return ConfigError(f"resume_from={config.get('resume_from')}: {why}.")
