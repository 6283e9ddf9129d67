//! Programs of an operator.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use datapath_conformance::netns::Namespace;

/// Loads a ruleset in a namespace.
#[track_caller]
pub fn nft(namespace: &Namespace, rules: &str) {
    let mut command = namespace.command("nft");
    feed(command.args(["-f", "-"]), rules);
}

/// Runs a program with this on its standard input, and returns what it prints.
#[track_caller]
pub fn feed(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: `cargo xtask setup` installs it"));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{out}{err}\n{input}",
        output.status
    );
    out
}
