//! A lab where a process may do what one in a privileged container often may, and no more.

use std::process::Command;

use serde_json::Value;

use crate::rig::{DPCTL, Lab, Said};

#[test]
fn a_demo_passes_without_sys_resource() {
    let lab = Lab::new();
    let dropped = "-sys_resource";
    let mut status = Command::new("setpriv");
    status.args(["--bounding-set", dropped, "--inh-caps", dropped]);
    let bits = status.args(["grep", "CapEff", "/proc/self/status"]);
    let bits = Said::of(bits.output().unwrap()).good();
    let bits = u64::from_str_radix(bits.split_whitespace().last().unwrap(), 16).unwrap();
    assert_eq!(bits & (1 << 24), 0, "setpriv takes CAP_SYS_RESOURCE away");

    let mut demo = Command::new("setpriv");
    demo.args(["--bounding-set", dropped, "--inh-caps", dropped]);
    demo.args([DPCTL, "--output", "json", "lab", "demo", lab.name()]);
    let report = Said::of(demo.output().unwrap()).good();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["failed"], 0, "{report:#}");
    let scenarios = report["scenarios"].as_array().unwrap();
    let actions = scenarios.iter().map(|one| one["actions"].as_u64().unwrap());
    assert!(actions.sum::<u64>() > 100, "{report:#}");
}
