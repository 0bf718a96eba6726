"""How a task fails: each error says what is wrong, where, and what to do."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import AirflowException

from workflow_results.result import WorkflowResult


class WorkflowTaskError(AirflowException):
    """Base of all errors of this package in Airflow. Airflow retries the task, if it has retries left."""


class WorkflowNotTriggered(WorkflowTaskError):
    """The trigger was not confirmed by Kafka; the cause is chained."""


class WorkflowTimedOut(WorkflowTaskError):
    """No result came in time."""


class WorkflowResultUnreadable(WorkflowTaskError):
    """The topic cannot be read, or a record is no longer there."""


class WorkflowWaitKilled(WorkflowTaskError):
    """The task was told to end while it waited."""


class WorkflowTaskFailed(WorkflowTaskError):
    """The workflow decided that it failed.

    Attributes:
        result: what it said.
    """

    def __init__(self, message: str, result: WorkflowResult) -> None:
        """Keep the result beside the message; both in ``args``, so that it survives pickling."""
        super().__init__(message, result)
        self.result = result

    def __str__(self) -> str:
        """Tell the message alone."""
        return str(self.args[0])


class WorkflowTaskErrored(WorkflowTaskFailed):
    """The workflow broke; ``result.error`` says on what."""


def raise_for_status(result: WorkflowResult) -> WorkflowResult:
    """Return the result if the workflow succeeded.

    Raises:
        WorkflowTaskFailed: its status is failure.
        WorkflowTaskErrored: its status is error.
    """
    if result.status == "success":
        return result
    where = f"topic {result.topic}, partition {result.partition}, offset {result.offset}"
    text = (
        f"workflow {result.workflow_id}, run {result.workflow_run_id}, ended with status {result.status}: "
        f"{result.error or 'it gave no error text'} (correlation ID {result.correlation_id}, {where}). "
    )
    if result.status == "failure":
        raise WorkflowTaskFailed(text + "It decided so itself: look at its result there.", result)
    raise WorkflowTaskErrored(text + "It broke: look at the workflow's own logs.", result)
