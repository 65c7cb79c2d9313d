"""A run folder: what was asked, what happened, what came out.

    config.yaml  provenance.json  environment.json    what was asked, and where it ran
    log.jsonl                                         one line of numbers a logged step
    checkpoints/step-00001200/                        the last two, each whole or absent
    model/{config.json, model.safetensors}            what the next stage loads
    metrics.json  done.json                           written last, in this order

A *step* counts from 0. `Run.log(step)` is about that step; `Run.save(step)` is called when
`step` steps are done, so it names the step to go on from, and so does what `restore` returns.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from pathgen import parallel
from pathgen.checkpoints import (
    damage,
    read_checkpoint,
    require_equal_shapes,
    set_random_state,
    write_checkpoint,
)
from pathgen.commit import (
    discard,
    draft,
    lock,
    storage_error,
    sweep,
    writable_folder,
    write_json,
    write_text,
)
from pathgen.config import Config, to_yaml
from pathgen.errors import RunError
from pathgen.modelfiles import load_model, read_object, save_model
from pathgen.provenance import Provenance, environment
from pathgen.runconfig import FREE, RunConfig, comparable, differences

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FREE", "Run", "RunConfig", "Stateful", "comparable", "load_model", "save_model"]

log = logging.getLogger(__name__)

#: What a run writes in its folder; `overwrite` removes these and nothing else.
CONTENTS = (
    "done.json", "provenance.json", "metrics.json", "config.yaml", "environment.json",
    "log.jsonl", "checkpoints", "model", "initial", "pictures",
    "tensorboard", "reconstructions.png", "latents",
)  # fmt: skip


class Stateful(Protocol):
    """Anything that can be saved and put back: modules, optimizers, scalers."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class Run:
    """One training in one folder. Create with `Run.start`.

    Two processes must not train in one folder: the training functions `hold` it while they write.
    Of several that train together (`pathgen.parallel`) the first alone writes, and all must call
    what is called; all of them read.
    """

    def __init__(self, path: Path, provenance: Provenance) -> None:
        self.path = path
        self.provenance = provenance

    @classmethod
    def start(
        cls,
        path: Path | str,
        stage: str,
        config: Config,
        inputs: Mapping[str, str],
        *,
        overwrite: bool = False,
    ) -> Run:
        """A new run in `path`, or the one that is there when it was asked for the same.

        Same means equal stage, inputs (role -> id) and config, except for the settings in `FREE`
        wherever a `RunConfig` stands in it.

        Raises:
            RunError: PG-T04, the folder holds a run with another setting, which is named.
            StorageError: the folder cannot be written.
        """
        path = Path(path)
        run = cls(path, Provenance(stage=stage, config=comparable(config), inputs=dict(inputs)))
        parallel.first(lambda: run._begin(config, overwrite))
        return run

    def _begin(self, config: Config, overwrite: bool) -> None:
        path = writable_folder(self.path)
        with lock(path):
            sweep(path)
            if overwrite:
                for name in CONTENTS:
                    discard(path / name)
            if (path / "provenance.json").exists():
                self._agree()
                self._note_environment()
                return
            self._refuse_remains()
            write_text(path / "config.yaml", to_yaml(config))
            write_json(path / "environment.json", environment())
            write_json(path / "provenance.json", self.provenance.model_dump(mode="json"))

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other pathgen processes out while this one trains; those of the same training may.

        Raises BusyError when one is in.
        """
        with hold(self.path):
            yield

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """A run that exists, to read from. Raises RunError when there is none."""
        path = Path(path)
        return cls(path, _read_provenance(path))

    @property
    def id(self) -> str:
        """16 hex digits of stage, config and inputs."""
        return self.provenance.id

    @property
    def finished(self) -> bool:
        """True once `finish` has written everything."""
        return (self.path / "done.json").is_file()

    @property
    def metrics(self) -> dict[str, Any]:
        """What `finish` was given. Raises RunError before that."""
        return read_object(self.path / "metrics.json")

    # --- the log -------------------------------------------------------------------------

    def log(self, step: int, **values: float) -> None:
        """Append one line to `log.jsonl`; a value that is not finite is written as null."""
        if not parallel.leads():
            return
        line = {"step": step} | {k: _finite(v) for k, v in values.items()}
        path = self.path / "log.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise storage_error(error, path) from error

    def step_log(self) -> list[dict[str, Any]]:
        """The lines of `log.jsonl`, oldest first; a line cut short by a crash ends them."""
        path = self.path / "log.jsonl"
        if not path.is_file():
            return []
        lines = []
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break
            lines.append(line)
        return lines

    def loss_summary(self) -> dict[str, float]:
        """Mean `loss` over the first and the last tenth of the logged steps."""
        losses = [line["loss"] for line in self.step_log() if line.get("loss") is not None]
        if not losses:
            return {}
        few = max(1, len(losses) // 10)
        return {"loss_first": sum(losses[:few]) / few, "loss_last": sum(losses[-few:]) / few}

    def _cut_log(self, step: int) -> None:
        """Forget what was logged at `step` or later: those steps are about to be done again."""
        path = self.path / "log.jsonl"
        if path.is_file():
            kept = [line for line in self.step_log() if line["step"] < step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    # --- checkpoints ---------------------------------------------------------------------

    def save(self, step: int, *, keep: int = 2, **parts: Stateful) -> Path:
        """Write the checkpoint of `step` done steps, whole or not at all; keep the last `keep`.

        It holds every part's state and the random states of python, numpy and torch.
        """
        final = self._checkpoint(step)
        if not parallel.leads():
            return final
        states = {name: part.state_dict() for name, part in parts.items()}
        with draft(final) as folder:
            folder.mkdir()
            write_checkpoint(folder, step, states)
        # Later ones are damaged, else `step` would not be done again: they must not push it out.
        for old in [path for path in self.checkpoints() if path.name <= final.name][:-keep]:
            discard(old / "COMPLETE")  # first, so that half a removal is no checkpoint
            discard(old)
        return final

    def checkpoints(self) -> list[Path]:
        """Folders of the checkpoints that say they are complete, oldest first."""
        found = sorted((self.path / "checkpoints").glob("step-*"))
        return [path for path in found if (path / "COMPLETE").is_file()]

    def restore(self, **parts: Stateful) -> int:
        """Load the newest complete checkpoint into `parts`; the step to go on from, 0 if new.

        `log.jsonl` is cut back to the lines before that step, and the random states are put
        back. A damaged checkpoint is passed over, with a warning in the log, for the one before.

        Raises:
            RunError: PG-T04, no checkpoint is readable or it does not fit `parts` (says where);
                PG-T05, it holds more than plain values.
        """
        name = parallel.first(self._newest)
        step = 0 if name is None else self._load(self.path / "checkpoints" / name, parts)
        if parallel.leads():
            self._cut_log(step)
        return step

    def _newest(self) -> str | None:
        """Name of the newest checkpoint that is whole."""
        damaged: list[str] = []
        for path in reversed(self.checkpoints()):
            problem = damage(path)
            if problem is None:
                return path.name
            log.warning("checkpoint %s is passed over: %s", path, problem)
            damaged.append(f"{path.name}: {problem}")
        if damaged:
            raise RunError(
                "no checkpoint can be read", where=self.path, why="; ".join(damaged),
                hint="start again with --overwrite",
            )  # fmt: skip
        return None

    def _load(self, path: Path, parts: Mapping[str, Stateful]) -> int:
        from torch import nn

        state = read_checkpoint(path)
        saved = state["parts"]
        if set(saved) != set(parts):
            raise RunError(
                "checkpoint holds other parts", where=path,
                why=f"expects {', '.join(sorted(parts))}; file has {', '.join(sorted(saved))}",
                hint="choose another --out or --overwrite",
            )  # fmt: skip
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                require_equal_shapes(part.state_dict(), saved[name], where=path, prefix=f"{name}.")
        for name, part in parts.items():
            try:
                part.load_state_dict(saved[name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise RunError(
                    "checkpoint does not fit", where=path, why=f"{name}: {error}",
                    hint="choose another --out or --overwrite",
                ) from error  # fmt: skip
        set_random_state(state["random"])
        return int(state["step"])

    def _checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:08d}"

    # --- the end -------------------------------------------------------------------------

    def finish(self, model: nn.Module | None, metrics: Mapping[str, Any]) -> None:
        """Write `model/`, `metrics.json` and, last of all, `done.json`."""
        parallel.first(lambda: self._finish(model, metrics))

    def _finish(self, model: nn.Module | None, metrics: Mapping[str, Any]) -> None:
        if model is not None:
            save_model(self.path / "model", model)
        write_json(self.path / "metrics.json", dict(metrics))
        write_json(
            self.path / "done.json", {"stage": self.provenance.stage, "id": self.provenance.id}
        )

    # --- start, in detail ----------------------------------------------------------------

    def _agree(self) -> None:
        there, asked = _read_provenance(self.path), self.provenance
        difference = next(
            differences(
                {"stage": there.stage, "config": there.config, "inputs": there.inputs},
                {"stage": asked.stage, "config": asked.config, "inputs": asked.inputs},
            ),
            None,
        )
        if difference is not None:
            name, old, new = difference
            if name.startswith("inputs."):
                raise RunError(
                    "this folder holds a run on other patches or models", where=self.path,
                    why=f"{name.removeprefix('inputs.')}: it has {old}, asked for {new}",
                    hint="give what it was started with, choose another --out, or --overwrite",
                )  # fmt: skip
            raise RunError(
                "this folder holds a run with other settings", where=self.path,
                why=f"{name.removeprefix('config.')}: it has {old}, asked for {new}",
                hint="use --overwrite to discard it, or choose another --out",
            )  # fmt: skip

    def _note_environment(self) -> None:
        """A resume elsewhere is allowed, and written down."""
        path = self.path / "environment.json"
        if self.finished or not path.is_file():
            return
        first, now = read_object(path), json.loads(json.dumps(environment(), default=str))
        seen = [{k: v for k, v in first.items() if k != "resumed"}, *first.get("resumed", [])]
        if now not in seen:
            write_json(path, first | {"resumed": [*first.get("resumed", []), now]})

    def _refuse_remains(self) -> None:
        remains = [
            name
            for name in ("checkpoints", "model", "done.json", "log.jsonl")
            if (self.path / name).exists()
        ]
        if remains:
            raise RunError(
                "this folder holds something that is not a run", where=self.path,
                why=f"it has {', '.join(remains)} but no provenance.json",
                hint="use --overwrite to discard these, or choose another --out",
            )  # fmt: skip


# --- helpers -------------------------------------------------------------------------------


@contextmanager
def hold(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """`pathgen.commit.lock` for all processes that train together: the first has it for them."""
    with ExitStack() as stack:
        parallel.first(lambda: stack.enter_context(lock(folder, shared=shared)))
        yield


def _read_provenance(path: Path) -> Provenance:
    try:
        return Provenance.model_validate(read_object(path / "provenance.json"))
    except ValidationError as error:
        raise RunError(
            "provenance.json is damaged", where=path, why=str(error.errors()[0]["msg"]),
            hint="use --overwrite to start again",
        ) from error  # fmt: skip


def _finite(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
