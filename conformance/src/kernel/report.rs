//! What a kernel was found to give.

use std::fmt;

/// A report, written as lines of words separated by tabs, so that a reader needs no library:
///
/// ```text
/// kernel-check  1
/// release       6.1.0-50-amd64
/// fact          attached by     clsact
/// program       from_pod        8842     124033        instructions, verified
/// failure       tunnel IPv4, paths: pod to outside IPv6 TCP: FAILED: silence for 30s
/// passed        264
/// seconds       42
/// ```
///
/// `seconds` is the last line: a report without it is not complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The kernel, as `uname -r` says.
    pub release: String,
    /// Facts by name, in the order in which they are to be shown.
    pub facts: Vec<(String, String)>,
    /// The programs.
    pub sizes: Vec<Size>,
    /// How many checks passed.
    pub passed: usize,
    /// A line for each check that did not.
    pub failures: Vec<String>,
    /// How long it took.
    pub seconds: u64,
}

/// What a program is to the verifier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Its name.
    pub program: String,
    /// Instructions after the kernel's own rewriting.
    pub instructions: u32,
    /// Instructions that the verifier walked.
    pub verified: u32,
}

impl Report {
    /// Starts without facts.
    pub(super) fn new(release: &str) -> Self {
        Self {
            release: release.to_owned(),
            ..Self::default()
        }
    }

    pub(super) fn fact(&mut self, name: &str, value: &str) {
        self.facts.push((name.to_owned(), value.to_owned()));
    }

    /// Whether a fact is as said.
    pub(super) fn is_fact(&self, name: &str, value: &str) -> bool {
        self.facts
            .iter()
            .any(|(known, found)| known == name && found == value)
    }

    /// Adds a check, which failed if there is something `wrong`, and tells of it.
    pub(super) fn add(&mut self, what: &str, wrong: Option<String>, tell: &mut impl FnMut(&str)) {
        if let Some(wrong) = wrong {
            let line = format!("{what}: FAILED: {wrong}");
            tell(&line);
            self.failures.push(line);
        } else {
            tell(&format!("{what}: ok"));
            self.passed += 1;
        }
    }

    /// Whether checks were made and all passed.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.passed > 0 && self.failures.is_empty()
    }
}

impl Size {
    pub(super) fn of(program: &str) -> Self {
        Self {
            program: program.to_owned(),
            ..Self::default()
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel-check\t1")?;
        writeln!(f, "release\t{}", self.release)?;
        for (name, value) in &self.facts {
            writeln!(f, "fact\t{name}\t{value}")?;
        }
        for size in &self.sizes {
            let Size {
                program,
                instructions,
                verified,
            } = size;
            writeln!(f, "program\t{program}\t{instructions}\t{verified}")?;
        }
        for failure in &self.failures {
            writeln!(f, "failure\t{}", failure.replace(['\t', '\n'], " "))?;
        }
        writeln!(f, "passed\t{}", self.passed)?;
        writeln!(f, "seconds\t{}", self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_stays_in_its_line() {
        let mut report = Report::new("6.1");
        report.fact("netkit", "no");
        report.sizes.push(Size::of("to_pod"));
        report.failures.push("one\ntwo\tthree".to_owned());
        report.passed = 3;
        assert!(!report.is_good());
        assert_eq!(
            report.to_string(),
            "kernel-check\t1\nrelease\t6.1\nfact\tnetkit\tno\nprogram\tto_pod\t0\t0\n\
             failure\tone two three\npassed\t3\nseconds\t0\n"
        );
    }

    #[test]
    fn no_check_is_no_success() {
        let mut report = Report::new("6.1");
        assert!(!report.is_good());
        report.passed = 1;
        assert!(report.is_good());
    }
}
