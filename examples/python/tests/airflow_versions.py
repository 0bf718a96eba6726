"""What the tests need of Airflow's inside, which 2.11 and 3 have in different places. After `airflow_home` only."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import airflow_home  # noqa: F401 - before anything of Airflow
from airflow import __version__
from airflow.exceptions import AirflowException
from packaging.version import Version

VERSION = Version(__version__).release[:2]
AIRFLOW_3 = VERSION >= (3, 0)
STORE = VERSION >= (3, 3)  # the task state store, which outlives a try


def load_dags(folder: Path) -> dict[str, Any]:
    """Make the database and read the DAGs."""
    if VERSION >= (3, 2):
        from airflow.dag_processing.dagbag import DagBag
    else:
        from airflow.models.dagbag import DagBag
    from airflow.utils.db import initdb

    if AIRFLOW_3 and not STORE:
        _tell_callbacks_the_exception()
    initdb()
    bag = DagBag(folder)
    assert not bag.import_errors
    dags: dict[str, Any] = bag.dags
    return dags


def _tell_callbacks_the_exception() -> None:
    """Do what dag.test does since Airflow 3.3, and a worker always."""
    from airflow.sdk.execution_time import task_runner

    finalize = task_runner.finalize

    def telling(ti: Any, state: Any, context: Any, log: Any, error: Any = None) -> None:
        context["exception"] = error
        finalize(ti, state, context, log, error)

    task_runner.finalize = telling


def run_cleared(dag: Any, run: Any, task_id: str) -> None:
    """Clear a task and run it again, as a scheduler would."""
    from airflow.models.taskinstance import clear_task_instances
    from airflow.utils.session import create_session
    from airflow.utils.state import TaskInstanceState

    with create_session() as session:
        ti = run.get_task_instance(task_id, session=session)
        clear_task_instances([ti], session, **({} if AIRFLOW_3 else {"dag": dag}))
    with create_session() as session:
        ti = run.get_task_instance(task_id, session=session)
        ti.try_number += 1
        ti.state = TaskInstanceState.SCHEDULED
    _run_task(dag, run, task_id)


def resume_unanswered(dag: Any, run: Any, task_id: str) -> None:
    """Let the scheduler give up a task's trigger, and resume the task as it has it."""
    from airflow.jobs.job import Job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.utils.session import create_session
    from airflow.utils.state import TaskInstanceState

    with create_session() as session:
        ti = run.get_task_instance(task_id, session=session)
        ti.state = TaskInstanceState.DEFERRED
        ti.trigger_timeout = datetime.now(UTC) - timedelta(seconds=1)
    with create_session() as session:
        SchedulerJobRunner(Job()).check_trigger_timeouts(session=session)
    _run_task(dag, run, task_id)


def _run_task(dag: Any, run: Any, task_id: str) -> None:
    from airflow.utils.session import create_session

    with create_session() as session:
        ti = run.get_task_instance(task_id, session=session)
        if not AIRFLOW_3:
            from airflow.models import dag as inside

            ti.task = dag.task_dict[task_id]
            with contextlib.suppress(AirflowException):  # the task fails
                inside._run_task(ti=ti, inline_trigger=True, session=session)
            return
    from airflow.sdk.definitions import dag as definitions

    definitions._run_task(ti=ti, task=dag.task_dict[task_id], run_triggerer=True)


def xcom(dag_id: str, run_id: str, task_id: str, map_index: int, key: str) -> Any:
    """Return an XCom's value; None: there is none."""
    from airflow.models import xcom as models
    from airflow.utils.session import create_session

    which = {"run_id": run_id, "key": key, "task_ids": task_id, "dag_ids": dag_id, "map_indexes": map_index}
    with create_session() as session:
        if not AIRFLOW_3:
            row = models.XCom.get_many(**which, session=session).first()
            return None if row is None else row.value  # read from JSON already
        row = session.execute(models.XComModel.get_many(**which)).scalars().first()
        return None if row is None else models.XComModel.deserialize_value(row)


def over_the_database(arguments: dict[str, Any]) -> Any:
    """Return a trigger's arguments as a triggerer gets them."""
    if VERSION >= (3, 2):
        from airflow.sdk.serde import deserialize, serialize
    else:
        from airflow.serialization.serialized_objects import BaseSerialization

        serialize, deserialize = BaseSerialization.serialize, BaseSerialization.deserialize
    return deserialize(json.loads(json.dumps(serialize(arguments))))
