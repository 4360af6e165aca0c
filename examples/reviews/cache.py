"""Folders of the user's cache for what takes minutes to make, keyed by the settings behind it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

# Raise it when the code that fills the folders changes what it makes from the same settings.
RECIPE = 1


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pama_ops" / "align_reviews"


def cached(name: str, settings: Mapping[str, object], build: Callable[[Path], None]) -> Path:
    """Return the folder that ``build`` filled under these settings, building it if there is none.

    The folder appears under its final name in one rename, so that neither an interrupt nor a second
    process ever leaves half of one to be found.
    """
    description = json.dumps({**settings, "recipe": RECIPE}, sort_keys=True)
    key = hashlib.sha256(description.encode()).hexdigest()[:16]
    folder = cache_root() / f"{name}-{key}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        build(draft)
        (draft / "settings.json").write_text(description)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
