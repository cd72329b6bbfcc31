"""``archiver health``: one quick look for probes: Temporal, namespace, and a worker on every queue."""

from __future__ import annotations

from temporalio.client import Client

from activities.groups import parse_queues
from cli import queues, sweep_state
from cli.look import Data


def names_of(given: list[str]) -> list[str]:
    """Queues by their names or groups. Raises ``SettingsInvalid`` (usage)."""
    names = parse_queues(",".join(name.removeprefix("archiver-") for name in given))
    return [queues.WORKFLOWS if name == "workflows" else f"archiver-{name}" for name in names]


async def health(client: Client, names: list[str] | None = None) -> Data:
    """The queues, and which of them nobody serves; where all queues are asked for, also sweeps that fail again and again.

    Raises ``RPCError``.
    A worker whose slots are all taken does not ask for work: a queue that nobody asks for work counts as served while a
    step is seen to run on it.
    """
    wanted = names or [queues.WORKFLOWS, *queues.ACTIVITY_QUEUES]
    states = await queues.read(client, wanted)
    unserved = await queues.unserved(client, states)
    rows = [state.as_data() | {"served": name not in unserved} for name, state in states.items()]
    # A probe of one worker asks for its queues: a SciCat that is out is no reason to start that worker again.
    failing = [] if names else await sweep_state.failing(client)
    return {"healthy": not unserved and not failing, "queues": rows, "unserved": unserved, "failing_sweeps": failing}


def lines(told: Data) -> list[str]:
    """A line per queue, and per sweep that fails."""
    rows = []
    for state in told["queues"]:
        how = "ok   " if state["served"] else "FAIL "
        said = f"{state['asking']} asking, about {state['waiting']} waiting" if state["served"] else "nobody serves it"
        if state["paused"]:
            said += f"; paused by {state['who']}: {state['reason']}"
        next_step = "" if state["served"] else f"   next: start  archiver worker --queues {_short(state['name'])}"
        rows.append(f"{how} {state['name']:<20} {said}{next_step}")
    rows += [f"FAIL  {sweep_state.line(state)}" for state in told["failing_sweeps"]]
    return rows


def _short(name: str) -> str:
    return "workflows" if name == queues.WORKFLOWS else name.removeprefix("archiver-")
