//! Programs that the lab runs.

use std::{io, process::Command};

use crate::error::{Error, Result};

/// Runs a program to its end and returns what it wrote to standard output.
///
/// `program` and `package` name it, and where it comes from, if it is not installed.
///
/// # Errors
///
/// [`Error::ProgramMissing`], [`Error::ProgramFailed`] with the program's own words, [`Error::Os`].
pub fn output(
    program: &'static str,
    package: &'static str,
    command: &mut Command,
) -> Result<String> {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::ProgramMissing { program, package });
        }
        Err(error) => return Err(Error::os("run", program)(error)),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let complaint = text(&output.stderr);
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    Err(Error::ProgramFailed {
        command: words.join(" "),
        status: output.status,
        output: if complaint.is_empty() {
            text(&output.stdout)
        } else {
            complaint
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_carry_the_programs_words() {
        let mut shell = Command::new("sh");
        let failed = output(
            "sh",
            "dash",
            shell.args(["-c", "echo no such thing >&2; exit 3"]),
        );
        let text = failed.unwrap_err().to_string();
        assert!(
            text.contains("no such thing") && text.contains('3'),
            "{text}"
        );
        let missing = output(
            "no-such-program",
            "nowhere",
            &mut Command::new("no-such-program"),
        );
        assert!(matches!(
            missing,
            Err(Error::ProgramMissing {
                package: "nowhere",
                ..
            })
        ));
        assert_eq!(
            output("echo", "coreutils", Command::new("echo").arg("x")).unwrap(),
            "x"
        );
    }
}
