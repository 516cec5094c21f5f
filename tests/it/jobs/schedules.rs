//! The project's schedules: each one is checked by the tool that reads it, if that is installed.

use std::path::PathBuf;
use std::process::Command;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::PodSpec;

use super::service;
use crate::programs::program;

/// Returns the repository. Tests run in their crate; a path fixed at build time would be wrong for a clone that shares the build.
fn repository() -> PathBuf {
    std::env::current_dir().unwrap().parent().unwrap().to_owned()
}

fn schedules() -> PathBuf {
    repository().join("jobs/schedules")
}

fn read(name: &str) -> String {
    let path = schedules().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Prints that `what` is not tested here.
fn skipped(what: &str) {
    testkit::skipped(what, "such tool");
}

/// True if `tool` can be started; otherwise prints a notice.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        testkit::skipped("a schedule", tool);
    }
    found
}

/// Runs a schedule's command with `--help` instead of work: the program must know its arguments.
fn check_command(text: &str) {
    let at = ["climber ", "pipeline "].into_iter().find_map(|name| Some((name, text.find(name)?)));
    let (name, at) = at.unwrap_or_else(|| panic!("no command in {text}"));
    // Airflow fills in the day, and shell redirections follow the command.
    let words = text[at + name.len()..].split_whitespace();
    let words = words.take_while(|word| !word.starts_with("2>") && !word.contains('{'));
    let mut words: Vec<&str> = words.collect();
    if words.last() == Some(&"--to") {
        words.push("yesterday");
    }
    let output = program(name.trim()).args(words).arg("--help").output().unwrap();
    assert!(output.status.success(), "{text}");
}

const UNITS: [&str; 5] = [
    "climber-pilot-daily.service",
    "climber-pilot-daily.timer",
    "climber-pilot-refresh.service",
    "climber-pilot-consume.service",
    "climber-pilot-failed@.service",
];

/// Returns the value of a setting, which occurs once in the unit.
fn setting<'a>(unit: &'a str, key: &str) -> &'a str {
    let found: Vec<&str> =
        unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect();
    let [value] = found[..] else { panic!("{key}: {found:?}") };
    value
}

fn seconds(text: &str) -> u64 {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap());
    number.parse::<u64>().unwrap()
        * [("s", 1), ("min", 60), ("h", 3_600)].iter().find(|u| u.0 == unit).unwrap().1
}

#[test]
fn units_pass_systemd_analyze() {
    let directory = tempfile::tempdir().unwrap();
    let built = |name: &str| program(name).get_program().to_str().unwrap().to_owned();
    for name in UNITS {
        let text = read(&format!("systemd/{name}"));
        let commands = text.lines().filter(|line| line.starts_with("ExecStart=/usr/local/bin"));
        commands.for_each(check_command);
        // The programs and the user are not installed on the test machine.
        let text = text
            .replace("/usr/local/bin/climber", &built("climber"))
            .replace("/usr/local/bin/pipeline", &built("pipeline"))
            .replace("User=climber-pilot", "User=root");
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    for name in UNITS.into_iter().filter(|name| name.ends_with(".service") && !name.contains('@')) {
        let unit = read(&format!("systemd/{name}"));
        // A restarting unit becomes `failed`, and raises an alarm, only after too many starts, so that limit must be reachable.
        let (interval, burst) = (setting(&unit, "StartLimitIntervalSec"), setting(&unit, "StartLimitBurst"));
        let starts = burst.parse::<u64>().unwrap() * seconds(setting(&unit, "RestartSec"));
        assert!(starts < seconds(interval), "{name}: {burst} starts in {interval} never happen");
        assert_eq!(setting(&unit, "OnFailure"), "climber-pilot-failed@%n.service", "{name}");
        // Spilled files go to a disk, not to memory.
        assert_eq!(setting(&unit, "Environment"), "TMPDIR=%S/climber-pilot/tmp", "{name}");
        assert!(setting(&unit, "StateDirectory").contains("climber-pilot/tmp"), "{name}");
    }
    if !has("systemd-analyze") {
        return;
    }
    for name in UNITS {
        let name = name.replace('@', "@climber-pilot-daily");
        let path = directory.path().join(&name);
        if !path.exists() {
            std::fs::copy(directory.path().join("climber-pilot-failed@.service"), &path).unwrap();
        }
        let verified = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("climber-pilot")).collect();
        assert!(verified.status.success() && of_ours.is_empty(), "{name}: {said}");
    }
    let timer = read("systemd/climber-pilot-daily.timer");
    let calendar = timer.lines().find_map(|line| line.strip_prefix("OnCalendar=")).unwrap();
    let parsed = Command::new("systemd-analyze").args(["calendar", calendar]).output().unwrap();
    assert!(parsed.status.success(), "{calendar}: {}", String::from_utf8_lossy(&parsed.stderr));
}

/// Runs the daily unit in a systemd of its own, in a namespace of its own; without a log, the unit fails each time.
#[test]
fn onfailure_fires() {
    let systemd = "/usr/lib/systemd/systemd";
    if !std::path::Path::new(systemd).exists() || !has("unshare") {
        return skipped(&format!("there is no {systemd} here, or no unshare: OnFailure is not tried"));
    }
    for (name, log, runs) in [("fails", None, 4), ("is misconfigured", Some("[kafka]\nunknown = 1\n"), 1)] {
        let workspace = service(1);
        std::fs::remove_file(workspace.path("events/2026-01-01.csv")).unwrap();
        if let Some(more) = log {
            let config = std::fs::read_to_string(workspace.path("config.toml")).unwrap();
            workspace.write("config.toml", format!("{config}{more}"));
        }
        let units = workspace.path("config/systemd/user");
        std::fs::create_dir_all(&units).unwrap();
        let (told, counted) = (workspace.path("told"), workspace.path("counted"));
        let climber = program("climber");
        // Settings that need a whole machine are removed, pauses are shorter, and the day is the existing one.
        let unit = read("systemd/climber-pilot-daily.service")
            .lines()
            .filter(|line| {
                let left_out = ["User=", "Protect", "Private", "NoNew", "After=", "Wants=", "Nice="];
                !left_out.iter().any(|key| line.starts_with(key))
            })
            .map(|line| match line.split_once('=') {
                Some(("ExecStart", _)) => format!(
                    "ExecStart={} daily --config {} --to 2026-01-01",
                    climber.get_program().to_str().unwrap(),
                    workspace.path("config.toml").display()
                ),
                Some(("RestartSec", _)) => "RestartSec=100ms".into(),
                Some(("StateDirectory", _)) => {
                    format!("ExecStartPre=/bin/sh -c 'echo run >> {}'", counted.display())
                }
                Some(("Environment", _)) => format!("Environment=TMPDIR={}", std::env::temp_dir().display()),
                _ => line.to_owned(),
            })
            .collect::<Vec<_>>()
            .join("\n");
        std::fs::write(units.join("climber-pilot-daily.service"), unit).unwrap();
        let failed =
            format!("[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo %i >> {}'\n", told.display());
        std::fs::write(units.join("climber-pilot-failed@.service"), failed).unwrap();
        let target = "[Unit]\nWants=climber-pilot-daily.service\n";
        std::fs::write(units.join("default.target"), target).unwrap();
        std::fs::create_dir_all(workspace.path("run")).unwrap();
        let script = format!(
            "umount -l /sys/fs/cgroup; mount -t tmpfs t /sys/fs && mkdir /sys/fs/cgroup && mount -t cgroup2 c /sys/fs/cgroup && \
             mkdir -p /sys/fs/cgroup/onfailure-$$ && echo $$ > /sys/fs/cgroup/onfailure-$$/cgroup.procs && \
             mount -t tmpfs t /run && mkdir -p /run/systemd/system && \
             (timeout 60 {systemd} --user & manager=$!; \
              n=0; until [ -e '{}' ] || [ $n -gt 500 ]; do sleep 0.1; n=$((n+1)); done; sleep 1; kill $manager; wait $manager); \
             echo $$ > /sys/fs/cgroup/cgroup.procs; find /sys/fs/cgroup/onfailure-$$ -depth -type d -exec rmdir {{}} +",
            told.display()
        );
        let ran = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", &script])
            .env("XDG_RUNTIME_DIR", workspace.path("run"))
            .env("XDG_CONFIG_HOME", workspace.path("config"))
            .env("SYSTEMD_LOG_TARGET", "console")
            .output()
            .unwrap();
        let Ok(counted) = std::fs::read_to_string(&counted) else {
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            return skipped(&format!("systemd does not run here: OnFailure is not tried ({})", said.trim()));
        };
        let told = std::fs::read_to_string(&told).unwrap_or_default();
        assert_eq!(told.trim(), "climber-pilot-daily.service", "a unit that {name} tells nobody: {counted}");
        assert_eq!(counted.lines().count(), runs, "a unit that {name}");
    }
}

/// Checks what the manifests of all three jobs have in common.
fn check_pod(pod: &PodSpec, name: &str) {
    let [container] = &pod.containers[..] else { panic!("{name}") };
    let words = [container.command.clone().unwrap(), container.args.clone().unwrap()].concat();
    check_command(&words.join(" "));
    // Spilled files go to a disk.
    let variables = container.env.as_ref().unwrap();
    let tmpdir = variables.iter().find(|variable| variable.name == "TMPDIR").unwrap().value.clone().unwrap();
    let mounts = container.volume_mounts.as_ref().unwrap();
    let scratch = mounts.iter().find(|mount| mount.mount_path == tmpdir).unwrap();
    let volumes = pod.volumes.as_ref().unwrap();
    let empty =
        volumes.iter().find(|volume| volume.name == scratch.name).unwrap().empty_dir.as_ref().unwrap();
    assert_eq!(empty.medium, None, "{name}: scratch files in memory");
    // The image that the Dockerfile builds.
    let dockerfile = std::fs::read_to_string(repository().join("Dockerfile")).unwrap();
    assert!(dockerfile.contains(container.image.as_ref().unwrap()), "{name}");
    let user = pod.security_context.as_ref().unwrap().run_as_user.unwrap();
    assert!(dockerfile.contains(&format!("USER {user}:{user}")), "{name}");
    assert!(dockerfile.contains(&format!("/target/release/{} ", words[0])), "{name}");
    let claim = volumes.iter().find_map(|volume| volume.persistent_volume_claim.as_ref()).unwrap();
    assert_eq!(claim.claim_name, "climber-pilot", "{name}");
}

/// Parses a manifest. Its types are generated from Kubernetes' schema: unknown fields are lost and so detected.
fn manifest<T: serde::de::DeserializeOwned + serde::Serialize>(name: &str) -> T {
    let given: serde_json::Value = serde_yaml_ng::from_str(&read(name)).unwrap();
    let known: T = serde_json::from_value(given.clone()).unwrap();
    assert_eq!(serde_json::to_value(&known).unwrap(), given, "{name}");
    known
}

#[test]
fn the_manifests_hold_nothing_that_kubernetes_does_not_know() {
    let job = manifest::<CronJob>("kubernetes/daily.yaml").spec.unwrap();
    assert_eq!(job.concurrency_policy.as_deref(), Some("Forbid"));
    let job = job.job_template.spec.unwrap();
    let rules = job.pod_failure_policy.unwrap().rules;
    // An evicted pod is tried again; a failure that another try cannot mend is not.
    let disrupted = rules[0].on_pod_conditions.as_ref().unwrap();
    assert_eq!((rules[0].action.as_str(), disrupted[0].type_.as_str()), ("Ignore", "DisruptionTarget"));
    assert_eq!(rules[1].on_exit_codes.as_ref().unwrap().values, [2, 4, 5]);
    check_pod(&job.template.spec.unwrap(), "daily");
    for name in ["refresh", "consume"] {
        let deployment = manifest::<Deployment>(&format!("kubernetes/{name}.yaml")).spec.unwrap();
        assert_eq!(deployment.strategy.unwrap().type_.as_deref(), Some("Recreate"), "{name}");
        let labels = deployment.template.metadata.unwrap().labels.unwrap();
        assert_eq!(Some(&labels), deployment.selector.match_labels.as_ref(), "{name}");
        check_pod(&deployment.template.spec.unwrap(), name);
    }
}

#[test]
fn the_image_is_built_from_what_is_there() {
    let dockerfile = std::fs::read_to_string(repository().join("Dockerfile")).unwrap();
    let manifest = std::fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let rust =
        manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    let images: Vec<&str> = dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")).collect();
    // A program runs on the system whose libraries it was built against.
    assert_eq!(images, [format!("rust:{rust}-bookworm AS build").as_str(), "debian:bookworm-slim"]);
    for program in ["climber", "pipeline", "trainer"] {
        assert!(
            dockerfile.contains(&format!("--bin {program}"))
                && dockerfile.contains(&format!("release/{program} "))
        );
    }
    for file in dockerfile.lines().filter_map(|line| line.strip_prefix("COPY --from=build ")) {
        let sources = file.split_whitespace().filter_map(|word| word.strip_prefix("/src/"));
        for source in sources.filter(|source| !source.starts_with("target/")) {
            assert!(repository().join(source).exists(), "{source}");
        }
    }
    if Command::new("docker").arg("info").output().is_ok_and(|output| output.status.success()) {
        let built = Command::new("docker")
            .args(["build", "--check", "."])
            .current_dir(repository())
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    } else {
        skipped("there is no container engine here: the image is not built");
    }
}

#[test]
fn the_line_of_the_crontab_has_five_times_and_a_command() {
    let text = read("crontab");
    let is_variable = |line: &str| {
        line.split_once('=').is_some_and(|(name, _)| name.bytes().all(|b| b.is_ascii_uppercase()))
    };
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#') && !is_variable(line)).collect();
    let [line] = lines[..] else { panic!("{lines:?}") };
    let times: Vec<&str> = line.split_whitespace().take(5).collect();
    assert!(times.iter().all(|time| *time == "*" || time.parse::<u8>().is_ok()), "{times:?}");
    // cron takes a bare per cent sign as the end of the line.
    assert!(line.match_indices('%').all(|(at, _)| line[..at].ends_with('\\')), "{line}");
    check_command(line);
    // Runs it as cron does: in a shell, with the variables above. It prints the job's output if the job fails, and nothing
    // otherwise.
    for (code, says) in [(0, ""), (5, "a day was left out\n")] {
        let directory = tempfile::tempdir().unwrap();
        let climber = directory.path().join("climber");
        std::fs::write(
            &climber,
            format!("#!/bin/sh\n[ -d \"$TMPDIR\" ] && echo a day was left out >&2\nexit {code}\n"),
        )
        .unwrap();
        assert!(Command::new("chmod").arg("+x").arg(&climber).status().unwrap().success());
        let command =
            line.splitn(6, ' ').nth(5).unwrap().replace("/usr/local/bin/climber", climber.to_str().unwrap());
        let tmpdir = directory.path().join("tmp");
        let output = Command::new("sh").args(["-c", &command]).env("TMPDIR", &tmpdir).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), says);
        assert!(tmpdir.is_dir());
    }
}

/// Returns a Python with Airflow: `CLIMBER_PILOT_AIRFLOW`, or the one on the path.
fn python_with_airflow() -> Option<String> {
    let named = std::env::var("CLIMBER_PILOT_AIRFLOW").ok();
    [named, Some("python3".to_owned())].into_iter().flatten().find(|python| {
        let find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('airflow') is None)";
        Command::new(python).args(["-c", find]).output().is_ok_and(|output| output.status.success())
    })
}

#[test]
fn the_dag_reads_the_log_of_yesterday() {
    let text = read("airflow/climber_pilot.py").replace("{CONFIG}", "/etc/climber-pilot/climber-pilot.toml");
    text.lines().filter(|line| line.contains("bash_command=")).for_each(check_command);
    let path = schedules().join("airflow/climber_pilot.py");
    if has("python3") {
        let compile = "import ast, sys; ast.parse(open(sys.argv[1]).read())";
        let compiled = Command::new("python3").args(["-c", compile]).arg(&path).output().unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    }
    let Some(python) = python_with_airflow() else {
        return skipped(
            "there is no airflow here (pip install apache-airflow; CLIMBER_PILOT_AIRFLOW names a Python that has it)",
        );
    };
    // The run of one night, as the scheduler plans it, and the command that it passes to the shell.
    let load = r#"
import sys, warnings
warnings.filterwarnings("error", category=DeprecationWarning, module="climber_pilot")
sys.path.insert(0, sys.argv[1])
import pendulum
from airflow.timetables.base import DataInterval, TimeRestriction
from climber_pilot import dag
assert dag.task_ids == ["daily"], dag.task_ids
night = pendulum.datetime(2026, 11, 23, 1, 30)
before = DataInterval(night.subtract(days=2), night.subtract(days=1))
run = dag.timetable.next_dagrun_info(last_automated_data_interval=before, restriction=TimeRestriction(None, None, True))
assert run.run_after == night, run
task = dag.get_task("daily")
command = task.render_template(task.bash_command, {"ds": run.logical_date.strftime("%Y-%m-%d")})
assert "--to 2026-11-22" in command, command
assert not dag.catchup and task.env["TMPDIR"] and task.append_env
assert set(task.skip_on_exit_code) == {4, 5}
"#;
    let home = tempfile::tempdir().unwrap();
    let loaded = Command::new(python)
        .args(["-c", load])
        .arg(path.parent().unwrap())
        .env("AIRFLOW_HOME", home.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
}
