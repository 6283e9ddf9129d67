//! Policy cases on the real datapath: the quick ones, or those that `DATAPATH_CASES` names.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, outside of what clippy takes for one; how far it is"
)]

mod util;

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::Instant,
};

use datapath_conformance::policy::{
    case::{Case, read_probes},
    matrix::{Cell, Matrix, Runner, Verdict, summary, table},
    second::SecondReading,
};
use datapath_user::Tunnel;
use util::{
    OrPanic,
    cases::{all_cases, chosen_tunnel},
    lab_name,
};

/// Which cases to run: `all`, or their names with commas between. Without it, those tagged `quick`.
const WHICH: &str = "DATAPATH_CASES";

fn fixture(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    directory.join(name)
}

#[track_caller]
fn all_allowed(matrix: &Matrix, case: &Case) {
    let odd = |cell: &&Cell| cell.verdict != Verdict::Allow;
    let odd: Vec<_> = matrix.cells.iter().filter(odd).collect();
    assert!(odd.is_empty(), "{odd:#?}\n{}", table(matrix, case, false));
    assert_eq!(matrix.mismatches(case), []);
}

#[test]
fn without_policies_everyone_reaches_everyone_in_every_tunnel_mode() {
    let case = Case::read(&fixture("open.yaml")).or_panic();
    for tunnel in [Tunnel::Direct, Tunnel::Native] {
        let mut runner = Runner::new(lab_name("open"), tunnel);
        let matrix = runner.run(&case, None).or_panic();
        // Eight to eight, but for the four that are no pods among each other: 48 pairs, by four
        // protocols in both families and two in one.
        assert_eq!(matrix.cells.len(), 48 * 10);
        all_allowed(&matrix, &case);
        // The same nodes once more, and only some of the cells.
        let probes = read_probes(&fixture("open.json"), &case.name).or_panic();
        let matrix = runner.run(&case, Some(&probes)).or_panic();
        assert_eq!(matrix.cells.len(), 2);
        all_allowed(&matrix, &case);
        let json = serde_json::to_value(&matrix).unwrap();
        assert_eq!(json["format"], "netmatrix/1");
        assert_eq!(
            json["cells"][0],
            serde_json::json!({
                "src": "pod:x/a", "dst": "ext:far", "family": 6, "protocol": "UDP", "port": 5353,
                "verdict": "allow", "detail": "answered",
            })
        );
    }
}

fn chosen_cases() -> Vec<Case> {
    let mut cases = all_cases();
    match std::env::var(WHICH).ok().as_deref() {
        Some("all") => {}
        Some(names) => {
            let names: BTreeSet<&str> = names.split(',').collect();
            let known = |name: &&str| cases.iter().any(|case| case.name == *name);
            let unknown: Vec<_> = names.iter().filter(|name| !known(name)).collect();
            assert!(
                unknown.is_empty(),
                "{WHICH}: there are no cases {unknown:?}"
            );
            cases.retain(|case| names.contains(case.name.as_str()));
        }
        None => cases.retain(|case| case.tags.contains("quick")),
    }
    cases
}

#[test]
fn cases_are_as_they_expect() {
    /// Two at a time: much of a case is waiting.
    const RUNNERS: usize = 2;
    let mut cases = chosen_cases();
    // Nodes that are alike run one case after the other, without loading anything anew; the first
    // has pods on all of them.
    cases.sort_by_key(|case| {
        let nodes = case.nodes.iter();
        let nodes: Vec<_> = nodes
            .map(|it| (it.name.clone(), it.labels.clone()))
            .collect();
        let homes: BTreeSet<_> = case.pods.iter().map(|pod| &pod.node).collect();
        (nodes, Reverse(homes.len()))
    });
    assert!(!cases.is_empty(), "{WHICH}: no case is chosen");
    let tunnel = chosen_tunnel();
    let (queue, failures) = (Mutex::new(cases.iter()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for number in 0..RUNNERS {
            let (queue, failures) = (&queue, &failures);
            scope.spawn(move || {
                let name = lab_name(&format!("cases{number}"));
                let mut runner = Runner::new(name, tunnel);
                loop {
                    let Some(case) = queue.lock().unwrap().next() else {
                        break;
                    };
                    let started = Instant::now();
                    let said = match runner.run(case, None) {
                        Ok(matrix) => what_is_wrong(&matrix, case),
                        Err(error) => Some(format!("{}: {}\n", case.name, error.chain())),
                    };
                    let verdict = if said.is_none() { "ok" } else { "FAILED" };
                    println!("{}: {verdict} in {:.1?}", case.name, started.elapsed());
                    failures.lock().unwrap().extend(said);
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {} cases:\n{}",
        failures.len(),
        cases.len(),
        failures.concat()
    );
}

/// What is not as the case has it, and what is not as a second reading has it, of cells too that the
/// case says nothing of.
fn what_is_wrong(matrix: &Matrix, case: &Case) -> Option<String> {
    let second = SecondReading::new(case);
    let mut said = String::new();
    if !matrix.mismatches(case).is_empty() {
        said += &summary(matrix, case);
    }
    for Cell { id, verdict, .. } in &matrix.cells {
        let differs = match verdict {
            Verdict::Allow => second.passes(id) == Some(false),
            Verdict::Deny => second.passes(id) == Some(true),
            Verdict::Skipped | Verdict::Error => false,
        };
        if differs {
            let name = &case.name;
            writeln!(
                said,
                "{name}: {id}: {verdict}, and a second reading says otherwise"
            )
            .unwrap();
        }
    }
    (!said.is_empty()).then_some(said)
}
