"""rgpo-export: the policy of a run's last checkpoint as a folder that other programs load."""

from __future__ import annotations

from rgpo.cli.command import flag, run_command, split
from rgpo.leaving import run_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rgpo.cli.stored_run import Parts, StoredRun

USAGE = """rgpo-export RUN DIR [merged=true] [onnx=true]

Writes the policy of a run's last checkpoint into a new folder DIR; the run may be finished, interrupted or still running.

  rgpo-export results/default/cartpole-ppo-s1-1a2b3c4d my_policy
  rgpo-export results/default/qwen_rlhf-rgpo-s1-1a2b3c4d my_model merged=true

Control: policy.json and policy.safetensors (as in the run's policy/), policy.pt2 for torch.export.load and policy.ts for
torch.jit.load; the latter two map float32 observations (N, D) to deterministic actions. onnx=true adds the same as policy.onnx.
Language: a LoRA adapter for peft, or whole weights for transformers, with tokenizer, chat template and model card.
merged=true adds the adapter to the weights of its base model.

exit code: 0 written, 1 it cannot be computed or stored, 2 wrong usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command("rgpo-export", USAGE, _main, argv)


def _main(words: list[str]) -> int:
    from rgpo import atomic
    from rgpo.cli.stored_run import open_run, restore_parts
    from rgpo.cli.sweep import import_from_current_directory
    from rgpo.errors import ConfigError, StorageError, described, is_out_of_memory
    from rgpo.learning.export import NoExport
    from rgpo.runtime.reader import user_path

    (source, target), settings = split(words, ("RUN", "DIR"), ("merged", "onnx"))
    merged, onnx, folder = flag(settings, "merged"), flag(settings, "onnx"), user_path(target).absolute()
    _refuse_used(folder)
    import_from_current_directory()
    run = open_run(user_path(source).absolute())
    parts = restore_parts(run)
    atomic.make_folder(folder.parent)
    try:
        with atomic.replacing_folder(folder) as aside:
            _fill(run, parts, aside, merged, onnx)
    except NoExport as error:
        raise ConfigError(f"{run.folder}: {error}.") from error
    except (ConfigError, OSError):
        raise
    except Exception as error:  # from the user's method, or from a library that cannot save this model
        if is_out_of_memory(error):
            raise
        raise StorageError(f"{folder}: the policy cannot be saved ({described(error)}).") from error
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    print(f"{folder}: the policy after iteration {parts.iteration:,} ({names})")
    return 0


def _refuse_used(folder: Path) -> None:
    """Raises: ConfigError if the path is a file or a folder that is not empty."""
    from rgpo.errors import ConfigError

    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ConfigError(f"{folder}: exists and is no empty folder; give a new one.")


def _fill(run: StoredRun, parts: Parts, folder: Path, merged: bool, onnx: bool) -> None:
    from rgpo.control.task import Control
    from rgpo.errors import require
    from rgpo.runtime import export

    task, policy, _, iteration, env_steps = parts
    facts = export.facts_of(run.folder, run.config, iteration, env_steps)
    state = policy.state_dict()
    if merged:
        from rgpo.language.task import Language

        adapted = isinstance(task, Language) and task.lora is not None
        require(adapted, "merged", "true", "the run trained no adapter that could be merged; leave it out.")
        assert isinstance(task, Language)
        task.export(policy, state, folder, facts, merged=True)
        return
    export.fill(task, policy, state, folder, facts)
    if isinstance(task, Control) and export.folder_of(task, policy) == task.export_name:
        from rgpo.control.actor import DESCRIPTION, Actor
        from rgpo.control.export import write_modules

        if (folder / DESCRIPTION).exists():
            write_modules(Actor.load(folder), folder, onnx)
            return
    require(not onnx, "onnx", "true", "is written for rgpo's policies of control tasks only; leave it out.")


def program() -> None:
    """Entry point of the console script; ends the process."""
    run_program(main)


if __name__ == "__main__":
    program()
