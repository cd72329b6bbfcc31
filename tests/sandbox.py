"""The SDK's sandbox for workflows, which production does without: it refuses clocks, random numbers and I/O in workflows.

Replay and orchestration tests run in it, so that no workflow learns to do what a replay could not do again.
"""

from __future__ import annotations

from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

SANDBOX = SandboxedWorkflowRunner(
    restrictions=SandboxRestrictions.default.with_passthrough_modules(
        # Without state; imported anew they took half of the time that a workflow needs to begin.
        "archiver.model",
        "archiver.pids",
        "archiver.retrieval",
        "workflows.steps",
        "workflows.tasks",
        "workflows.visible",
    )
)
