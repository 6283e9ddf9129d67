//! What the running kernel gives the datapath, and whether everything works on it.
//!
//! The program `kernel-check` runs [`check`] inside a guest and writes what it says to a file, for
//! the table of `cargo xtask test kernels`.

mod cards;
mod load;
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
    program,
    report::{Check, Outcome},
    topology::{Fabric, LabName, Plan},
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
        let lab: LabName = format!("kernel-{}", std::process::id()).parse()?;
        let fabric = Fabric::build_with(Plan::new(lab), &cables()?)?;
        let datapaths = InProcess::start(&fabric, tunnel)?;
        let site = datapaths.site(&fabric, tunnel);
        paths::run(&site, &datapaths, |check| {
            let line = line(tunnel, check);
            tell(&line);
            match check.outcome {
                Outcome::Passed => report.passed += 1,
                Outcome::Failed { .. } | Outcome::Skipped { .. } => report.failures.push(line),
            }
        });
        datapaths.stop()?;
        fabric.destroy()?;
    }
    report.seconds = start.elapsed().as_secs();
    Ok(report)
}

/// What is there and what is not, one fact in a row of the table.
fn facts(kernel: &Kernel, report: &mut Report) -> Result<()> {
    let word = |there| if there { "yes" } else { "no" };
    report.fact("attached by", if kernel.tcx { "tcx" } else { "clsact" });
    report.fact("decap flags", word(kernel.decap_flags));
    report.fact("IPv6 checksum flag", word(kernel.checksum_v6));
    let probe = Namespace::create(&format!("kernel-{}-probe", std::process::id()))?;
    let netlink = probe.netlink()?;
    let geneve = netlink.add_geneve(&TunnelLink::metadata("gnv0", 6081));
    report.fact("geneve device", word(geneve.is_ok()));
    let netkit = program::output(
        "ip",
        "iproute2",
        probe
            .command("ip")
            .args(["link", "add", "probe0", "type", "netkit"]),
    );
    report.fact("netkit", word(netkit.is_ok()));
    Ok(())
}

/// A check in one line.
fn line(tunnel: Family, check: &Check) -> String {
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
        "tunnel {tunnel}, {}: {} {}: {said}",
        check.scenario,
        check.path,
        labels.join(" ")
    )
}
