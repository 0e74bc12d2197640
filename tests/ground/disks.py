"""A disk of its own: what was not synced to it is not in its image, so a copy of that is what a loss of power leaves."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.ground.needs import missing

_SIZE = 256 << 20


class Disk:
    """An ext4 in a file, mounted."""

    def __init__(self, image: Path, mounted: Path) -> None:
        """Keep where both are."""
        self.image, self.mounted = image, mounted

    def lose_power(self) -> None:
        """Have the disk be as it is now for who mounts it again, without what the kernel still holds. Nothing may use it."""
        then = self.image.with_suffix(".then")
        shutil.copyfile(self.image, then)
        subprocess.run(["umount", self.mounted], check=True)
        then.replace(self.image)
        subprocess.run(["mount", "-o", "loop", self.image, self.mounted], check=True)


@contextlib.contextmanager
def a_disk(image: Path, mounted: Path) -> Iterator[Disk]:
    """Make one, and mount it."""
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(_SIZE)
    made = subprocess.run(["mkfs.ext4", "-q", image], capture_output=True, text=True, check=False)
    if made.returncode == 0:
        made = subprocess.run(["mount", "-o", "loop", image, mounted], capture_output=True, text=True, check=False)
    if made.returncode:
        missing(f"a disk of its own needs root and loop devices: {made.stderr.strip()}")
    try:
        yield Disk(image, mounted)
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=False)
