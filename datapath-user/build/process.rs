//! Runs a program and keeps what it said.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs `command` and returns its standard output.
///
/// # Errors
///
/// One line: why it could not be started, or the last thing it said before it failed.
pub(crate) fn capture(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|err| format!("{}: {err}", Path::new(command.get_program()).display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty());
    Err(last.map_or_else(|| output.status.to_string(), |line| line.trim().to_owned()))
}

/// Every executable called `name` in the directories of `path`, in their order.
///
/// `path` has the form of the environment variable `PATH`; a directory named twice counts once.
pub(crate) fn find_all(name: &str, path: &std::ffi::OsStr) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in std::env::split_paths(path) {
        let candidate = dir.join(name);
        if is_executable(&candidate) && !found.contains(&candidate) {
            found.push(candidate);
        }
    }
    found
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn a_failure_is_told_by_its_last_line() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one >&2; echo two >&2; echo >&2; exit 3"]);
        assert_eq!(capture(&mut command), Err("two".to_owned()));

        let mut silent = Command::new("sh");
        silent.args(["-c", "exit 3"]);
        assert_eq!(capture(&mut silent), Err("exit status: 3".to_owned()));
    }

    #[test]
    fn a_missing_program_is_named() {
        let err = capture(&mut Command::new("/nonexistent/rustc")).unwrap_err();
        assert!(err.starts_with("/nonexistent/rustc: "), "{err}");
    }

    #[test]
    fn programs_are_found_once_and_in_order() {
        let found = find_all("sh", OsStr::new("/nonexistent:/bin:/bin"));
        assert_eq!(found, [PathBuf::from("/bin/sh")]);
        assert!(find_all("passwd", OsStr::new("/etc")).is_empty());
    }
}
