//! The closing table.

use std::fmt;

/// What became of a tier.
#[derive(Debug)]
pub(crate) enum Verdict {
    Passed,
    /// The steps that failed.
    Failed(Vec<String>),
    /// It could not run.
    Skipped {
        why: &'static str,
        /// Whether the user said that this is fine.
        allowed: bool,
    },
}

/// The tiers of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<(&'static str, Verdict, f32)>,
}

impl Report {
    /// Adds a tier and how many seconds it took.
    pub(crate) fn add(&mut self, tier: &'static str, verdict: Verdict, seconds: f32) {
        self.rows.push((tier, verdict, seconds));
    }

    /// Whether nothing failed, and nothing was skipped that had to run.
    pub(crate) fn is_good(&self) -> bool {
        self.rows.iter().all(|(_, verdict, _)| {
            matches!(
                verdict,
                Verdict::Passed | Verdict::Skipped { allowed: true, .. }
            )
        })
    }

    fn count(&self, is_it: impl Fn(&Verdict) -> bool) -> usize {
        self.rows.iter().filter(|row| is_it(&row.1)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:8} {:8} {:>8}", "tier", "result", "seconds")?;
        for (tier, verdict, seconds) in &self.rows {
            let (result, detail) = match verdict {
                Verdict::Passed => ("passed", String::new()),
                Verdict::Failed(steps) => ("FAILED", steps.join("; ")),
                Verdict::Skipped { why, allowed } => {
                    let allowed = if *allowed { "" } else { ", so this run fails" };
                    ("skipped", format!("{why}{allowed}"))
                }
            };
            let row = format!("{tier:8} {result:8} {seconds:>8.1}  {detail}");
            writeln!(f, "{}", row.trim_end())?;
        }
        let passed = self.count(|verdict| matches!(verdict, Verdict::Passed));
        let failed = self.count(|verdict| matches!(verdict, Verdict::Failed(_)));
        let skipped = self.rows.len() - passed - failed;
        writeln!(f, "Each test's own result is above; these are tiers:\n")?;
        write!(f, "{passed} passed, {failed} failed")?;
        if skipped > 0 {
            write!(f, ", {skipped} skipped")?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(allowed: bool) -> Verdict {
        Verdict::Skipped {
            why: "needs root",
            allowed,
        }
    }

    #[test]
    fn the_last_line_counts() {
        let mut report = Report::default();
        report.add("lint", Verdict::Passed, 1.0);
        report.add("unit", Verdict::Failed(vec!["cargo test".to_owned()]), 2.0);
        let text = report.to_string();
        assert_eq!(text.lines().last(), Some("1 passed, 1 failed"));
        assert!(
            text.contains("unit     FAILED        2.0  cargo test\n"),
            "{text}"
        );
        assert!(!report.is_good());
    }

    #[test]
    fn a_skip_fails_unless_allowed() {
        let mut report = Report::default();
        report.add("lint", Verdict::Passed, 1.0);
        report.add("lab", skipped(true), 0.0);
        assert!(report.is_good());
        let text = report.to_string();
        assert_eq!(text.lines().last(), Some("1 passed, 0 failed, 1 skipped"));

        report.add("lab", skipped(false), 0.0);
        assert!(!report.is_good());
    }
}
