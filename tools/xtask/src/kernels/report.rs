//! What `kernel-check` reports, and the table of all kernels.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

/// What was found on one kernel.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Report {
    release: String,
    /// Name and value, in order.
    facts: Vec<(String, String)>,
    /// Name, and instructions that the verifier walked.
    programs: Vec<(String, u32)>,
    failures: Vec<String>,
    /// Checks that passed.
    pub(super) passed: usize,
}

/// A kernel of the table.
#[derive(Debug)]
pub(super) struct Column {
    /// As it is asked for.
    pub(super) kernel: &'static str,
    pub(super) outcome: Result<Report>,
    pub(super) seconds: u64,
}

impl Report {
    /// Reads the lines that `kernel-check` writes.
    ///
    /// # Errors
    ///
    /// If it is another format, or not complete.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        if lines.next() != Some("kernel-check\t1") {
            bail!("the report is not of kernel-check 1");
        }
        let mut report = Self::default();
        let mut complete = false;
        for line in lines {
            let words: Vec<&str> = line.split('\t').collect();
            match words.as_slice() {
                ["release", release] => (*release).clone_into(&mut report.release),
                ["fact", name, value] => {
                    report.facts.push(((*name).to_owned(), (*value).to_owned()));
                }
                ["program", name, _, verified] => {
                    let verified = verified.parse().with_context(|| line.to_owned())?;
                    report.programs.push(((*name).to_owned(), verified));
                }
                ["failure", failure] => report.failures.push((*failure).to_owned()),
                ["passed", passed] => {
                    report.passed = passed.parse().with_context(|| line.to_owned())?;
                }
                ["seconds", _] => complete = true,
                _ => bail!("the report has an unknown line {line:?}"),
            }
        }
        if !complete {
            bail!("the report ends too early");
        }
        Ok(report)
    }

    /// Every row that it has something to say to.
    fn rows(&self) -> Vec<(String, String)> {
        let mut rows = vec![("release".to_owned(), self.release.clone())];
        rows.extend(self.facts.iter().cloned());
        let programs = self.programs.iter();
        rows.extend(programs.map(|(name, count)| (format!("{name} verified"), count.to_string())));
        rows.push(("checks passed".to_owned(), self.passed.to_string()));
        let failed = self.failures.len();
        rows.push(("checks failed".to_owned(), failed.to_string()));
        rows
    }
}

impl Column {
    /// Whether checks were made, and all passed.
    pub(super) fn is_good(&self) -> bool {
        let report = self.outcome.as_ref();
        report.is_ok_and(|report| report.passed > 0 && report.failures.is_empty())
    }

    fn rows(&self) -> Vec<(String, String)> {
        let mut rows = match &self.outcome {
            Ok(report) => report.rows(),
            Err(_) => Vec::new(),
        };
        rows.push(("seconds".to_owned(), self.seconds.to_string()));
        let result = if self.is_good() { "passed" } else { "FAILED" };
        rows.push(("result".to_owned(), result.to_owned()));
        rows
    }
}

/// A row for each fact, a column for each kernel, and below it what failed.
pub(super) fn table(columns: &[Column]) -> String {
    let cells: Vec<_> = columns.iter().map(Column::rows).collect();
    let mut names: Vec<&str> = Vec::new();
    // The last rows are everyone's; a column that has nothing else must not move them up.
    let longest = cells.iter().max_by_key(|rows| rows.len());
    for (name, _) in longest.into_iter().chain(&cells).flatten() {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let value = |rows: &[(String, String)], name: &str| {
        let found = rows.iter().find(|(row, _)| row == name);
        found.map_or("-".to_owned(), |(_, value)| value.clone())
    };
    let mut text = String::new();
    let width = |rows: &[(String, String)]| {
        let widths = rows.iter().map(|(_, value)| value.chars().count());
        widths.max().unwrap_or(0).max(6)
    };
    let mut row = |name: &str, values: Vec<String>| {
        let mut line = format!("{name:22}");
        for (value, rows) in values.iter().zip(&cells) {
            let _ = write!(line, "  {value:width$}", width = width(rows));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    let heads = columns.iter().map(|column| column.kernel.to_owned());
    row("kernel", heads.collect());
    for name in names {
        row(name, cells.iter().map(|rows| value(rows, name)).collect());
    }
    for column in columns {
        match &column.outcome {
            Ok(report) => {
                for failure in &report.failures {
                    let _ = writeln!(text, "{}: {failure}", column.kernel);
                }
            }
            Err(err) => {
                let _ = writeln!(text, "{}: {err:#}", column.kernel);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "kernel-check\t1\nrelease\t6.1.0-50-amd64\nfact\tattached by\tclsact\n\
                        program\tfrom_pod\t8842\t124033\npassed\t264\nseconds\t42\n";

    fn column(kernel: &'static str, outcome: Result<Report>) -> Column {
        Column {
            kernel,
            outcome,
            seconds: 60,
        }
    }

    #[test]
    fn a_report_is_read() {
        let report = Report::parse(TEXT).unwrap();
        assert_eq!(report.release, "6.1.0-50-amd64");
        assert_eq!(report.programs, [("from_pod".to_owned(), 124_033)]);
        assert_eq!(report.passed, 264);
        assert!(column("6.1", Ok(report)).is_good());
    }

    #[test]
    fn half_a_report_is_none() {
        let half = TEXT.strip_suffix("seconds\t42\n").unwrap();
        let error = Report::parse(half).unwrap_err().to_string();
        assert!(error.contains("too early"), "{error}");
        for wrong in ["", "kernel-check\t2\n", &format!("{TEXT}what\n")] {
            assert!(Report::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_failed_is_below_the_table() {
        let mut report = Report::parse(TEXT).unwrap();
        report.failures.push("paths: silence".to_owned());
        let columns = [
            column("6.1", Ok(report)),
            column("6.12", Err(anyhow::anyhow!("Kernel panic"))),
        ];
        assert!(!columns.iter().any(Column::is_good));
        let table = table(&columns);
        for line in [
            "attached by             clsact          -",
            "6.1: paths: silence",
            "6.12: Kernel panic",
        ] {
            assert!(table.contains(line), "no {line:?} in\n{table}");
        }
        let result = table.find("\nresult").unwrap();
        assert!(table.find("\nchecks failed").unwrap() < result, "{table}");
    }

    #[test]
    fn without_a_check_nothing_passed() {
        let none = TEXT.replace("264", "0");
        assert!(!column("6.1", Report::parse(&none)).is_good());
    }
}
