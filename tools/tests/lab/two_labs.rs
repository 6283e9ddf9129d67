//! Two labs at once, with the same addresses in both: every path of either, meanwhile and after
//! the other has gone.

use std::{path::PathBuf, sync::Barrier, thread};

use datapath_conformance::{
    paths,
    report::{Check, Outcome, Report},
    topology::{NodePlan, Plan, Remains},
};
use datapath_tools::lab::{Lab as RunningLab, Spec};
use datapath_user::Tunnel;

use crate::rig::{AGENT, Lab};

fn up(lab: &Lab) -> RunningLab {
    let spec = Spec {
        plan: Plan::new(lab.name.clone()).with_nodes(2, NodePlan::default()),
        tunnel: Tunnel::Direct,
        agent: PathBuf::from(AGENT),
    };
    RunningLab::up(spec, |_| {}).unwrap()
}

fn checked(lab: &RunningLab) -> Report {
    paths::run(&lab.site(), lab, |_| {})
}

#[track_caller]
fn assert_passed(name: &str, report: &Report) {
    let passed = |check: &&Check| check.outcome == Outcome::Passed;
    let failed: Vec<_> = report
        .checks()
        .iter()
        .filter(|check| !passed(check))
        .collect();
    assert!(failed.is_empty(), "{name}: {failed:#?}");
    assert!(report.checks().len() > 40, "{name} has run few checks");
}

#[test]
fn two_labs_do_not_notice_each_other() {
    let names = [Lab::new(), Lab::new()];
    let both_up = Barrier::new(2);
    let [first, second] = thread::scope(|scope| {
        let run = |lab| {
            scope.spawn({
                let both_up = &both_up;
                move || {
                    let running = up(lab);
                    both_up.wait();
                    let report = checked(&running);
                    assert_passed(lab.name(), &report);
                    running
                }
            })
        };
        let labs = [run(&names[0]), run(&names[1])];
        labs.map(|lab| lab.join().unwrap())
    });
    let agent = names[1].agent("n1");
    first.destroy().unwrap();
    assert!(Remains::find(&names[0].name).unwrap().is_empty());
    assert!(agent.runs() && names[1].agent("n2").runs());
    assert_passed(names[1].name(), &checked(&second));
    second.destroy().unwrap();
    assert!(Remains::find(&names[1].name).unwrap().is_empty());
}
