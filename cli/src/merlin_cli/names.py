"""Names of Studies in a cluster, from whatever a study is called."""

import re
from typing import Final

MAX_NAME: Final = 52
"""What the CRD allows: names of what is derived from a Study still fit 63 characters."""


def object_name(text: str, stamp: str = "") -> str:
    """Return a name of at most `MAX_NAME` lower-case letters, digits and dashes, with the stamp at its end."""
    ending = f"-{stamp}" if stamp else ""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return (plain[: MAX_NAME - len(ending)].strip("-") or "study") + ending
