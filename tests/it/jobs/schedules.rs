//! The schedules that the project gives: each is checked by what will read it, where that is there.

use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::batch::v1::CronJob;

use crate::programs::program;

fn schedules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../jobs/schedules")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(schedules().join(name)).unwrap()
}

/// Whether `tool` can be started.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: there is no {tool} here");
    }
    found
}

/// The arguments behind `climber` in a schedule, with `--help` instead of work: they must be known to the program.
fn check_command(text: &str) {
    let (_, line) = text.split_once("climber ").unwrap_or_else(|| panic!("no command in {text}"));
    // The day is Airflow's to fill in, and behind the command stands what a shell does with what it says.
    let words =
        line.split_whitespace().take_while(|word| !word.starts_with("--date") && !word.starts_with("2>"));
    let output = program("climber").args(words).arg("--help").output().unwrap();
    assert!(output.status.success(), "{line}");
}

#[test]
fn units_pass_systemd_analyze() {
    let directory = tempfile::tempdir().unwrap();
    let names = ["climber-pilot-daily.service", "climber-pilot-daily.timer", "climber-pilot-refresh.service"];
    let climber = program("climber").get_program().to_str().unwrap().to_owned();
    for name in names {
        let text = read(&format!("systemd/{name}"));
        text.lines().filter(|line| line.starts_with("ExecStart=")).for_each(check_command);
        // The program and the user are not installed where this is tested.
        let text =
            text.replace("/usr/local/bin/climber", &climber).replace("User=climber-pilot", "User=root");
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    if !has("systemd-analyze") {
        return;
    }
    for name in names {
        let verified =
            Command::new("systemd-analyze").arg("verify").arg(directory.path().join(name)).output().unwrap();
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("climber-pilot")).collect();
        assert!(verified.status.success() && of_ours.is_empty(), "{name}: {said}");
    }
    let timer = read("systemd/climber-pilot-daily.timer");
    let calendar = timer.lines().find_map(|line| line.strip_prefix("OnCalendar=")).unwrap();
    let parsed = Command::new("systemd-analyze").args(["calendar", calendar]).output().unwrap();
    assert!(parsed.status.success(), "{calendar}: {}", String::from_utf8_lossy(&parsed.stderr));
}

#[test]
fn the_cron_job_holds_nothing_that_kubernetes_does_not_know() {
    let text = read("kubernetes/daily.yaml");
    let given: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
    // The types are generated from Kubernetes' own schema: what they do not know is lost on the way.
    let known: CronJob = serde_json::from_value(given.clone()).unwrap();
    assert_eq!(serde_json::to_value(&known).unwrap(), given);
    let job = known.spec.unwrap();
    assert_eq!(job.concurrency_policy.as_deref(), Some("Forbid"));
    let pod = job.job_template.spec.unwrap().template.spec.unwrap();
    let container = &pod.containers[0];
    let words = [container.command.clone().unwrap(), container.args.clone().unwrap()].concat();
    check_command(&words.join(" "));
}

#[test]
fn the_line_of_the_crontab_has_five_times_and_a_command() {
    let text = read("crontab");
    let lines: Vec<&str> =
        text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("MAILTO=")).collect();
    let [line] = lines[..] else { panic!("{lines:?}") };
    let times: Vec<&str> = line.split_whitespace().take(5).collect();
    assert!(times.iter().all(|time| *time == "*" || time.parse::<u8>().is_ok()), "{times:?}");
    // cron takes a bare per cent sign for the end of the line.
    assert!(line.match_indices('%').all(|(at, _)| line[..at].ends_with('\\')), "{line}");
    check_command(line);
}

#[test]
fn the_dag_is_python_and_is_loaded_where_airflow_is_there() {
    if !has("python3") {
        return;
    }
    let path = schedules().join("airflow/climber_pilot.py");
    let text = read("airflow/climber_pilot.py").replace("{CONFIG}", "/etc/climber-pilot/climber-pilot.toml");
    text.lines().filter(|line| line.contains("bash_command=")).for_each(check_command);
    let compile = "import ast, sys; ast.parse(open(sys.argv[1]).read())";
    let compiled = Command::new("python3").args(["-c", compile]).arg(&path).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let load = "import importlib.util, sys\n\
                if importlib.util.find_spec('airflow') is None: print('skipped: there is no airflow here'); sys.exit()\n\
                sys.path.insert(0, sys.argv[1]); import climber_pilot; assert climber_pilot.dag.task_ids == ['daily']";
    let loaded = Command::new("python3").args(["-c", load]).arg(path.parent().unwrap()).output().unwrap();
    eprint!("{}", String::from_utf8_lossy(&loaded.stdout));
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
}
