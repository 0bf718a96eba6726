"""An Airflow of the tests' own. To be imported before anything of Airflow is."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

assert "airflow" not in sys.modules, "Airflow has been imported already, with another home"

HOME = Path(tempfile.mkdtemp(prefix="wr-airflow-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

DAGS = Path(__file__).parent / "dags"

os.environ.update(
    {
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }
)


def connect(name: str, brokers: str) -> None:
    """Define a connection of type kafka. Such a variable is what a deployment may use as well."""
    value = {"conn_type": "kafka", "extra": {"bootstrap.servers": brokers, "group.id": "unused"}}
    os.environ[f"AIRFLOW_CONN_{name.upper()}"] = json.dumps(value)
