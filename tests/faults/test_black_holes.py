"""A host that fails everything at once, beside a sound one: it is quarantined, and what it failed succeeds elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from tests.faults.rig import PATIENT, a_rig, linger
from tests.ground import Broker, eventually


def test_a_host_without_the_program_is_quarantined_and_costs_no_task(broker: Broker, tmp_path: Path) -> None:
    """Its tasks end with 127 in no time, which is final for a task; on the other host they succeed.

    Until it is quarantined the sound host takes its time, so that work is left however late the broken one has come. Nobody
    counts as lost: if the sound one did, the broken one would be the only one to do the work, and be released.
    """
    program = tmp_path / "bin" / "simulate"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{linger(tmp_path)}\n")
    program.chmod(0o755)
    with a_rig(broker, tmp_path, tasks=250, cmd="simulate || exit", timing=PATIENT) as rig:
        rig.operator()
        sound = {"PATH": f"{program.parent}:{os.environ['PATH']}", "SLURMD_NODENAME": "sound"}
        rig.agent(environ=sound)
        rig.until_done(3)
        broken = rig.agent(environ={"SLURMD_NODENAME": "broken"})
        eventually(lambda: b"quarantined this host" in broken.log.read_bytes(), message="it is quarantined")
        rig.hurry.touch()
        rig.finish()
        assert rig.succeeded(), rig.view()
        assert sum(step["lost"] for step in rig.view()["steps"]) > 0
        assert not rig.view()["first_failures"]
