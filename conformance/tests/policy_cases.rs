//! Policy cases on the real datapath: the quick ones, or those that `DATAPATH_CASES` names.

mod util;

use std::path::Path;

use datapath_conformance::policy::{
    case::{Case, read_probes},
    matrix::{Matrix, Runner, Verdict, table},
};
use datapath_user::Tunnel;
use util::{OrPanic, lab_name};

fn fixture(name: &str) -> std::path::PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    directory.join(name)
}

#[track_caller]
fn all_allowed(matrix: &Matrix, case: &Case) {
    let odd = |cell: &&_| {
        let cell: &datapath_conformance::policy::matrix::Cell = cell;
        cell.verdict != Verdict::Allow
    };
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
