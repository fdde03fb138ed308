"""Folders named by settings: on disk, or inside an installed package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rlcore.errors import UserError

PACKAGE = "package:"


def model_folder(path: str | Path, where: str, files: tuple[str, ...]) -> Path:
    """Return the folder that ``path`` names and that holds all ``files``.

    ``package:NAME`` is the nearest folder with these files inside an installed package, which is not imported.

    Args:
        path: a folder, or ``package:NAME``.
        where: the setting, for messages.
        files: names of files that the folder must hold.

    Raises:
        UserError: there is no such folder or package, or a file is missing in it.
    """
    name = str(path).removeprefix(PACKAGE)
    if not str(path).startswith(PACKAGE):
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(f"{where}: {folder} is no folder; expected a folder or package:NAME")
        if missing := [file for file in files if not (folder / file).is_file()]:
            raise UserError(f"{where}: {folder} has no {missing[0]}; expected a folder with {', '.join(files)}")
        return folder
    module = name.replace("-", "_")
    spec = find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{where}: package '{name}' is not installed; expected package:NAME of an installed package")
    roots = [Path(root) for root in spec.submodule_search_locations]
    found = [hit.parent for root in roots for hit in sorted(root.rglob(files[0]))]
    fitting = [folder for folder in found if all((folder / file).is_file() for file in files)]
    if not fitting:
        raise UserError(f"{where}: package '{name}' has no folder with {', '.join(files)}")
    return min(fitting, key=lambda folder: len(folder.parts))
