//! Flows as a table, written as they come.

use std::{
    fmt::{self, Write as _},
    io::{self, Write},
    net::IpAddr,
};

use datapath_user::{FlowOrder, FlowPair, Protocol};

use super::line::{End, Nat, State};
use crate::{api::FlowStream, error::Result, table};

/// Of so many flows the widths of columns are taken, and so many are put into order.
const AT_ONCE: usize = 10_000;
/// Bytes written at a time.
const WRITE_BYTES: usize = 1 << 17;

/// Heads of the columns, and whether they are of numbers.
const COLUMNS: [(&str, bool); 9] = [
    ("PROTO", false),
    ("SOURCE", false),
    ("", false),
    ("DESTINATION", false),
    ("NAT", false),
    ("STATE", false),
    ("PACKETS", true),
    ("BYTES", true),
    ("EXPIRES", true),
];
/// Those of the wide form, behind the others.
const WIDE: [(&str, bool); 6] = [
    ("IDENTITIES", false),
    ("WAY", false),
    ("VERDICT", false),
    ("TABLE", false),
    ("RULE", true),
    ("PAIR", true),
];

/// Writes flows as a table: of the first ones the widths are taken, and all others follow as they
/// come, so that a million takes no more memory than some thousands.
pub(super) fn print(
    flows: &mut FlowStream,
    order: FlowOrder,
    wide: bool,
    all: bool,
    out: &mut dyn Write,
) -> Result<io::Result<()>> {
    let mut first = Vec::new();
    while first.len() < AT_ONCE {
        let Some(flow) = flows.next_flow() else {
            // That is all: it may as well be in order.
            if order.sort.is_none() {
                first.sort_by_key(|row: &Row| row.order);
            }
            return Ok(begin(&first, wide, all, out).and_then(|_| out.flush()));
        };
        first.push(Row::of(&flow?, wide));
    }
    let mut out = io::BufWriter::with_capacity(WRITE_BYTES, out);
    let layout = match begin(&first, wide, all, &mut out) {
        Ok(layout) => layout,
        Err(error) => return Ok(Err(error)),
    };
    drop(first);
    let (mut row, mut line) = (Row::default(), String::new());
    while let Some(flow) = flows.next_flow() {
        row.fill(&flow?, wide);
        line.clear();
        layout.add(&row, &mut line);
        if let Err(error) = out.write_all(line.as_bytes()) {
            return Ok(Err(error));
        }
    }
    Ok(out.flush())
}

/// Writes the heads and the first rows, which the layout is of.
fn begin(first: &[Row], wide: bool, all: bool, out: &mut dyn Write) -> io::Result<Layout> {
    let layout = Layout::of(first, wide);
    let text = if first.is_empty() && all {
        "no flow is tracked\n".to_owned()
    } else if first.is_empty() {
        "no flow fits\n".to_owned()
    } else {
        layout.text(first)
    };
    out.write_all(text.as_bytes())?;
    Ok(layout)
}

/// The cells of a line.
#[derive(Debug, Default)]
struct Row {
    text: String,
    /// Where each cell ends in `text`.
    ends: Vec<usize>,
    order: Option<(Protocol, IpAddr, u16, IpAddr, u16, u32)>,
}

impl Row {
    fn of(flow: &FlowPair<'_>, wide: bool) -> Self {
        let mut row = Self::default();
        row.fill(flow, wide);
        let (source, destination) = (&flow.source, &flow.destination);
        row.order = Some((
            flow.protocol,
            source.address,
            source.port,
            destination.address,
            destination.port,
            flow.pair,
        ));
        row
    }

    fn fill(&mut self, flow: &FlowPair<'_>, wide: bool) {
        self.text.clear();
        self.ends.clear();
        match flow.protocol.name() {
            Some(name) => self.cell(format_args!("{name}")),
            None => self.cell(format_args!("{}", flow.protocol)),
        }
        self.text.make_ascii_uppercase();
        self.cell(format_args!("{}", End(&flow.source)));
        self.cell(format_args!("->"));
        self.cell(format_args!("{}", End(&flow.destination)));
        self.cell(format_args!("{}", Nat(flow)));
        self.cell(format_args!("{}", State(flow)));
        self.cell(format_args!("{}/{}", flow.packets, flow.reply_packets));
        self.cell(format_args!("{}/{}", flow.bytes, flow.reply_bytes));
        let expires = table::duration(flow.expires_in_s.into());
        self.cell(format_args!("{expires}"));
        if wide {
            let identities = (flow.source.identity, flow.destination.identity);
            self.cell(format_args!("{} -> {}", identities.0, identities.1));
            self.cell(format_args!("{} -> {}", flow.arrival, flow.target));
            self.cell(format_args!("{}", flow.verdict));
            self.cell(format_args!("{}", flow.table));
            self.cell(format_args!("{}", flow.rule_id));
            self.cell(format_args!("{}", flow.pair));
        }
    }

    fn cell(&mut self, content: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _infallible = self.text.write_fmt(content);
        self.ends.push(self.text.len());
    }

    fn cells(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let cell = self.text.get(start..end).unwrap_or_default();
            start = end;
            cell
        })
    }
}

/// Widths of the columns. A later cell may be wider, and then moves the rest of its line.
struct Layout {
    columns: Vec<(&'static str, bool)>,
    widths: Vec<usize>,
}

impl Layout {
    fn of(rows: &[Row], wide: bool) -> Self {
        let mut columns = COLUMNS.to_vec();
        if wide {
            columns.extend(WIDE);
        }
        let mut widths: Vec<_> = columns.iter().map(|(head, _)| head.len()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row.cells()) {
                *width = (*width).max(cell.len());
            }
        }
        Self { columns, widths }
    }

    fn text(&self, rows: &[Row]) -> String {
        let mut text = String::new();
        self.line(self.columns.iter().map(|(head, _)| *head), &mut text);
        for row in rows {
            self.add(row, &mut text);
        }
        text
    }

    fn add(&self, row: &Row, text: &mut String) {
        self.line(row.cells(), text);
    }

    fn line<'a>(&self, cells: impl Iterator<Item = &'a str>, text: &mut String) {
        const BLANK: &str = "                                                                ";
        let mut owed = 0_usize;
        let pad = |text: &mut String, count: usize| {
            let mut left = count;
            while left > 0 {
                let part = left.min(BLANK.len());
                text.push_str(BLANK.get(..part).unwrap_or_default());
                left -= part;
            }
        };
        for ((cell, width), (_, number)) in cells.zip(&self.widths).zip(&self.columns) {
            let missing = width.saturating_sub(cell.len());
            if *number {
                owed += missing;
            }
            if !cell.is_empty() {
                pad(text, owed);
                text.push_str(cell);
                owed = 0;
            }
            owed += 2 + if *number { 0 } else { missing };
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;

    fn shown(flows: &[FlowPair<'_>], wide: bool) -> String {
        let rows: Vec<_> = flows.iter().map(|flow| Row::of(flow, wide)).collect();
        let mut out = Vec::new();
        begin(&rows, wide, true, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn flows_read_from_who_began_them() {
        insta::assert_snapshot!(shown(&sample::flows(), false), @"
        PROTO   SOURCE                            DESTINATION                 NAT                    STATE                     PACKETS        BYTES  EXPIRES
        TCP     10.244.1.2:40000 (web-0)      ->  198.51.100.10:80 (world)    snat 192.0.2.11:40000  established                 12/10  3456/123456    2h13m
        TCP     10.244.1.2:40000 (web-0)      ->  198.51.100.10:8443 (world)                         syn, deny, reply missing      1/0         74/0      59s
        ICMPV6  [fd00:10:244:1::2]:7 (web-0)  ->  fd00:10:244:2::2 (n2)                              unreplied                     1/0        118/0      59s
        ");
        insta::assert_snapshot!(shown(&sample::flows(), true), @"
        PROTO   SOURCE                            DESTINATION                 NAT                    STATE                     PACKETS        BYTES  EXPIRES  IDENTITIES    WAY            VERDICT  TABLE        RULE  PAIR
        TCP     10.244.1.2:40000 (web-0)      ->  198.51.100.10:80 (world)    snat 192.0.2.11:40000  established                 12/10  3456/123456    2h13m  1001 -> 2     pod -> uplink  allow    established     0     9
        TCP     10.244.1.2:40000 (web-0)      ->  198.51.100.10:8443 (world)                         syn, deny, reply missing      1/0         74/0      59s  1001 -> 0     pod -> uplink  deny     pending         3    11
        ICMPV6  [fd00:10:244:1::2]:7 (web-0)  ->  fd00:10:244:2::2 (n2)                              unreplied                     1/0        118/0      59s  1001 -> 2001  pod -> tunnel  allow    pending         0    10
        ");
        insta::assert_snapshot!(shown(&[], false), @"no flow is tracked");
    }

    #[test]
    fn a_cell_that_is_wider_than_the_first_ones_is_whole() {
        let flows = sample::flows();
        let rows: Vec<_> = flows.iter().map(|flow| Row::of(flow, false)).collect();
        let layout = Layout::of(&rows[..1], false);
        let mut line = String::new();
        layout.add(&rows[2], &mut line);
        assert!(
            line.contains("[fd00:10:244:1::2]:7 (web-0)  ->  fd00:10:244:2::2 (n2)"),
            "{line}"
        );
    }
}
