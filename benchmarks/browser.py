"""Headless Chromium, where it is installed: the command that opens a page without asking the network for anything."""

from __future__ import annotations

import shutil
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""Path of the program, None where there is none."""


def headless(page: Path, profile: Path, *options: str) -> list[str]:
    """The command that opens a page with these options.

    Args:
        page: The file.
        profile: A folder for what the browser keeps; made where it is missing.
        options: Of Chromium, such as "--dump-dom".
    """
    return [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile}", *options, page.as_uri()),
    ]
