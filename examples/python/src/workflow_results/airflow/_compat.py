"""What Airflow 2.11 and 3 have in different places, as far as Airflow's provider ``common.compat`` does not know it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, get_current_context
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

if TYPE_CHECKING or AIRFLOW_V_3_0_PLUS:
    from airflow.sdk import Context

    try:
        from airflow.sdk.exceptions import TaskDeferralTimeout
    except ImportError:  # Airflow 3.0 and 3.1
        from airflow.exceptions import TaskDeferralTimeout  # type: ignore[no-redef]

    def is_deferral_timeout(error: AirflowException) -> bool:
        """Tell whether a task is resumed with this error because its trigger said nothing in time.

        Airflow's sensor makes a time-out of its own of it, whose cause it is then.
        """
        return isinstance(error, TaskDeferralTimeout) or isinstance(error.__cause__, TaskDeferralTimeout)

    def first_reschedule(ti: Any, context: Context) -> datetime | None:
        """Return when a rescheduled sensor started for the first time since it was cleared; None: it starts now."""
        found: datetime | None = ti.get_first_reschedule_date(context)
        return found

else:
    from airflow.exceptions import TaskDeferralError
    from airflow.sensors.base import _orig_start_date
    from airflow.utils.context import Context

    def is_deferral_timeout(error: AirflowException) -> bool:
        """Tell it by the text of Airflow's scheduler: Airflow 2 has no class for it."""
        return isinstance(error, TaskDeferralError) and str(error) == "Trigger/execution timeout"

    def first_reschedule(ti: Any, context: Context) -> datetime | None:
        """Ask the database, as Airflow's own sensor does."""
        first_try = ti.max_tries - (ti.task.retries or 0) + 1
        return _orig_start_date(ti.dag_id, ti.task_id, ti.run_id, ti.map_index, first_try)


def current_context() -> Context | None:
    """Return the context of the task that runs; None: no task runs here."""
    try:
        return get_current_context()
    except (RuntimeError, AirflowException):  # Airflow 3, Airflow 2
        return None
