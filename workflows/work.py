"""What every workflow of one dataset does: stop when told, put right what a failure or a stop left, tell those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    FailureError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from archiver import model as m

from workflows.tasks import protected
from workflows.visible import explain, heard

TELL_AFTER = timedelta(seconds=30)
"""So long a job waits for what its dataset still has to clear; after that it is told the outcome without it."""
CLEAR_FOR = timedelta(minutes=15)
"""After so long what cannot be cleared is left to the sweep."""


class DatasetWork:
    """A subclass says the way of a dataset and its roll-back, and has ``@workflow.init`` and ``@workflow.run``."""

    def __init__(self, subscribers: list[str]) -> None:
        self.stage = "started"
        self.message = ""
        self.subscribers = list(subscribers)
        self.stop: m.StopRequest | None = None
        self.too_late = False
        self.only_clearing = False
        self.work: asyncio.Task[m.DatasetOutcome] | None = None

    @workflow.signal(description="Stop this dataset: {reason, who}. What is verified stays; it can be asked for again")
    def cancel(self, *given: object) -> None:
        """Stop as a cancel would, with a reason and a name, or none. A second one changes nothing."""
        request = heard(m.StopRequest, given or ({},))
        if self.stop is None and not self.too_late and request is not None:
            self.stop = request
            if self.work is not None:
                self.work.cancel(self.stop.as_text())

    @workflow.signal(description="A job asks to be told the outcome: {workflow_id}")
    def subscribe(self, *given: object) -> None:
        """Remember who wants to know the outcome; not where only clearing is left of a run that did not end well.

        A job that comes so late asked for a run of its own: it looks again, and begins one once this is over.
        """
        request = heard(m.Subscribe, given)
        if request is not None and not self.only_clearing and request.workflow_id not in self.subscribers:
            self.subscribers.append(request.workflow_id)

    async def to_its_end(self) -> m.DatasetOutcome:
        """Always ends with an outcome; only Temporal's own cancel ends it as cancelled, after the same roll-back."""
        self.work = asyncio.create_task(self.whole_way())
        if self.stop is not None:
            self.work.cancel()
        try:
            outcome = await self.work
        except (asyncio.CancelledError, ActivityError, ChildWorkflowError, ApplicationError) as error:
            if is_cancelled_exception(error) or self.stop is not None:
                self.stop = self.stop or m.StopRequest.from_text(workflow.cancellation_reason())
                outcome = await protected(self.roll_back(None))
            else:
                outcome = await protected(self.roll_back(explain(error)))
        await protected(self.tell(outcome))
        if outcome.outcome == "cancelled" and workflow.cancellation_reason() is not None:
            raise asyncio.CancelledError(outcome.message)
        return outcome

    async def clearing(self, outcome: m.DatasetOutcome, *work: Awaitable[str]) -> str:
        """Wait for what is left to be cleared, and return in words what could not be. SciCat has been told of the outcome.

        If that lasts, whoever waits for the outcome is told it meanwhile: no report waits for a store that cannot delete.
        """
        task = asyncio.gather(*work)
        await workflow.wait([task], timeout=TELL_AFTER.total_seconds())
        if not task.done():
            self.only_clearing = outcome.outcome not in m.GOOD
            if (parent := workflow.info().parent) is not None:
                self.subscribers.append(parent.workflow_id)
            await self.tell(outcome)
        return "".join(await task)

    def clearing_policy(self, policy: m.Policy) -> m.Policy:
        """The policy of steps that clear."""
        limit = min(policy.give_up_seconds, CLEAR_FOR.total_seconds())
        return policy.model_copy(update={"give_up_seconds": limit})

    async def tell(self, outcome: m.DatasetOutcome) -> None:
        """Signal the outcome to every job that asked. A job that ended meanwhile needs no answer."""
        while self.subscribers:
            subscriber = self.subscribers.pop(0)
            try:
                await workflow.get_external_workflow_handle(subscriber).signal("dataset_done", outcome)
            except FailureError:
                workflow.logger.info("job %s ended before it could be told", subscriber)

    # --- what a kind of work says -----------------------------------------------------------------------------------

    async def whole_way(self) -> m.DatasetOutcome:
        """The way of a dataset that nothing stops."""
        raise NotImplementedError

    async def roll_back(self, info: m.ErrorInfo | None) -> m.DatasetOutcome:
        """Put right what a failure, or with None a stop, left behind."""
        raise NotImplementedError
