//! Cargo builds a package's programs for its integration tests; the whole-program tests rely on that.

#[test]
fn the_program_says_its_version() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_climber")).arg("--version").output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        concat!("climber ", env!("CARGO_PKG_VERSION"))
    );
}
