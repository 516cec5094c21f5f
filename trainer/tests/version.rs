//! The version of the program. Having an integration test makes Cargo build the program, which the whole-program tests use.

#[test]
fn the_program_says_its_version() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_trainer")).arg("--version").output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        concat!("trainer ", env!("CARGO_PKG_VERSION"))
    );
}
