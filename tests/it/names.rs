//! Checks that each name of a public type in the workspace is one type.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Folders with sources.
const CRATES: [&str; 5] = ["crates", "jobs", "pipeline", "schemas", "trainer"];

/// Keywords before the name of a type.
const KINDS: [&str; 5] = ["struct", "enum", "trait", "type", "union"];

/// Names that several types may have, with the files (or folders) that may define them, and the reason.
const ALLOWED: &[(&str, &[&str], &str)] = &[
    ("Args", &["pipeline/src/commands/"], "each file of commands has one, which its own command alone names"),
    // One definition per kind of build.
    ("Element", &["crates/ragged/src/kernels/element.rs"], "one with the feature `cuda`, one without"),
];

/// Returns the name of the public type that a line of source defines.
fn defined(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) "))?;
    let rest = rest.strip_prefix("unsafe ").unwrap_or(rest);
    let (kind, rest) = rest.split_once(' ')?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    KINDS.contains(&kind).then_some(&rest[..end])
}

/// Returns the public types of a file outside its test modules, and the names of test modules in other files.
fn types(text: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut types, mut test_modules) = (Vec::new(), Vec::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("#[cfg(") && line.contains("test") && !line.contains("not(test)") {
            let indent = line.len() - line.trim_start().len();
            let Some(item) = lines.by_ref().find(|line| !line.trim_start().starts_with("#[")) else { break };
            match item.split_once("mod ") {
                Some((_, name)) if name.ends_with(';') => test_modules.push(name.trim_end_matches(';')),
                _ if item.ends_with('{') => {
                    // In formatted code, the end is indented like the beginning.
                    let end = format!("{}}}", " ".repeat(indent));
                    lines.by_ref().find(|line| *line == end);
                }
                _ => {}
            }
            continue;
        }
        types.extend(defined(line.trim_start()));
    }
    (types, test_modules)
}

/// Returns the file or folder of the module `name` that `file` declares.
fn module(file: &Path, name: &str) -> [PathBuf; 2] {
    let stem = file.file_stem().unwrap();
    let folder = match ["mod", "lib", "main"].iter().any(|root| stem == *root) {
        true => file.parent().unwrap().to_owned(),
        false => file.with_extension(""),
    };
    [folder.join(format!("{name}.rs")), folder.join(name)]
}

fn sources(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn a_public_name_is_one_type() {
    let workspace = crate::programs::sources().join("..");
    let mut files = Vec::new();
    CRATES.iter().for_each(|name| sources(&workspace.join(name), &mut files));
    files.retain(|file| file.components().any(|part| part.as_os_str() == "src"));
    let texts: Vec<(PathBuf, String)> =
        files.into_iter().map(|file| (file.clone(), std::fs::read_to_string(file).unwrap())).collect();
    let mut for_tests: Vec<PathBuf> = Vec::new();
    let mut names: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in &texts {
        for_tests.extend(types(text).1.into_iter().flat_map(|name| module(file, name)));
    }
    for (file, text) in &texts {
        if for_tests.iter().any(|path| file.starts_with(path)) {
            continue;
        }
        let path = file.strip_prefix(&workspace).unwrap().display().to_string().replace('\\', "/");
        for (number, name) in types(text).0.into_iter().enumerate() {
            names.entry(name).or_default().insert(format!("{path} ({number})"));
        }
    }
    assert!(names.len() > 300, "only {} types were found", names.len());
    let mut twice = String::new();
    for (name, places) in names.iter().filter(|(_, places)| places.len() > 1) {
        let allowed =
            ALLOWED.iter().find(|(allowed, ..)| allowed == name).map_or(&[][..], |(_, paths, _)| paths);
        if !places.iter().all(|place| allowed.iter().any(|path| place.starts_with(path))) {
            let places: Vec<&str> = places.iter().map(|place| place.split(' ').next().unwrap()).collect();
            writeln!(twice, "{name}: {}", places.join(", ")).unwrap();
        }
    }
    assert!(twice.is_empty(), "one name for several types; rename them, or say in ALLOWED why not:\n{twice}");
}

#[test]
fn types_are_found_outside_of_tests() {
    let text = "pub struct A<T>(T);\nstruct B;\n    pub(crate) enum C {\n#[cfg(test)]\nmod tests {\n    pub struct D;\n}\n\
                #[cfg(test)]\npub(crate) mod more;\n#[cfg(test)]\npub(crate) use x::Y;\npub trait E: F {\npub unsafe trait G {}\n\
                pub fn type_of() {}\npub(super) struct H;\npub type I = u8;";
    assert_eq!(types(text), (vec!["A", "C", "E", "G", "I"], vec!["more"]));
    assert_eq!(module(Path::new("src/a/mod.rs"), "b"), ["src/a/b.rs", "src/a/b"].map(PathBuf::from));
    assert_eq!(module(Path::new("src/a.rs"), "b"), ["src/a/b.rs", "src/a/b"].map(PathBuf::from));
}
