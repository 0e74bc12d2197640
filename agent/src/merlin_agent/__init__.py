"""merlin-agent: runs the tasks of studies inside a batch allocation.

Read in the order in which a chunk travels:

    config, allocation     what the agent is told, and what the batch job says of itself
    agent                  the parts, their start and their end
    broker, link, post     the seam to NATS, its adapter, sealed messages over it
    demand, intake         what to take, and fetching it
    studies, binding       plan, workspace and mark of a study
    claim, life            the permission to run a chunk, and what follows from it
    chunkrun, slots        which task next, and the threads that run them
    execute, sampling      one task: files (`files`, `rows`, `npy`), process (`launch`), outcome
    record, report, beat   what is told: to the workspace, to the operator, of ourselves
    presence, reaper       how others know that nothing of ours runs any more

Deciding modules (`allocation`, `demand`, `chunkrun`, `report`) take numbers and return data. Only `link` speaks NATS. Three kinds of
code never mix: the event loop (never blocks), slots' threads (always may), and the recorder's thread (the one that syncs).
"""
