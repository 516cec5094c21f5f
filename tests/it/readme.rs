//! Checks that the programs know every command in the README.

use crate::programs::{program, stderr};

/// Returns the commands in the shell blocks of a document.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let (mut inside, mut begun) = (false, String::new());
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == "```sh";
            continue;
        }
        if !inside {
            continue;
        }
        match line.trim_end().strip_suffix('\\') {
            Some(part) => begun.push_str(part),
            None => {
                begun.push_str(line);
                commands.push(std::mem::take(&mut begun));
            }
        }
    }
    commands
}

/// Returns the words of a command, without comments, quotes and shell redirections.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars().chain([' ']) {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, ' ') => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (None, '#') if word.is_empty() => break,
            (_, c) => word.push(c),
        }
    }
    let shell = ["|", ">", "<", "&&", "&", "2>&1", ";"];
    let end = words.iter().position(|word| shell.contains(&word.as_str())).unwrap_or(words.len());
    words.truncate(end);
    words
}

#[test]
fn commands_in_the_readme_are_known() {
    let readme = std::env::current_dir().unwrap().parent().unwrap().join("README.md");
    let text = std::fs::read_to_string(&readme).unwrap();
    let mut checked = 0;
    let mut variables: Vec<(String, String)> = Vec::new();
    for mut line in commands(&text) {
        for (name, value) in &variables {
            line = line.replace(name, value);
        }
        let mut words = words(&line);
        if let Some((name, value)) = words.first().and_then(|word| word.split_once('='))
            && name.bytes().all(|byte| byte.is_ascii_uppercase())
        {
            variables.push((format!("${name}"), value.to_owned()));
            continue;
        }
        // `cargo run -p jobs -- daily …`
        if words.first().is_some_and(|word| word == "cargo") {
            let Some(end) = words.iter().position(|word| word == "--") else { continue };
            let package = words.iter().position(|word| word == "-p").map(|at| words[at + 1].clone());
            if words.iter().any(|word| word == "--example" || word == "bench") {
                continue;
            }
            words.drain(..=end);
            words.insert(
                0,
                package.map_or_else(String::new, |p| if p == "jobs" { "climber".into() } else { p }),
            );
        }
        let Some(name) = words.first().map(|word| word.rsplit('/').next().unwrap_or(word).to_owned()) else {
            continue;
        };
        if !["pipeline", "trainer", "climber"].contains(&name.as_str()) {
            continue;
        }
        // --help comes last, so that all arguments before it must be known.
        let output = program(&name).args(&words[1..]).arg("--help").output().unwrap();
        assert!(output.status.success(), "{line}\n{}", stderr(&output));
        checked += 1;
    }
    assert!(checked > 30, "only {checked} commands were found in {}", readme.display());
}
