//! Makes a failed build's output fit on a screen, and says what a known failure means.

/// Lines shown of a failed build.
const MAX_LINES: usize = 30;
/// Columns shown of a line; linker command lines run to thousands.
const MAX_COLUMNS: usize = 200;

/// The errors among a cargo run's diagnostics, without its warnings and progress.
///
/// Of a failed link the end is kept, where the linker speaks; of a failed compilation the
/// start, because the first error causes the others. Without an error: the last lines.
pub(crate) fn excerpt(stderr: &str) -> String {
    let errors = diagnostics(stderr, "error");
    let keep_end = errors.is_empty() || stderr.contains("error: linking with");
    let lines = if errors.is_empty() {
        stderr.lines().collect()
    } else {
        errors
    };
    let skipped = lines.len().saturating_sub(MAX_LINES);
    let start = if keep_end { skipped } else { 0 };
    let mut shown: Vec<String> = lines
        .iter()
        .skip(start)
        .take(MAX_LINES)
        .map(|line| clip(line))
        .collect();
    if skipped > 0 {
        let note = format!("({skipped} more lines in the build log)");
        shown.insert(if keep_end { 0 } else { shown.len() }, note);
    }
    shown.join("\n")
}

/// The warnings among a cargo run's diagnostics; empty if there are none.
pub(crate) fn warnings(stderr: &str) -> String {
    diagnostics(stderr, "warning").join("\n")
}

/// What a known failure means and what to do about it.
pub(crate) fn explain(stderr: &str) -> Option<&'static str> {
    let says = |needle| stderr.contains(needle);
    if says("Invalid bitcode") || says("Unknown attribute kind") || says("Producer: 'LLVM") {
        Some(
            "bpf-linker was built with an older LLVM than the compiler's: \
             cargo xtask setup builds a matching one",
        )
    } else if says("linker `bpf-linker` not found") {
        Some("bpf-linker is not installed: cargo xtask setup")
    } else if says("can't find crate for `core`") {
        Some("the compiler has no core library for bpfel-unknown-none: cargo xtask setup")
    } else if says("may not be used on the stable release channel") {
        Some(
            "a crate other than aya-ebpf asks for an unstable feature, which only aya-ebpf is allowed",
        )
    } else if says("--offline") || says("CARGO_NET_OFFLINE") {
        Some(
            "crates of the eBPF side are not downloaded yet: run `cargo fetch` once with a network",
        )
    } else {
        None
    }
}

/// The lines of every diagnostic of `kind`. Diagnostics are separated by empty lines.
fn diagnostics<'a>(stderr: &'a str, kind: &str) -> Vec<&'a str> {
    stderr
        .split("\n\n")
        .map(|block| block.lines().filter(|line| !is_progress(line)))
        .filter(|block| {
            let first = block.clone().find(|line| !line.is_empty());
            first.is_some_and(|line| line.starts_with(kind))
        })
        .flatten()
        .collect()
}

fn is_progress(line: &str) -> bool {
    let verbs = [
        "Adding",
        "Blocking",
        "Compiling",
        "Downloaded",
        "Downloading",
        "Finished",
        "Locking",
        "Updating",
    ];
    let first = line.split_whitespace().next();
    line.starts_with("  ") && first.is_some_and(|word| verbs.contains(&word))
}

fn clip(line: &str) -> String {
    match line.char_indices().nth(MAX_COLUMNS) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or(line)),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPILE: &str = "   Compiling datapath-kern v0.1.0 (/src/datapath-kern)
warning: unused variable: `x`
 --> datapath-kern/src/main.rs:9:9

error[E0425]: cannot find value `y` in this scope
  --> datapath-kern/src/main.rs:10:5
   |
10 |     y
   |     ^ not found in this scope

For more information about this error, try `rustc --explain E0425`.
warning: `datapath-kern` (bin \"datapath\") generated 1 warning
error: could not compile `datapath-kern` (bin \"datapath\") due to 1 previous error; 1 warning emitted
";

    #[test]
    fn only_errors_are_shown() {
        let text = excerpt(COMPILE);
        assert!(text.starts_with("error[E0425]"), "{text}");
        assert!(!text.contains("unused variable"), "{text}");
        assert!(!text.contains("Compiling"), "{text}");
    }

    #[test]
    fn warnings_are_told_from_errors() {
        let text = warnings(COMPILE);
        assert!(text.starts_with("warning: unused variable"), "{text}");
        assert!(!text.contains("E0425"), "{text}");
        assert_eq!(
            warnings("   Compiling a v0.1.0\n    Finished `bpf` profile\n"),
            ""
        );
    }

    #[test]
    fn a_failed_link_shows_its_end() {
        let said: Vec<String> = (0..100)
            .map(|number| format!("  = note: ERROR llvm: {number}"))
            .collect();
        let stderr = format!(
            "error: linking with `bpf-linker` failed: exit status: 1\n  = note: \"bpf-linker\" {}\n{}\n",
            "\"x.o\" ".repeat(500),
            said.join("\n")
        );
        let text = excerpt(&stderr);
        assert!(text.ends_with("ERROR llvm: 99"), "{text}");
        assert!(text.starts_with("(72 more lines"), "{text}");
        assert_eq!(text.lines().count(), MAX_LINES + 1);
        assert!(
            text.lines()
                .all(|line| line.chars().count() <= MAX_COLUMNS + 1)
        );
    }

    #[test]
    fn a_wordless_failure_shows_its_last_lines() {
        assert_eq!(excerpt("Killed\n"), "Killed");
    }

    #[test]
    fn known_failures_are_explained() {
        let mismatch = "Invalid bitcode (Producer: 'LLVM22.1.8' Reader: 'LLVM 21.1.0')";
        assert!(explain(mismatch).unwrap().contains("LLVM"));
        assert!(explain("error[E0463]: can't find crate for `core`").is_some());
        assert_eq!(explain(COMPILE), None);
    }
}
