"""The terminal or file that results are printed to."""

import os
import sys

from rich.console import Console


class Output(Console):
    """Standard output; where nobody reads it any more, what runs goes on in silence."""

    def on_broken_pipe(self) -> None:
        """Go quiet instead of ending the process, as rich would: the reader left, the study is still wanted."""
        self.quiet = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
