"""The one file that an agent needs: where the broker is, how to know it, who we are to it, and the keys.

From ``merlin site credentials`` (which takes it out of the cluster) to ``merlin-agent --credentials``. It is JSON, and so YAML
too. All of it is secret: a file of mode 0600. ``merlin_site`` is the version of this form, by which it is told from a file
with a token or a password alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merlin_study.seal import Keyring

MARK: Final = "merlin_site"


class SiteFileError(ValueError):
    """It is no site file; the message names the fields at fault and quotes none."""


class SiteFile(BaseModel):
    """What stands in it. ``ca`` empty: the host's authorities; ``site`` empty: the cluster's name, as the agent finds it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    merlin_site: Literal[1] = 1
    server: str = Field(min_length=1)
    namespace: str = Field(min_length=1)
    site: str = ""
    user: str = Field(min_length=1)
    ca: str = ""
    operator_key: str
    password: str = Field(min_length=1, repr=False)
    seal_key: str = Field(repr=False)
    signing_key: str = Field(repr=False)

    def keyring(self) -> Keyring:
        """Return the keys of an agent: it signs as agents do, and believes only that operator.

        Raises:
            SiteFileError: one is no key.
        """
        try:
            return Keyring.from_hex(seal=self.seal_key, signing=self.signing_key, operator=self.operator_key)
        except ValueError as error:
            raise SiteFileError(f"a key: {error}") from None

    def encode(self) -> str:
        """Return the file's text."""
        return self.model_dump_json(indent=1) + "\n"


def parse(values: Mapping[str, Any]) -> SiteFile:
    """Return the site file that stands in a mapping.

    Raises:
        SiteFileError: it is none.
    """
    try:
        return SiteFile.model_validate(dict(values))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise SiteFileError(faults) from None
