//! What the running kernel gives the datapath, and whether everything works on it.
//!
//! The program `kernel-check` runs [`check`] inside a guest and writes what it says to a file, for
//! the table of `cargo xtask test kernels`.

mod cards;
mod load;
mod pods;
mod report;

use std::time::Instant;

use datapath_tunnel::netlink::TunnelLink;
use datapath_user::Kernel;

pub use self::report::{Report, Size};
use crate::{
    error::{Error, Result},
    family::Family,
    netns::Namespace,
    paths::{self, InProcess},
    report::{Check, Outcome},
    topology::{Fabric, LabName, NodePlan, Plan, UplinkKind},
};

/// Cables of the lab: to two nodes and the outside host.
const CABLES: usize = 3;

/// Loads every program, then runs every path over tunnels of both families; `tell` gets a line for
/// each step. With `cards`, over the network cards of this namespace instead of veth pairs.
///
/// # Errors
///
/// What kept it from looking. What was looked at and found wrong is in the report.
pub fn check(cards: bool, mut tell: impl FnMut(&str)) -> Result<Report> {
    let start = Instant::now();
    let kernel = Kernel::probe().map_err(|source| Error::View {
        node: "this machine".to_owned(),
        source: Box::new(source),
    })?;
    tell(&format!("kernel {}", kernel.release));
    let mut report = Report::new(&kernel.release);
    facts(&kernel, &mut report)?;
    let cables = || {
        if cards {
            cards::cables(CABLES)
        } else {
            Ok(Vec::new())
        }
    };
    if let Some(cable) = cables()?.first() {
        for (name, value) in cards::describe(cable)? {
            report.fact(&name, &value);
        }
    }
    for size in load::programs(&kernel)? {
        tell(&format!(
            "{}: {} instructions, {} verified",
            size.program, size.instructions, size.verified
        ));
        report.sizes.push(size);
    }
    for tunnel in Family::ALL {
        tell(&format!("lab with tunnels over {tunnel}"));
        let fabric = Fabric::build_with(plan(UplinkKind::Plain)?, &cables()?)?;
        paths_of(
            &kernel,
            fabric,
            tunnel,
            &format!("tunnel {tunnel}"),
            &mut report,
            &mut tell,
        )?;
    }
    // What lies on a card is as much a matter of the kernel's as the card.
    for (name, kind) in [("vlan", UplinkKind::Vlan), ("bond", UplinkKind::Bond)] {
        if !cards && report.is_fact(name, YES) {
            tell(&format!("lab with a {name} as uplink"));
            let fabric = Fabric::build(plan(kind)?)?;
            paths_of(&kernel, fabric, Family::Ipv4, name, &mut report, &mut tell)?;
        }
    }
    report.seconds = start.elapsed().as_secs();
    Ok(report)
}

/// A lab whose nodes have such uplinks.
fn plan(uplink: UplinkKind) -> Result<Plan> {
    let lab: LabName = format!("kernel-{}", std::process::id()).parse()?;
    let node = NodePlan {
        uplink,
        ..NodePlan::default()
    };
    Ok(Plan::new(lab).with_nodes(2, node))
}

/// Runs every path of a lab, which goes after that.
fn paths_of(
    kernel: &Kernel,
    fabric: Fabric,
    tunnel: Family,
    label: &str,
    report: &mut Report,
    tell: &mut impl FnMut(&str),
) -> Result<()> {
    let mut datapaths = InProcess::start(&fabric, tunnel)?;
    let device = pods::device(kernel);
    let found = pods::are_by(device, &fabric)?;
    report.add(&format!("{label}: pods by {device}"), found, tell);
    // Not always: the programs of the first process are to carry everything too.
    if tunnel == Family::Ipv6 {
        let found = pods::change_hands(&mut datapaths)?;
        report.add(&format!("{label}: programs replaced"), found, tell);
    }
    let site = datapaths.site(&fabric, tunnel);
    paths::run(&site, &datapaths, |check| {
        let line = line(label, check);
        tell(&line);
        match check.outcome {
            Outcome::Passed => report.passed += 1,
            Outcome::Failed { .. } | Outcome::Skipped { .. } => report.failures.push(line),
        }
    });
    datapaths.stop()?;
    fabric.destroy()
}

/// The word for what is there.
const YES: &str = "yes";

/// What is there and what is not, one fact in a row of the table.
fn facts(kernel: &Kernel, report: &mut Report) -> Result<()> {
    let word = |there| if there { YES } else { "no" };
    report.fact("attached by", if kernel.tcx { "tcx" } else { "clsact" });
    report.fact("decap flags", word(kernel.decap_flags));
    report.fact("IPv6 checksum flag", word(kernel.checksum_v6));
    let probe = Namespace::create(&format!("kernel-{}-probe", std::process::id()))?;
    let netlink = probe.netlink()?;
    let geneve = netlink.add_geneve(&TunnelLink::metadata("gnv0", 6081));
    report.fact("geneve device", word(geneve.is_ok()));
    for kind in ["vlan", "bond", "netkit"] {
        let there = probe.netlink_result(netlink.has_kind(kind, "probe0"))?;
        let used = pods::device(kernel) == kind;
        report.fact(kind, if used { "used" } else { word(there) });
    }
    Ok(())
}

/// A check in one line.
fn line(lab: &str, check: &Check) -> String {
    let labels = [
        check.family.map(|family| family.to_string()),
        check.protocol.map(|protocol| protocol.to_string()),
    ];
    let labels: Vec<_> = labels.into_iter().flatten().collect();
    let said = match &check.outcome {
        Outcome::Passed => format!("ok: {}", check.detail),
        Outcome::Failed { detail } => format!("FAILED: {detail}"),
        Outcome::Skipped { reason } => format!("skipped: {reason}"),
    };
    format!(
        "{lab}, {}: {} {}: {said}",
        check.scenario,
        check.path,
        labels.join(" ")
    )
}
