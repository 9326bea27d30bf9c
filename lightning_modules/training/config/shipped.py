"""Configs by name: files of the user, and the recipes that are installed with the package."""

from __future__ import annotations

from pathlib import Path

from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.import_names import folder
from bnfree.names import did_you_mean
from bnfree.plugins import BUILT_IN

SUFFIXES = (".yaml", ".yml", ".json")
# What switches on the plugins of these kinds, of which the oldest have no overlay.
OPTIONS = {
    "sign_estimator": "model.backbone.estimator", "normalizer": "model.backbone.norm", "head": "model.backbone.head",
    "loss": "model.loss",
}  # fmt: skip


def shipped_configs() -> dict[str, Path]:
    """The shipped recipes and the overlays of plugins by name, sorted."""
    return {path.stem: path for place in shipped_folders() for path in sorted(place.glob("*.yaml"))}


def shipped_plugins() -> dict[str, Path]:
    """The overlays that switch one plugin on over any recipe, by name, sorted."""
    return {path.stem: path for path in sorted(shipped_folders()[1].glob("*.yaml"))}


def shipped_folders() -> list[Path]:
    """Where shipped configs lie: the recipes, and the overlays of plugins."""
    return [folder("configs"), folder("configs") / "plugins"]


def find_config(name: str | Path, beside: str | Path | None = None, given: str | None = None) -> Path:
    """The file that the name of a config stands for; `.yaml` may be left out.

    A file in the directory of the file that names it comes first, then one in the working directory, then a shipped
    recipe. What a shipped recipe names is looked for in the working directory first, too: an edited copy wins.

    Args:
        name: name of a shipped recipe, or a path.
        beside: directory of the file in which the name stands, such as a recipe's; None: a command line.
        given: what the user calls it, for the message; None: `config='NAME'`.

    Returns:
        The path, relative if it was given so and is one of the working directory's.

    Raises:
        InputError: no such file; the nearest name is in the message.

    Example:
        >>> find_config("quickstart").name
        'quickstart.yaml'
    """
    path, shipped = Path(name).expanduser(), shipped_folders()
    places = [Path(), *shipped]
    if beside is not None and Path(beside).resolve() not in [place.resolve() for place in shipped]:
        places.insert(0, Path(beside))
    files = [path] if path.suffix in SUFFIXES else [path, path.with_name(f"{path.name}.yaml")]
    for place in places:
        for file in files:
            if (place / file).is_file():
                return place / file
    raise InputError(f"{given or f'config={str(name)!r}'} does not exist; {_remedy(path, places[0])}")


def _remedy(path: Path, place: Path) -> str:
    for kind, option in OPTIONS.items():
        if str(path) in BUILT_IN[kind]:
            return f"this plugin has no overlay: give --{option}={path} instead."
    folders = dict.fromkeys((place / path.parent, Path(), Path("configs")))
    found = [
        file.relative_to(place) if file.is_relative_to(place) else file for f in folders for file in f.glob("*.y*ml")
    ]
    return (
        did_you_mean(str(path), [*map(str, found), *shipped_configs()])
        or did_you_mean(path.stem, shipped_configs())
        or "give the path of a YAML file, or the name of a shipped one: bnfree configs lists them."
    )


def description(config: Path) -> str:
    """The first sentence of the comment at the head of a config, below the line with its command; or nothing."""
    comments = []
    for line in config.read_text().splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# ").strip())
    text = " ".join(line for line in comments if not line.startswith("bnfree "))
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]


def copy_config(name: str, to: str | Path | None = None) -> Path:
    """Writes a shipped recipe into the working directory, to be edited: there it wins over the shipped one.

    Args:
        name: of the recipe.
        to: a file or a directory; None: `NAME.yaml`.

    Returns:
        The file.

    Raises:
        InputError: no recipe of that name, or a file that exists.
    """
    known = shipped_configs()
    if Path(name).stem not in known or len(Path(name).parts) > 1:
        remedy = did_you_mean(name, known) or "bnfree configs lists all."
        raise InputError(f"there is no shipped config {name!r}; {remedy}")
    source = known[Path(name).stem]
    target = Path(to or source.name).expanduser()
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise InputError(
            f"{str(target)!r} exists and is not overwritten; give another name: bnfree configs copy NAME TO."
        )
    try:
        with whole_file(target) as unfinished:
            unfinished.write_text(source.read_text())
    except OSError as error:
        raise InputError(f"{str(target)!r} cannot be written ({error.strerror}); give another place.") from error
    return target
