//! Tables for people: columns under plain heads, no lines, numbers to the right.

use comfy_table::{CellAlignment, Table, presets};

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    head: &'a str,
    alignment: CellAlignment,
}

/// A column of words.
#[must_use]
pub const fn words(head: &str) -> Column<'_> {
    Column {
        head,
        alignment: CellAlignment::Left,
    }
}

/// A column of numbers.
#[must_use]
pub const fn numbers(head: &str) -> Column<'_> {
    Column {
        head,
        alignment: CellAlignment::Right,
    }
}

/// Lays out rows under their heads, two spaces between columns; no line ends in a space, the last
/// one ends in a line feed. A cell may have several lines.
///
/// Without a row it is the one line `none`, which says what the table would be of.
#[must_use]
pub fn render(columns: &[Column<'_>], rows: Vec<Vec<String>>, none: &str) -> String {
    if rows.is_empty() {
        return format!("{none}\n");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|column| column.head));
    table.add_rows(rows);
    for (column, laid_out) in columns.iter().zip(table.column_iter_mut()) {
        laid_out.set_padding((0, 2));
        laid_out.set_cell_alignment(column.alignment);
    }
    format!("{}\n", table.trim_fmt())
}

/// Lays out names and values, one pair a line; values that are empty are left out.
#[must_use]
pub fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let told = rows.iter().filter(|(_, value)| !value.is_empty());
    lines(told.map(|(name, value)| format!("{name:width$}  {value}")))
}

/// Joins lines, each with a line feed at its end.
#[must_use]
pub fn lines(lines: impl IntoIterator<Item = String>) -> String {
    lines
        .into_iter()
        .flat_map(|line| [line, "\n".to_owned()])
        .collect()
}

/// Joins with commas what can be shown.
pub fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let words: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    words.join(", ")
}

/// A count of things in words: `1 document`, `2 documents`.
#[must_use]
pub fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Shows a span of time in its two largest units: `59s`, `2m13s`, `2h13m`, `4d6h`.
#[must_use]
pub fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// Shows a count: in digits as long as they can be read, as a power of ten beyond.
#[must_use]
pub fn count(number: u128) -> String {
    const READABLE: u128 = 1_000_000_000_000;
    if number < READABLE {
        number.to_string()
    } else {
        format!("{number:.1e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_left_and_numbers_right() {
        let rows = vec![
            vec![
                "Invalid source ip".to_owned(),
                "7".to_owned(),
                "ingress".to_owned(),
            ],
            vec![
                "Multicast".to_owned(),
                "12345".to_owned(),
                "egress".to_owned(),
            ],
        ];
        let columns = [words("REASON"), numbers("PACKETS"), words("DIRECTION")];
        insta::assert_snapshot!(render(&columns, rows, "no drops"), @r"
        REASON             PACKETS  DIRECTION
        Invalid source ip        7  ingress
        Multicast            12345  egress
        ");
        assert_eq!(render(&columns, Vec::new(), "no drops"), "no drops\n");
    }

    #[test]
    fn pairs_line_up_and_leave_out_what_is_empty() {
        let rows = [
            ("kernel", "6.12".to_owned()),
            ("peers", String::new()),
            ("MTU", "1450".to_owned()),
        ];
        assert_eq!(pairs(&rows), "kernel  6.12\nMTU     1450\n");
    }

    #[test]
    fn spans_and_counts_are_short() {
        let shown = [0, 59, 60, 133, 3600, 7980, 86_399, 86_400, 370_000].map(duration);
        assert_eq!(
            shown,
            [
                "0s", "59s", "1m0s", "2m13s", "1h0m", "2h13m", "23h59m", "1d0h", "4d6h"
            ]
        );
        assert_eq!(counted(1, "node", "nodes"), "1 node");
        assert_eq!(counted(0, "node", "nodes"), "0 nodes");
        assert_eq!(count(254), "254");
        assert_eq!(count(u128::from(u64::MAX)), "1.8e19");
    }
}
