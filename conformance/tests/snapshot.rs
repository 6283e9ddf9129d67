//! The machine's state names what a lab makes, and is as before when it is gone.

mod util;

use std::time::Duration;

use datapath_conformance::{
    snapshot::MachineState,
    topology::{Fabric, Plan},
};
use util::{OrPanic, lab_name};

#[test]
fn a_lab_shows_while_it_is_up_and_not_after() {
    let plan = Plan::new(lab_name("state"));
    let name = plan.lab.to_string();
    // Other programs may make and remove things meanwhile: only this lab's are looked at.
    let ours = |difference: Vec<String>| {
        let mut ours = difference;
        ours.retain(|line| line.contains(&name));
        ours
    };
    let before = MachineState::take().or_panic();
    let fabric = Fabric::build(plan).or_panic();
    let up = ours(before.diff(&MachineState::take().or_panic()));
    let count = |start: &str| up.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!(count("network namespace"), 8, "{up:#?}");
    // One for each namespace, one for BPF pins.
    assert_eq!(count("mount"), 9, "{up:#?}");
    assert!(count("file") >= 5, "{up:#?}");
    assert!(up.iter().all(|line| line.ends_with("is new")), "{up:#?}");
    drop(fabric);
    let left = ours(before.diff(&MachineState::take().or_panic()));
    assert!(left.is_empty(), "{left:#?}");
    assert!(ours(before.wait_for_return(Duration::ZERO).or_panic()).is_empty());
}
