"""The whole loop: Airflow → Kafka → agent → LangGraph → sidecar → Kafka → Airflow.

Called by `make demo-airflow`. Exit status 0 only if each task ended as it should.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import airflow_home  # of the tests, before anything of Airflow: it gives Airflow a home of its own
from kafka import Kafka  # of the tests: a real broker, which ends with this process

from workflow_results import Sidecar

DEMO = Path(__file__).parent
os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(DEMO / "dags")
os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "CRITICAL"  # the DAGs' callbacks tell what happens


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}", flush=True)


def start_agent(brokers: str, socket_path: str) -> subprocess.Popen[bytes]:
    """Start the agent as a process of its own, as in production."""
    command = [sys.executable, "-m", "workflow_results.agent", "run", "graph:build"]
    flags = ["--brokers", brokers, "--socket", socket_path, "--workflow-id", "order-review", "--log-level", "error"]
    return subprocess.Popen([*command, *flags], env={**os.environ, "PYTHONPATH": str(DEMO)})


def run_dags() -> bool:
    """Run both DAGs; tell whether they ended as they should."""
    from airflow.dag_processing.dagbag import DagBag
    from airflow.utils.db import initdb

    initdb()
    bag = DagBag(DEMO / "dags")
    assert not bag.import_errors, bag.import_errors
    say("4. Run a DAG: two orders are reviewed, and the next task uses the reviews")
    reviewed = bag.dags["order_review"].test()
    shipped = xcom(reviewed, "ship")
    print(f"   the last task returned {shipped}")
    say("5. Run a DAG whose workflow breaks: its task fails, with the workflow's own error")
    broken = bag.dags["broken_review"].test()
    return (reviewed.state, broken.state) == ("success", "failed") and shipped == {"A-1": "approved", "B-2": "declined"}


def xcom(run: Any, task_id: str) -> Any:
    """Return what a task of a finished run returned."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        found = XComModel.get_many(run_id=run.run_id, key="return_value", task_ids=task_id, dag_ids=run.dag_id)
        row = session.execute(found).first() if found is not None else None
    return None if row is None else XComModel.deserialize_value(row[0])


def main() -> int:
    """Start the parts, run the DAGs, end the parts."""
    say("1. Start Kafka")
    kafka = Kafka()
    airflow_home.connect("kafka_default", kafka.addr)
    for topic in ("workflow-triggers", "workflow-results"):
        kafka.create_topic(topic, 6)
    print(f"   {kafka.addr}, topics workflow-triggers and workflow-results")
    with tempfile.TemporaryDirectory(prefix="wr") as directory:
        say("2. Start the sidecar")
        with Sidecar(kafka.addr, data_dir=f"{directory}/data") as sidecar:
            print(f"   socket {sidecar.socket_path}")
            say("3. Start the agent, which runs a LangGraph graph for each trigger")
            agent = start_agent(kafka.addr, sidecar.socket_path)
            try:
                well = run_dags()
                say("6. Where each result is, as the outbox tells")
                with sidecar.client() as client:
                    for each in client.list():
                        print(f"   {each['status']:8} {each['state']:10} correlation ID {each['correlation_id']}")
            finally:
                agent.terminate()
                agent.wait(60)
    kafka.close()
    say("All ended as it should. Next: examples/python/README.md" if well else "THE DEMO FAILED: see above")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
