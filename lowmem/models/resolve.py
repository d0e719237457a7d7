"""From the name of a model to where its weights are: embedded, folder, run folder, or hub id."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from lowmem.config.load import load_run
from lowmem.config.run import RunConfig
from lowmem.errors import CheckpointError, ConfigError
from lowmem.models.embedded import EMBEDDED, embedded_folder
from lowmem.models.shapes import shape_names

SCALES_FILE = "scales.safetensors"


@dataclass(frozen=True)
class ModelFolder:
    """A transformers folder."""

    folder: Path


@dataclass(frozen=True)
class HubModel:
    """A model of the Hugging Face hub, downloaded or in its cache."""

    repository: str


@dataclass(frozen=True)
class RunFolder:
    """A folder that a run of ours left behind: config.yaml, and what was trained in model/."""

    folder: Path
    config: RunConfig

    @property
    def trained(self) -> Path:
        return self.folder / "model"

    @property
    def is_adapter(self) -> bool:
        return (self.trained / "adapter_config.json").is_file()

    @property
    def is_scales(self) -> bool:
        """The quantization scales of a base that is quantized when it is loaded."""
        return (self.trained / SCALES_FILE).is_file()


Location = ModelFolder | HubModel | RunFolder


def resolve(name: str) -> Location:
    """Where the model `name` is. An embedded name is converted to a folder on first use.

    Order: embedded names, existing folders, hub ids. Raises `ConfigError` with the nearest name that would
    work when a folder does not exist or holds no model.
    """
    if name in EMBEDDED:
        return ModelFolder(embedded_folder(name))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _folder(folder)
    if folder.is_file():
        raise ConfigError(f"model: {name} is a file; give the folder that holds config.json and the weights")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise ConfigError(f"model: there is no folder {name!r}; {what_works(name)}")
    return HubModel(name)


def what_works(name: str) -> str:
    """The sentence that ends every "no such model": the nearest name, and the kinds of names that exist."""
    candidates = (*EMBEDDED, *shape_names())
    short = name.lower().rpartition("/")[2]
    near = difflib.get_close_matches(short, candidates, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return (
        f"{hint}A model is an embedded name ({', '.join(EMBEDDED)}), a local folder, a run folder, or a hub "
        "id that is in the local hub cache or can be downloaded"
    )


def read_run(folder: Path) -> RunFolder:
    """The run in `folder`. Raises `CheckpointError` when its config is damaged or nothing is trained yet."""
    file = folder / "config.yaml"
    try:
        run = RunFolder(folder, load_run(file).config)
    except ConfigError as error:
        raise CheckpointError(f"{file} is not the config of a run: {error}") from error
    if not run.is_adapter and not run.is_scales and not (run.trained / "config.json").is_file():
        raise CheckpointError(
            f"run folder {folder} has no trained model in {run.trained.name}/ yet; "
            "let the run finish (the same train command resumes it), then use it"
        )
    return run


def _folder(folder: Path) -> Location:
    if (folder / "config.yaml").is_file():
        return read_run(folder)
    if (folder / "config.json").is_file():
        return ModelFolder(folder)
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"model: {folder} holds only an adapter; give the run folder it belongs to, with its config.yaml"
        )
    raise ConfigError(f"model: {folder} holds neither config.json nor config.yaml; {what_works(folder.name)}")
