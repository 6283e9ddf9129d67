//! A matrix for people: sources down, destinations across.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::result::{Cell, Matrix, Mismatch, Verdict};
use crate::policy::case::{Case, CellId, EndpointId};

/// Draws the tables of a matrix, one for each probe and family, those that are equal as one; and
/// after them what is not as the case has it.
#[must_use]
pub fn table(matrix: &Matrix, case: &Case, colour: bool) -> String {
    let mut text = if case.title.is_empty() {
        format!("{}\n", matrix.case)
    } else {
        format!("{}: {}\n", matrix.case, case.title)
    };
    for one in &matrix.rejected {
        let _ = writeln!(text, "refused {}: {}", one.object, one.message);
    }
    for (heads, grid) in folded(matrix) {
        let _ = write!(text, "\n{}\n{}", heads.join(", "), grid.draw(colour));
    }
    text.push_str(&legend(matrix, colour));
    text.push_str(&summary(matrix, case));
    text
}

/// Says what of a matrix is not as the case has it.
#[must_use]
pub fn summary(matrix: &Matrix, case: &Case) -> String {
    let mut text = String::new();
    let mismatches = matrix.mismatches(case);
    if mismatches.is_empty() {
        let sent: BTreeSet<_> = matrix.cells.iter().map(|cell| &cell.id).collect();
        let held = case.assertions.iter().filter(|it| sent.contains(&it.cell));
        let (held, cells) = (held.count(), sent.len());
        let _ = writeln!(
            text,
            "{}: as expected: {held} assertions, {cells} cells",
            case.name
        );
    } else {
        let _ = writeln!(text, "{}: NOT as expected:", case.name);
        for mismatch in &mismatches {
            let Mismatch { line, text: what } = mismatch;
            let place = line.map_or_else(String::new, |line| format!(":{line}"));
            let _ = writeln!(text, "  {}{place}: {what}", case.file.display());
        }
    }
    text
}

/// One probe over one family.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Grid {
    sources: Vec<EndpointId>,
    destinations: Vec<EndpointId>,
    cells: BTreeMap<(usize, usize), Verdict>,
}

/// The grids, each with the probes and families that it is true of.
fn folded(matrix: &Matrix) -> Vec<(Vec<String>, Grid)> {
    let mut heads: Vec<String> = Vec::new();
    for cell in &matrix.cells {
        let head = head(&cell.id);
        if !heads.contains(&head) {
            heads.push(head);
        }
    }
    let mut found: Vec<(Vec<String>, Grid)> = Vec::new();
    for name in heads {
        let cells = matrix.cells.iter().filter(|cell| head(&cell.id) == name);
        let grid = Grid::of(cells);
        match found.iter_mut().find(|(_, known)| *known == grid) {
            Some((heads, _)) => heads.push(name),
            None => found.push((vec![name], grid)),
        }
    }
    found
}

fn head(cell: &CellId) -> String {
    let http = cell.http.as_ref();
    let http = http.map_or_else(String::new, |http| format!(" {http}"));
    format!("{}/{}{http} {}", cell.protocol, cell.port, cell.family)
}

impl Grid {
    fn of<'a>(all: impl Iterator<Item = &'a Cell>) -> Self {
        let mut grid = Self {
            sources: Vec::new(),
            destinations: Vec::new(),
            cells: BTreeMap::new(),
        };
        for cell in all {
            let row = place(&mut grid.sources, &cell.id.source);
            let column = place(&mut grid.destinations, &cell.id.destination);
            grid.cells.insert((row, column), cell.verdict);
        }
        grid
    }

    /// Draws it: destinations have numbers, which the lines below explain where they are no sources.
    fn draw(&self, colour: bool) -> String {
        let numbers: BTreeMap<&EndpointId, usize> = self
            .sources
            .iter()
            .chain(&self.destinations)
            .fold(BTreeMap::new(), |mut numbers, id| {
                let next = numbers.len() + 1;
                numbers.entry(id).or_insert(next);
                numbers
            });
        let number = |id: &EndpointId| numbers.get(id).copied().unwrap_or_default();
        let ids = self.sources.iter().map(|id| id.to_string().len());
        let width = ids.max().unwrap_or_default();
        let mut text = format!("{:>3} {:width$} ", "", "");
        for id in &self.destinations {
            let _ = write!(text, "{:>4}", number(id));
        }
        text.push('\n');
        for (row, id) in self.sources.iter().enumerate() {
            let _ = write!(text, "{:>3} {:width$} ", number(id), id.to_string());
            for column in 0..self.destinations.len() {
                let verdict = self.cells.get(&(row, column)).copied();
                let _ = write!(text, "   {}", letter(verdict, colour));
            }
            text.push('\n');
        }
        let others = self.destinations.iter();
        for id in others.filter(|id| !self.sources.contains(id)) {
            let _ = writeln!(text, "{:>3} {id}", number(id));
        }
        text
    }
}

fn place(list: &mut Vec<EndpointId>, id: &EndpointId) -> usize {
    list.iter()
        .position(|known| known == id)
        .unwrap_or_else(|| {
            list.push(id.clone());
            list.len() - 1
        })
}

fn letter(verdict: Option<Verdict>, colour: bool) -> String {
    // SGR codes (ECMA-48 section 8.3.117): green, red, yellow, reversed red.
    let (letter, code) = match verdict {
        Some(Verdict::Allow) => ('A', "32"),
        Some(Verdict::Deny) => ('D', "31"),
        Some(Verdict::Skipped) => ('s', "33"),
        Some(Verdict::Error) => ('E', "7;31"),
        None => return ".".to_owned(),
    };
    if colour {
        format!("\x1b[{code}m{letter}\x1b[0m")
    } else {
        letter.to_string()
    }
}

fn legend(matrix: &Matrix, colour: bool) -> String {
    let mut words = Vec::new();
    for (verdict, word) in [
        (Verdict::Allow, "allowed"),
        (Verdict::Deny, "denied"),
        (Verdict::Skipped, "skipped"),
        (Verdict::Error, "error"),
    ] {
        let count = matrix.cells.iter().filter(|it| it.verdict == verdict);
        let count = count.count();
        if count > 0 {
            words.push(format!(
                "{} {word} ({count})",
                letter(Some(verdict), colour)
            ));
        }
    }
    let mut text = format!("\n{}\n", words.join("   "));
    let reasons: BTreeSet<_> = matrix
        .cells
        .iter()
        .filter(|cell| cell.verdict == Verdict::Skipped)
        .map(|cell| cell.detail.as_str())
        .collect();
    for reason in reasons {
        let _ = writeln!(text, "skipped: {reason}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::policy::case::tests::CASE;

    #[test]
    fn equal_tables_are_one_and_mismatches_have_their_lines() {
        let case = Case::parse(CASE, Path::new("c.yaml")).unwrap();
        let cells = case.cells().into_iter().map(|id| Cell {
            verdict: if id.source.is_pod() {
                Verdict::Deny
            } else {
                Verdict::Allow
            },
            detail: "Policy denied".to_owned(),
            doubtful: false,
            id,
        });
        let matrix = Matrix::new(&case, Vec::new(), cells.collect());
        let text = table(&matrix, &case, false);
        assert!(
            text.contains("TCP/80 IPv4, TCP/80 IPv6, ICMPv6/128 IPv6\n"),
            "{text}"
        );
        assert!(text.contains("  1 pod:x/a    D   D   D\n"), "{text}");
        assert!(text.contains("  2 ext:far    A   .   .\n"), "{text}");
        assert!(text.contains("c.yaml:7: x/a > ext:far TCP/80 = allow: expected allow, seen deny"));
        let coloured = table(&matrix, &case, true);
        assert!(coloured.contains("\x1b[31mD\x1b[0m"), "{coloured}");
    }
}
