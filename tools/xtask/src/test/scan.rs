//! Finds unfinished code.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What must not be in a source, and not in one piece here, or this file would be found.
const FORBIDDEN: &[&str] = &[
    concat!("to", "do!("),
    concat!("unimpl", "emented!("),
    concat!("#[ig", "nore"),
];

/// Every line under `root` that holds unfinished code or a test that does not run, as
/// `file:line: text`.
///
/// # Errors
///
/// If a directory or source cannot be read.
pub(crate) fn unfinished(root: &Path) -> Result<Vec<String>> {
    let mut sources = Vec::new();
    collect_sources(root, &mut sources)?;
    sources.sort();
    let mut found = Vec::new();
    for path in sources {
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let name = path.strip_prefix(root).unwrap_or(&path).display();
        found.extend(lines(&text).map(|(number, line)| format!("{name}:{number}: {line}")));
    }
    Ok(found)
}

/// The forbidden lines of a source, comments excepted, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .map(str::trim)
        .enumerate()
        .filter(|(_, line)| !line.starts_with("//"))
        .filter(|(_, line)| FORBIDDEN.iter().any(|word| line.contains(word)))
        .map(|(index, line)| (index + 1, line))
}

fn collect_sources(dir: &Path, sources: &mut Vec<PathBuf>) -> Result<()> {
    let unreadable = || format!("read {}", dir.display());
    for entry in fs::read_dir(dir).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = entry.file_type().with_context(unreadable)?;
        // Build results, wherever they are, are in directories marked as caches.
        let skipped = name.starts_with('.') || entry.path().join("CACHEDIR.TAG").exists();
        if kind.is_dir() && !skipped {
            collect_sources(&entry.path(), sources)?;
        } else if kind.is_file() && name.ends_with(".rs") {
            sources.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_code_is_found() {
        for word in FORBIDDEN {
            let source = format!("fn f() {{\n    {word}\n}}\n");
            let found: Vec<_> = lines(&source).collect();
            assert_eq!(found, [(2, *word)]);
        }
    }

    #[test]
    fn comments_and_plain_code_are_not() {
        let source = format!("// {} is for later\nlet todo = 1;\n", FORBIDDEN.join(" "));
        assert_eq!(lines(&source).count(), 0);
    }

    #[test]
    fn sources_are_found_but_not_in_caches() {
        let root = std::env::temp_dir().join(format!("xtask-scan-{}", std::process::id()));
        let bad = format!("fn f() {{ {}) }}\n", FORBIDDEN.first().unwrap());
        for dir in ["a/src", "target/debug", ".git"] {
            fs::create_dir_all(root.join(dir)).unwrap();
            fs::write(root.join(dir).join("x.rs"), &bad).unwrap();
        }
        fs::write(root.join("target/CACHEDIR.TAG"), "").unwrap();
        let found = unfinished(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found.first().unwrap().starts_with("a/src/x.rs:1: "),
            "{found:?}"
        );
    }
}
