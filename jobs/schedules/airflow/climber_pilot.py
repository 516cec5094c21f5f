"""One run of `climber daily` for each day, by Airflow: the day is the run's, so a back-fill runs the days in their order."""

from datetime import datetime, timedelta, timezone

from airflow import DAG
from airflow.operators.bash import BashOperator

CONFIG = "/etc/climber-pilot/climber-pilot.toml"

with DAG(
    dag_id="climber_pilot_daily",
    description="The day's log to a published model",
    schedule="30 1 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=True,
    # Days build on each other.
    max_active_runs=1,
    default_args={
        "depends_on_past": True,
        "retries": 3,
        "retry_delay": timedelta(minutes=10),
    },
) as dag:
    BashOperator(
        task_id="daily",
        # A run that failed goes on where it was. Exit code 4, a model that the gate refused, is no failure of the day: the
        # task is skipped, which shows, and the next day goes on.
        bash_command=f"exec climber daily --config {CONFIG} --date {{{{ ds }}}}",
        skip_on_exit_code=4,
    )
