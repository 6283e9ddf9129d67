//! A report for people.

use std::{collections::BTreeMap, fmt::Write};

use comfy_table::{CellAlignment, Table, presets};

use crate::{
    contest::{Gate, list},
    machine::{Card, Machine},
    report::{GateResult, Report, Row, Skipped, Void},
    stats::Quartiles,
};

impl Report {
    /// Lays it out for people: the machine, the figures, and what came of each gate.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = describe(&self.machine);
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "CASE", "VARIANT", "WITH", "UNIT", "NS", "MIN", "MAX", "CPU NS", "RATIO", "Q1", "Q3",
            "LOSS", "ROUNDS", "VOID",
        ]);
        table.add_rows(self.results.iter().map(cells));
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if index > 3 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        text.push_str(&table.trim_fmt());
        text.push_str("\n\n");
        for row in &self.results {
            if let Some(gate) = row.gate {
                text.push_str(&gate_line(row, gate));
            }
            for (what, value) in &row.observed {
                let _ = writeln!(text, "{} {}: {what} {value:.0}", row.case, name(row));
            }
            for flaw in &row.flaws {
                let _ = writeln!(text, "{} {}: FLAW: {flaw}", row.case, name(row));
            }
        }
        for skipped in &self.skipped {
            let Skipped {
                case,
                params,
                against,
                reason,
            } = skipped;
            let params = list(params);
            let _ = writeln!(
                text,
                "{case} ({params}) against {against}: SKIPPED: {reason}"
            );
        }
        text
    }
}

fn describe(machine: &Machine) -> String {
    let mut text = format!(
        "kernel {}, {} x {}\n",
        machine.kernel, machine.cpus, machine.cpu_model
    );
    for (weakness, state) in &machine.mitigations {
        let _ = writeln!(text, "  {weakness}: {state}");
    }
    for (interface, mtu_bytes) in &machine.mtu_bytes {
        let on = machine.offloads.get(interface).map(switched_on);
        let on = on.unwrap_or_default();
        let _ = writeln!(text, "{interface}: MTU {mtu_bytes}, offloads {on}");
    }
    if let Some(card) = &machine.uplink {
        let unknown = |told: &Option<String>| told.clone().unwrap_or_else(|| "unknown".to_owned());
        let Card {
            interface,
            mtu_bytes,
            next_hop,
            ..
        } = card;
        let (driver, speed) = (unknown(&card.driver), unknown(&card.speed));
        let on = switched_on(&card.offloads);
        let _ = writeln!(
            text,
            "uplink {interface}: driver {driver}, speed {speed}, MTU {mtu_bytes}, offloads {on}; \
             delivered is what was given to it, for {next_hop}; flows are opened anew in each round"
        );
    }
    for (variant, says) in &machine.tools {
        let _ = writeln!(text, "{variant}: {says}");
    }
    for (size, value) in &machine.conntrack {
        let _ = writeln!(text, "{size} {value}");
    }
    text.push('\n');
    text
}

fn switched_on(offloads: &BTreeMap<&'static str, bool>) -> String {
    let on = offloads.iter().filter(|(_, on)| **on);
    let on: Vec<_> = on.map(|(name, _)| *name).collect();
    if on.is_empty() {
        "none".to_owned()
    } else {
        on.join(", ")
    }
}

fn cells(row: &Row) -> Vec<String> {
    let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.1}"));
    let ratio = row.ratio.first_key_value().map(|(_, quartiles)| *quartiles);
    let factor = |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:.3}"));
    let Void {
        lost,
        flawed,
        disturbed,
    } = row.void;
    vec![
        row.case.to_owned(),
        row.variant.to_owned(),
        params(row),
        row.unit.to_owned(),
        figure(row.ns_per_packet.map(|ns| ns.median)),
        figure(row.ns_per_packet.map(|ns| ns.min)),
        figure(row.ns_per_packet.map(|ns| ns.max)),
        figure(row.cpu_ns_per_packet.map(|ns| ns.median)),
        factor(ratio.map(|r| r.median)),
        factor(ratio.map(|r| r.q1)),
        factor(ratio.map(|r| r.q3)),
        format!("{:.2}%", row.loss * 100.0),
        row.rounds.to_string(),
        format!("{}", lost + flawed + disturbed),
    ]
}

fn gate_line(row: &Row, result: GateResult) -> String {
    let shown = |speed: &Quartiles| {
        let (word, shown) = match result.gate {
            Gate::SpeedAtLeast(_) => ("speed", *speed),
            Gate::CostAtMost(_) => ("cost", speed.inverse()),
        };
        let Quartiles { median, q1, q3 } = shown;
        format!("{word} {median:.3}x [{q1:.3}, {q3:.3}]")
    };
    let mut figures = String::new();
    if let Some((against, speed)) = row.ratio.first_key_value() {
        let _ = write!(figures, "{} of {against}", shown(speed));
        if let Some(speed) = row.cpu_ratio.get(against) {
            let _ = write!(figures, " (by CPU time {})", shown(speed));
        }
        figures.push_str(", ");
    }
    let goal = match (result.goal, result.reached) {
        (Some(goal), Some(true)) => format!(" (goal {goal:.2}x: reached)"),
        (Some(goal), _) => format!(" (goal {goal:.2}x)"),
        (None, _) => String::new(),
    };
    let verdict = match result.passed {
        Some(true) => "passed".to_owned(),
        Some(false) => "MISSED".to_owned(),
        None => {
            let Void {
                lost,
                flawed,
                disturbed,
            } = row.void;
            format!(
                "NOT USABLE ({lost} rounds with loss, {flawed} flawed, {disturbed} on a busy machine)"
            )
        }
    };
    format!(
        "{} {}: {figures}{}{goal}: {verdict}\n",
        row.case,
        name(row),
        result.gate,
    )
}

fn name(row: &Row) -> String {
    format!("{} ({})", row.variant, params(row))
}

fn params(row: &Row) -> String {
    list(&row.params)
}
