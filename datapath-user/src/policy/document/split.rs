//! Several documents in one text.

/// One document of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Its text, with the marker before it.
    pub text: &'a str,
    /// Lines of the whole text that come before it.
    pub lines_before: u64,
}

/// Splits a text where YAML does: at lines that begin with `---` or `...`, which nothing inside a
/// document can begin with (YAML 1.2.2 sections 9.1.2 and 9.1.4). Split so, a document that is no
/// YAML spoils none of the others. Pieces without content are left out.
#[must_use]
pub fn split(text: &str) -> Vec<Piece<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut pieces = Vec::new();
    let (mut from, mut lines_before) = (0, 0);
    let mut at = 0;
    let mut cut = |from: usize, to: usize, lines_before: u64| {
        let text = text.get(from..to).unwrap_or_default();
        if has_content(text) {
            pieces.push(Piece { text, lines_before });
        }
    };
    for (number, line) in (0_u64..).zip(text.split_inclusive('\n')) {
        let end = at + line.len();
        if is_marker(line, "---") {
            cut(from, at, lines_before);
            (from, lines_before) = (at, number);
        } else if is_marker(line, "...") {
            cut(from, at, lines_before);
            (from, lines_before) = (end, number + 1);
        }
        at = end;
    }
    cut(from, at, lines_before);
    pieces
}

fn is_marker(line: &str, marker: &str) -> bool {
    let rest = line.strip_prefix(marker);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Whether there is more than comments, markers and directives.
fn has_content(text: &str) -> bool {
    text.lines().any(|line| {
        let line = if is_marker(line, "---") {
            line.get(3..).unwrap_or_default()
        } else {
            line
        };
        let said = line.trim();
        !said.is_empty() && !said.starts_with('#') && !line.starts_with('%')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_split_at_markers() {
        let text = "\u{feff}# nothing\n---\na: 1\n--- # two\nb: |\n  --- no marker\n---x: 1\n...\n\
                    # nothing\n%YAML 1.2\n---\n\n--- c: 3\r\n---\r\n";
        let pieces: Vec<(u64, &str)> = split(text)
            .into_iter()
            .map(|piece| (piece.lines_before, piece.text))
            .collect();
        assert_eq!(
            pieces,
            [
                (1, "---\na: 1\n"),
                (3, "--- # two\nb: |\n  --- no marker\n---x: 1\n"),
                (12, "--- c: 3\r\n"),
            ]
        );
        assert_eq!(split(""), []);
        assert_eq!(split("---").len(), 0);
        let one = split("a: 1");
        assert_eq!((one.len(), one[0].lines_before), (1, 0));
    }
}
