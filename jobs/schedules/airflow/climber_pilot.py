"""Every night each day up to the run's that is missing, by Airflow 3: `climber` knows which ones, so Airflow has nothing to catch up."""

from datetime import datetime, timedelta, timezone

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

CONFIG = "/etc/climber-pilot/climber-pilot.toml"
# On a disk: /tmp is often memory, and what does not fit into memory goes there.
TMPDIR = "/var/lib/climber-pilot/tmp"

with DAG(
    dag_id="climber_pilot_daily",
    description="The day's log to a published model",
    # A run stands for the interval before it: `ds` is yesterday. A bare cron expression would make it the day of the run, whose log
    # is not complete.
    schedule=CronDataIntervalTimetable("30 1 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    # Days build on each other.
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=10)},
) as dag:
    BashOperator(
        task_id="daily",
        # A run that failed goes on where it was. Exit code 4, a model that the gate refused, and 5, a day that was left out, are no
        # failures to try again: the task is skipped, which shows, and the next night goes on.
        bash_command=f"mkdir -p {TMPDIR} && exec climber daily --config {CONFIG} --to {{{{ ds }}}}",
        env={"TMPDIR": TMPDIR},
        append_env=True,
        skip_on_exit_code=[4, 5],
    )
