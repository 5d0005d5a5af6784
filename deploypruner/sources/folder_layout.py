"""Which files of an image folder are which split and class, and what of the folder is not used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from deploypruner.errors import InputError
from deploypruner.reading import refuse_folder, walk
from deploypruner.recipe.data import DataSettings
from deploypruner.sources.batches import split

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Names of splits in any case, in the order in which one is preferred to validate on.
_TRAIN = ("train", "training", "trn")
_VALIDATION = ("val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation")
_BEHIND = re.compile(r"[-_ ]?(set|data|dataset|images|imgs|split|\d{4})$")
# What systems and editors leave behind begins with these.
_HIDDEN = (".", "__")
_NAMED = 3


@dataclass(frozen=True)
class Listing:
    """Files of one split.

    Args:
        files: Sorted by class, then by path.
        labels: Class index of each file, None without class folders.
        classes: Sorted class names, None without class folders.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...] | None

    def subset(self, rows: Tensor) -> Listing:
        """Return the listing of some rows, [n] int64."""
        chosen = rows.tolist()
        labels = None if self.labels is None else tuple(self.labels[i] for i in chosen)
        return Listing(tuple(self.files[i] for i in chosen), labels, self.classes)


@dataclass
class Finder:
    """Looks through folders, and remembers what is not used.

    Attributes:
        hidden: Files and folders whose names begin with a dot or two underscores.
        other: Files of other kinds, by suffix.
        unused: Images that belong to no split or class.
    """

    hidden: list[Path] = field(default_factory=list)
    other: dict[str, list[Path]] = field(default_factory=dict)
    unused: list[Path] = field(default_factory=list)

    def images(self, folder: Path, *, deep: bool = True) -> list[Path]:
        """Images in a folder and, if `deep`, in its folders, in path order; where links lead back, once."""
        found: list[Path] = []
        for where, folders, files in walk(folder):
            self.hidden += [Path(where, name) for name in (*folders, *files) if name.startswith(_HIDDEN)]
            folders[:] = sorted(name for name in folders if not name.startswith(_HIDDEN)) if deep else []
            for name in sorted(files):
                if not name.startswith(_HIDDEN):
                    self._sort(Path(where, name), found)
        return sorted(found)

    def _sort(self, file: Path, images: list[Path]) -> None:
        if not file.is_file():  # a pipe would be waited for, a link may lead nowhere
            self.other.setdefault("no regular files", []).append(file)
        elif file.name.lower().endswith(EXTENSIONS):
            images.append(file)
        else:
            self.other.setdefault(file.suffix.lower() or "without suffix", []).append(file)

    def remarks(self, root: Path) -> list[str]:
        """What was found below `root` and is not used, one sentence each."""
        said = []
        if self.hidden:
            said.append(f"'{root}': {_counted(self.hidden, root)} hidden by name not used")
        if self.other:
            kinds = ", ".join(f"{len(files)} {suffix}" for suffix, files in sorted(self.other.items()))
            files = [file for _, found in sorted(self.other.items()) for file in found]
            said.append(f"'{root}': files that are no images it reads ({kinds}: {_named(files, root)}) not used")
        if self.unused:
            said.append(f"'{root}': {_counted(self.unused, root, 'image')} outside the splits and classes not used")
        return said


def find_splits(root: Path, settings: DataSettings) -> tuple[Listing, Listing, list[str]]:
    """Find the training and the validation split of an image folder.

    A split is a folder called train, training, val, valid, validation, dev, test, testing or eval, in any case and
    perhaps with "set", "data", "images" or a year behind it; of several to validate on, the first in that order is
    taken. Folders that hold nothing but one folder with folders in it are looked through. Without splits, folders are
    classes.

    Args:
        root: The folder.
        settings: How much is set aside where there is no validation split.

    Returns:
        Both listings, and remarks: what was set aside, and whatever was found and is not used.

    Raises:
        InputError: No images, an empty class folder, splits with different classes.
    """
    finder, remarks = Finder(), list[str]()
    top = _unwrapped(root)
    for wrapper in (top.parents[i] for i in range(len(top.relative_to(root).parts))):
        finder.images(wrapper, deep=False)
    if top != root:
        remarks.append(f"'{root}' holds '{top.relative_to(root)}' alone, which is taken for the data")
    named = _named_splits(top)
    train = next((folder for folder in named if _split_name(folder) in _TRAIN), None)
    held_out = [folder for folder in named if _split_name(folder) in _VALIDATION]
    if not named:
        everything = _listing(top, finder)
        train_rows, val_rows, remark = split(len(everything.files), settings, str(top))
        return everything.subset(train_rows), everything.subset(val_rows), [*remarks, remark, *finder.remarks(root)]
    used = [folder for folder in (train, *held_out[:1]) if folder is not None]
    listings = [_listing(folder, finder) for folder in used]
    remarks += _left_out(top, used, finder)
    if len(used) == 1:
        train_rows, val_rows, remark = split(len(listings[0].files), settings, str(used[0]))
        listings = [listings[0].subset(train_rows), listings[0].subset(val_rows)]
        remarks.append(remark)
    elif listings[0].classes is not None and listings[1].classes is not None:
        _check_same_classes(listings[0].classes, listings[1].classes, root, names=[folder.name for folder in used])
    elif (listings[0].classes is None) != (listings[1].classes is None):
        bare = used[0 if listings[0].classes is None else 1]
        remarks.append(f"'{bare}' has no class folders: its images are unlabelled")
    return listings[0], listings[1], [*remarks, *finder.remarks(root)]


def _unwrapped(root: Path) -> Path:
    """The folder that has the splits or classes: below those that hold nothing but one folder with folders in it."""
    top, seen = root, {root.resolve()}
    while True:
        folders = _folders(top)
        if len(folders) != 1 or _named_splits(top) or _has_images(top) or not _folders(folders[0]):
            return top
        if folders[0].resolve() in seen:
            return top
        top = folders[0]
        seen.add(top.resolve())


def _has_images(folder: Path) -> bool:
    """Are there images in the folder itself?"""
    shown = (path for path in _entries(folder) if not path.name.startswith(_HIDDEN))
    return any(path.name.lower().endswith(EXTENSIONS) for path in shown)


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir() and not path.name.startswith(_HIDDEN)]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        refuse_folder(error)


def _named_splits(top: Path) -> list[Path]:
    """Folders with a split's name, training first, then those to validate on as preferred."""
    order = {name: i for i, name in enumerate((*_TRAIN, *_VALIDATION))}
    found = [folder for folder in _folders(top) if _split_name(folder) in order]
    if len(found) == 1 and len(_folders(top)) > 1 and not _folders(found[0]):
        return []  # a class of that name among others: the images lie in it without class folders
    return sorted(found, key=lambda folder: (order[_split_name(folder)], folder.name))


def _split_name(folder: Path) -> str:
    """ "Train", "train2017" and "train_set" are "train"."""
    return _BEHIND.sub("", folder.name.lower())


def _left_out(top: Path, used: Sequence[Path], finder: Finder) -> list[str]:
    """Splits and other folders that are not read, and images beside the splits."""
    said = [f"'{folder}' is not used" for folder in _folders(top) if folder not in used]
    finder.unused += finder.images(top, deep=False)
    return said


def _listing(folder: Path, finder: Finder) -> Listing:
    subfolders = _folders(folder)
    finder.hidden += [path for path in _entries(folder) if path.name.startswith(_HIDDEN)]
    per_class = [finder.images(path) for path in subfolders]
    if not any(per_class):
        files = finder.images(folder, deep=False)
        if not files:
            raise InputError(
                f"no images in '{folder}': looked for {', '.join(EXTENSIONS)} in it and in its class folders",
                hint="expected train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg, or images without classes",
            )
        return Listing(tuple(files), None, None)
    for path, found in zip(subfolders, per_class, strict=True):
        if not found:
            raise InputError(
                f"class folder '{path}' has no images; leaving it out would shift the class indices",
                hint=f"add images ({', '.join(EXTENSIONS)}) or delete the folder",
            )
    finder.unused += finder.images(folder, deep=False)
    labels = tuple(index for index, found in enumerate(per_class) for _ in found)
    names = tuple(path.name for path in subfolders)
    return Listing(tuple(file for found in per_class for file in found), labels, names)


def _check_same_classes(train: tuple[str, ...], val: tuple[str, ...], root: Path, *, names: Sequence[str]) -> None:
    for here, there, lacking in (
        (*names, set(train) - set(val)),
        (*names[::-1], set(val) - set(train)),
    ):
        if lacking:
            raise InputError(
                f"'{root}': {len(lacking)} classes of '{here}' are not in '{there}' (first: '{min(lacking)}')",
                hint="both splits must have the same class folders",
            )


def _counted(paths: Iterable[Path], root: Path, what: str = "entry") -> str:
    """ "3 images (a/b.png, c.png, ...)"."""
    unique = sorted(set(paths))
    many = what if len(unique) == 1 else {"entry": "entries"}.get(what, f"{what}s")
    return f"{len(unique)} {many} ({_named(unique, root)})"


def _named(paths: Sequence[Path], root: Path) -> str:
    names = [str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in paths[:_NAMED]]
    return ", ".join(names) + (", ..." if len(paths) > _NAMED else "")
