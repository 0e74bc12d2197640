"""The board writes what matters, at its pace, and neither an outage nor another study of the same name confuses it."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from kubernetes import client

from merlin_operator import cluster
from merlin_operator.view import StepView, StudyRef, StudyView
from tests.ground import ControlPlane, eventually_async
from tests.operating.test_study_arrival import STUDY
from tests.operating.views import ACCEPTED, REFUSED, RUNNING, SUCCEEDED, agent

pytestmark = pytest.mark.control_plane


@pytest.fixture
def api(restricted: client.Configuration, namespace: str) -> Iterator[cluster.Api]:
    """The API with the operator's rights."""
    made = cluster.Api(restricted, namespace)
    yield made
    made.close()


@contextlib.asynccontextmanager
async def writing(api: cluster.Api) -> AsyncIterator[cluster.ClusterBoard]:
    board = cluster.ClusterBoard(api)
    task = asyncio.create_task(board.run())
    try:
        yield board
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def submit(plane: ControlPlane, namespace: str, *names: str) -> list[StudyRef]:
    texts = [json.dumps({**STUDY, "metadata": {"name": name}}) for name in names]
    manifest = "\n---\n".join(texts)
    done = await asyncio.to_thread(plane.apply, manifest, "--output=json", namespace=namespace)
    found = json.loads(done.stdout)
    items = found.get("items", [found])
    return [StudyRef(namespace, each["metadata"]["name"], each["metadata"]["uid"]) for each in items]


def of(ref: StudyRef, view: StudyView, **changes: Any) -> StudyView:
    return replace(view, ref=ref, **changes)


async def written(board: cluster.ClusterBoard) -> None:
    """Wait until the board has written what it is to show."""

    async def all_is() -> bool:
        return all(board._statuses._shown[view.ref.uid].view == view for view in board.views)

    await eventually_async(all_is)


async def status(api: cluster.Api, name: str = "probe") -> dict[str, Any]:
    found: dict[str, Any] = (await api.study(name)).get("status", {})
    return found


def test_a_finished_study_ends_a_wait_and_cannot_be_changed(
    control_plane: ControlPlane, namespace: str, api: cluster.Api
) -> None:
    async def story() -> None:
        (ref,) = await submit(control_plane, namespace, "probe")
        async with writing(api) as board:
            await board.show([of(ref, ACCEPTED)], [])
            await written(board)
            for view in (RUNNING, SUCCEEDED):
                await board.show([of(ref, view)], [])
            waited = ("wait", "--for=condition=Finished", "study/probe", "--timeout=180s", "--namespace", namespace)
            await asyncio.to_thread(control_plane.kubectl, *waited)
            await written(board)
        assert api.traffic.status_writes == 2  # what was out of date when its turn came was never written
        patch = json.dumps({"spec": {"description": {"name": "other", "description": "another"}}})
        change = ("patch", "study", "probe", "--namespace", namespace, "--type=merge", "--patch", patch)
        refused = await asyncio.to_thread(control_plane.kubectl, *change, check=False)
        assert "what an accepted study computes cannot change" in refused.stderr
        shown = control_plane.kubectl("get", "studies", "--namespace", namespace).stdout.split()
        assert shown[shown.index("probe") + 1 :][:5] == ["Succeeded", "101", "0", "0", "101"]

    asyncio.run(story())


def test_what_the_server_stores_is_what_was_meant(
    control_plane: ControlPlane, namespace: str, api: cluster.Api
) -> None:
    async def story() -> None:
        (ref,) = await submit(control_plane, namespace, "probe")
        async with writing(api) as board:
            for view in (RUNNING, SUCCEEDED):
                await board.show([of(ref, view)], [])
                wanted = view.done
                await eventually_async(lambda: _done(api, wanted))  # noqa: B023 - awaited in this turn
            await written(board)
        found = await status(api)
        assert found == board._statuses._shown[ref.uid].status
        assert "rate" not in found

    asyncio.run(story())


async def _done(api: cluster.Api, wanted: int) -> bool:
    found: int | None = (await status(api)).get("counts", {}).get("done")
    return found == wanted


def test_a_study_is_written_at_most_once_a_second_and_not_at_all_without_news(
    control_plane: ControlPlane, namespace: str, api: cluster.Api
) -> None:
    async def story() -> None:
        (ref,) = await submit(control_plane, namespace, "probe")
        async with writing(api) as board:
            started, done = time.monotonic(), 0
            while api.traffic.status_writes < 3:
                done += 1
                await board.show([of(ref, RUNNING, steps=(StepView("sim", 10_000, succeeded=done),))], [])
                await asyncio.sleep(0.05)
            assert api.traffic.status_writes <= time.monotonic() - started + 1
            await written(board)
            before = api.traffic.status_writes
            for _ in range(30):
                await board.show([of(ref, RUNNING, steps=(StepView("sim", 10_000, succeeded=done),))], [])
                await asyncio.sleep(0.05)
            assert api.traffic.status_writes == before
        assert await _done(api, done)

    asyncio.run(story())


def test_many_studies_share_twenty_writes_a_second_and_what_has_ended_goes_first(
    control_plane: ControlPlane, namespace: str, api: cluster.Api
) -> None:
    async def story() -> None:
        refs = await submit(control_plane, namespace, *(f"probe-{number}" for number in range(40)))
        *others, refused, late = refs
        async with writing(api) as board:
            started = time.monotonic()
            await board.show([of(ref, RUNNING) for ref in refs], [])

            async def begun() -> bool:
                return api.traffic.status_writes > 0

            await eventually_async(begun)
            before = api.traffic.status_writes
            await board.show([*(of(ref, RUNNING) for ref in others), of(refused, REFUSED), of(late, SUCCEEDED)], [])
            await written(board)
            assert api.traffic.status_writes <= 20 * (time.monotonic() - started) + 1
        assert (await status(api, late.name))["phase"] == "Succeeded"
        assert (await status(api, refused.name))["phase"] == "Refused"
        stored = {each["metadata"]["name"]: int(each["metadata"]["resourceVersion"]) for each in await api.studies()}
        order = sorted(stored, key=stored.__getitem__)
        assert {refused.name, late.name} <= set(order[: before + 3]), "after the one that was being written"

    asyncio.run(story())


def test_a_spec_that_changed_after_it_was_compiled_is_not_accepted(
    control_plane: ControlPlane, namespace: str, api: cluster.Api
) -> None:
    async def story() -> None:
        (ref,) = await submit(control_plane, namespace, "probe")
        changed = json.loads(json.dumps(STUDY))
        changed["spec"]["study"][0]["run"]["cmd"] = "echo changed"
        await asyncio.to_thread(control_plane.apply, json.dumps(changed), namespace=namespace)
        async with writing(api) as board:
            await board.show([of(ref, ACCEPTED)], [])
            await asyncio.sleep(1.5)
            assert await status(api) == {}
            await board.show([of(ref, ACCEPTED, generation=2)], [])
            await eventually_async(lambda: _observed(api, 2))

    asyncio.run(story())


async def _observed(api: cluster.Api, generation: int) -> bool:
    return (await status(api)).get("observedGeneration") == generation


def test_acceptance_is_refused_for_an_object_that_changed_since_it_was_read(
    control_plane: ControlPlane, namespace: str, api: cluster.Api
) -> None:
    async def story() -> None:
        (ref,) = await submit(control_plane, namespace, "probe")
        board = cluster.ClusterBoard(api)
        view = of(ref, ACCEPTED)
        await board.show([view], [])
        shown = board._statuses._shown[ref.uid]
        await board._statuses._read(view, shown)
        change = ("label", "study", "probe", "--namespace", namespace, "some=label")
        await asyncio.to_thread(control_plane.kubectl, *change)
        with pytest.raises(cluster.ApiError, match="422"):
            await board._statuses._patch(view, shown)
        assert await board._statuses._write(view)  # it is still the generation that was compiled, read or not
        await board._statuses._write(view)
        assert await _observed(api, 1)

    asyncio.run(story())


def test_the_status_of_a_deleted_study_never_lands_on_another_one_of_its_name(
    control_plane: ControlPlane, namespace: str, api: cluster.Api
) -> None:
    async def story() -> None:
        (old,) = await submit(control_plane, namespace, "probe")
        async with writing(api) as board:
            await board.show([of(old, ACCEPTED)], [])
            await eventually_async(lambda: _observed(api, 1))
            delete = ("delete", "study", "probe", "--namespace", namespace)
            await asyncio.to_thread(control_plane.kubectl, *delete)
            (new,) = await submit(control_plane, namespace, "probe")
            await board.show([of(old, SUCCEEDED)], [])
            await asyncio.sleep(2.5)
            assert await status(api) == {}
            await board.show([of(new, RUNNING)], [])
            await eventually_async(lambda: _observed(api, 1))

    asyncio.run(story())


def test_an_outage_of_the_api_server_neither_blocks_nor_loses(
    control_plane: ControlPlane, namespace: str, api: cluster.Api
) -> None:
    async def story() -> None:
        (ref,) = await submit(control_plane, namespace, "probe")
        async with writing(api) as board:
            await board.show([of(ref, ACCEPTED)], [])
            await eventually_async(lambda: _observed(api, 1))
            control_plane.kill_apiserver()
            started = time.monotonic()
            try:
                for done in range(20):
                    view = of(ref, RUNNING, steps=(StepView("sim", 100, succeeded=done),))
                    await board.show([view], [agent()])
                    await asyncio.sleep(0.1)
                assert time.monotonic() - started < 120

                async def failed() -> bool:
                    return api.traffic.errors > 0

                await eventually_async(failed)
            finally:
                await asyncio.to_thread(control_plane.restart_apiserver)
            await eventually_async(lambda: _done(api, 19))

    asyncio.run(story())


def test_the_last_news_are_written_when_the_operator_ends(
    control_plane: ControlPlane, namespace: str, api: cluster.Api
) -> None:
    async def story() -> None:
        (ref,) = await submit(control_plane, namespace, "probe")
        async with writing(api) as board:
            await board.show([of(ref, ACCEPTED)], [])
            await eventually_async(lambda: _observed(api, 1))
            await board.show([of(ref, SUCCEEDED)], [])
        await board.flush()
        assert (await status(api))["phase"] == "Succeeded"

    asyncio.run(story())


def test_allocations_come_and_go_with_their_agents(
    control_plane: ControlPlane, namespace: str, api: cluster.Api
) -> None:
    async def story() -> None:
        async with writing(api) as board:
            await board.show([], [agent("a1"), agent("a2", busy=2), agent("laptop", job="", host="here")])
            await eventually_async(lambda: _agents(api, [1, 2]))
            table = control_plane.kubectl("get", "allocations", "--namespace", namespace).stdout
            assert "hpc    slurm       77     2        4       2      Running" in table
        async with writing(api) as board:  # the next operator
            await board.show([], [agent("a1", left=True), agent("a2", left=True)])
            await board.show([], [agent("laptop", job="", host="here")])
            await eventually_async(lambda: _agents(api, [1]))

    asyncio.run(story())


async def _agents(api: cluster.Api, wanted: list[int]) -> bool:
    return sorted(each.get("status", {}).get("agentCount", 0) for each in await api.allocations()) == wanted


def test_an_allocation_that_the_server_refuses_does_not_hold_up_the_others(
    control_plane: ControlPlane, namespace: str, api: cluster.Api
) -> None:
    del control_plane, namespace

    async def story() -> None:
        async with writing(api) as board:
            for _ in range(20):
                await board.show([], [agent("a1", site="NOT_A_SITE"), agent("a2")])
                await asyncio.sleep(0.1)
            await eventually_async(lambda: _agents(api, [1]))

            async def refused() -> bool:
                return api.traffic.conflicts > 0

            await eventually_async(refused)
        assert api.traffic.conflicts == 1

    asyncio.run(story())


def test_a_study_is_deleted_when_its_time_is_over(
    control_plane: ControlPlane, namespace: str, api: cluster.Api
) -> None:
    """And no other of its name, nor one whose own studies still run."""

    async def story() -> None:
        due, parent, other = await submit(control_plane, namespace, "due", "parent", "other")
        child = of(StudyRef(namespace, "child", "5555"), RUNNING, parent=parent.uid)
        stale = of(replace(other, uid="6666"), SUCCEEDED, ttl=0)
        async with writing(api) as board:
            await board.show([of(due, SUCCEEDED, ttl=60), of(parent, SUCCEEDED, ttl=60), child, stale], [])

            async def gone() -> bool:
                return {each["metadata"]["name"] for each in await api.studies()} == {"parent", "other"}

            await eventually_async(gone)

    asyncio.run(story())
