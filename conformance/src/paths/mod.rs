//! Every path through a datapath, on real traffic: who reaches whom and as whom, and what must
//! not get through.
//!
//! [`run`] takes a [`Site`], which borrows the namespaces of a running lab, and a [`NodeView`],
//! which tells what each node's datapath has counted. [`InProcess`] brings up datapaths in this
//! process to run it on.

mod check;
mod evidence;
mod flows;
mod frames;
mod gateway;
mod in_process;
mod reach;
mod refusal;
mod site;

use std::time::Duration;

use self::{
    check::{Complaint, Found, Journal, Subject},
    evidence::Evidence,
    site::Cast,
};
pub use self::{
    in_process::{InProcess, peer_spec, pod_address, pod_identity},
    site::{Addresses, Host, NodeView, Site, SiteNode, SitePod},
};
use crate::{
    error::{Error, Result},
    patience::scaled,
    probe::EchoServer,
    report::{Check, Outcome, Report},
};

/// The port of the servers, TCP and UDP.
const PORT: u16 = 7007;
/// How long an answer may take. What comes, comes in milliseconds.
fn patience() -> Duration {
    scaled(Duration::from_secs(3))
}

/// Runs every check on a lab, and tells each as soon as its result is there.
///
/// The lab needs two pods on one node and one pod on another. A check that cannot be prepared,
/// the first one included, is one that failed.
///
/// What crosses the interfaces of nodes, pods and outside meanwhile is captured. Where a check
/// fails the captures are kept, and the check says in which directory; else nothing is left.
pub fn run(site: &Site<'_>, view: &dyn NodeView, mut on_check: impl FnMut(&Check)) -> Report {
    let gathered = Evidence::gather(site);
    let mut journal = Journal::new(&mut on_check);
    match &gathered {
        Ok(evidence) => journal.point_to(evidence.path()),
        Err(error) => {
            let subject = Subject::new("paths", "capture what crosses the lab");
            journal.add(subject.skipped(error.chain()));
        }
    }
    checks(site, view, &mut journal);
    let report = journal.finish();
    let failed = |check: &Check| matches!(check.outcome, Outcome::Failed { .. });
    if let Ok(evidence) = gathered
        && report.checks().iter().any(failed)
        && let Err(error) = evidence.keep()
    {
        tracing::warn!(error = error.chain(), "captures are not complete");
    }
    report
}

fn checks(site: &Site<'_>, view: &dyn NodeView, journal: &mut Journal<'_>) {
    let prepared = Cast::of(site).and_then(|cast| {
        let servers = serve(&cast)?;
        Ok((cast, servers, refusal::drops(site, view)?))
    });
    let (cast, servers, before) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            let subject = Subject::new("paths", "prepare the lab");
            journal.add(subject.check(|| Err(error.into())));
            return;
        }
    };
    gateway::checks(&cast, |check| journal.add(check));
    reach::checks(&cast, |checks| journal.extend(checks));
    reach::bulk(&cast, |check| journal.add(check));
    flows::checks(&cast, view, |check| journal.add(check));
    let lossless = Subject::new("paths", "nothing of all this was dropped");
    journal.add(lossless.check(|| {
        let moved = refusal::movements(site, view, &before, None)?;
        if moved.is_empty() {
            let detail = format!("no drop counter moved on {} nodes", site.nodes.len());
            return Ok(Found { detail, actions: 1 });
        }
        Err(Complaint::new(moved.join(", ")))
    }));
    drop(servers);
    refusal::checks(&cast, view, |check| journal.add(check));
}

/// Starts servers on everyone who is called.
fn serve(cast: &Cast<'_, '_>) -> Result<Vec<EchoServer>> {
    let pods = [cast.pod, cast.neighbour, cast.remote].map(|pod| &pod.host);
    let others = [&cast.node.host, &cast.other_node.host, &cast.site.outside];
    let hosts = pods.into_iter().chain(others);
    hosts
        .map(|host| EchoServer::start(host.namespace, &[PORT], &[PORT]))
        .collect::<Result<_, Error>>()
}
