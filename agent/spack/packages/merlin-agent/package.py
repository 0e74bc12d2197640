"""The agent as a Spack package, from the wheels that `make wheelhouse` collects; see docs/agent.md."""

from pathlib import Path

from spack.package import *


class MerlinAgent(Package):
    """Merlin's agent: runs the tasks of studies inside batch allocations."""

    # Spack's own way for what lies on no server that everybody reaches: the archive is found in the current directory, or in a mirror.
    manual_download = True
    url = f"file://{Path.cwd()}/merlin-agent-wheels-0.1.0.tar.gz"

    license("Apache-2.0")

    # The wheels are those of a platform and a Python version, so each site has a digest of its own: spack install --no-checksum.
    version("0.1.0")

    depends_on("python@3.11:", type=("build", "run"))

    def install(self, spec, prefix):
        """Make an environment of its own: modules that tasks load beside it don't meet its libraries, nor they theirs."""
        python = spec["python"].command
        python("-m", "venv", prefix)
        (wheel,) = Path(self.stage.source_path).rglob("merlin_agent-*.whl")
        own = Executable(join_path(prefix.bin, "python"))
        own("-m", "pip", "install", "--no-index", f"--find-links={wheel.parent}", f"merlin-agent=={spec.version}")
