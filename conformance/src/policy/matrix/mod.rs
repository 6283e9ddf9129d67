//! Who reaches whom: a case, built and probed.

mod arena;
mod attempt;
mod exchange;
mod layout;
mod message;
mod policies;
mod result;
mod server;
mod table;

use std::collections::{BTreeMap, BTreeSet};

use datapath_user::{
    Tunnel,
    policy::{Document, PolicySettings},
};

use self::{
    arena::{Arena, Place},
    exchange::{Job, Numbers, Outcome},
    policies::Policies,
    server::Servers,
};
pub use self::{
    policies::{documents, refused},
    result::{Cell, Matrix, Mismatch, Rejected, Verdict},
    table::{summary, table},
};
use super::case::{Case, CellId, Need};
use crate::{error::Result, family::Family, topology::LabName};

/// Runs cases one after the other, in namespaces whose names begin with that of its lab.
///
/// Nodes and their datapaths are kept for the next case if it has the same. Dropping it takes
/// everything down.
#[derive(Debug)]
pub struct Runner {
    lab: LabName,
    tunnel: Tunnel,
    settings: PolicySettings,
    arena: Option<Arena>,
    numbers: Numbers,
}

impl Runner {
    /// Makes a runner. Nothing is built yet.
    #[must_use]
    pub fn new(lab: LabName, tunnel: Tunnel) -> Self {
        Self {
            lab,
            tunnel,
            settings: PolicySettings::default(),
            arena: None,
            numbers: Numbers::default(),
        }
    }

    /// Has policies understood in this way on all nodes.
    #[must_use]
    pub fn with_settings(mut self, settings: PolicySettings) -> Self {
        self.settings = settings;
        self.arena = None;
        self
    }

    /// Builds a case and sends `cells`, or all of the case's.
    ///
    /// # Errors
    ///
    /// [`Error::NotRoot`](crate::Error::NotRoot), [`Error::LabExists`](crate::Error::LabExists),
    /// [`Error::View`](crate::Error::View) with what a datapath says, or what the kernel refused. The
    /// next case begins with new nodes then.
    pub fn run(&mut self, case: &Case, cells: Option<&[CellId]>) -> Result<Matrix> {
        let all;
        let cells = if let Some(cells) = cells {
            cells
        } else {
            all = case.cells();
            &all
        };
        self.enforce(case, cells, policies::read(case))
    }

    /// Builds a case and sends `cells`, under these policies instead of those of its file.
    ///
    /// # Errors
    ///
    /// As [`Runner::run`].
    pub fn run_under(
        &mut self,
        documents: Vec<Document>,
        case: &Case,
        cells: &[CellId],
    ) -> Result<Matrix> {
        let policies = Policies {
            documents,
            rejected: Vec::new(),
        };
        self.enforce(case, cells, policies)
    }

    fn enforce(&mut self, case: &Case, cells: &[CellId], policies: Policies) -> Result<Matrix> {
        let outcome = self.attempt(case, cells, policies);
        if outcome.is_err() {
            self.arena = None;
        }
        outcome
    }

    fn attempt(&mut self, case: &Case, cells: &[CellId], policies: Policies) -> Result<Matrix> {
        if self.arena.as_ref().is_some_and(|arena| !arena.fits(case)) {
            self.arena = None;
        }
        let arena = match &mut self.arena {
            Some(arena) => arena,
            none => {
                let layouts = layout::nodes(case);
                let (lab, tunnel) = (self.lab.clone(), self.tunnel);
                none.insert(Arena::build(lab, &layouts, tunnel, self.settings)?)
            }
        };
        arena.populate(case)?;
        arena.enforce(&policies.documents)?;
        let results = probe(arena, case, cells, &mut self.numbers)?;
        Ok(Matrix::new(case, policies.rejected, results))
    }
}

/// Starts the servers and sends the cells that can be sent.
fn probe(arena: &Arena, case: &Case, cells: &[CellId], numbers: &mut Numbers) -> Result<Vec<Cell>> {
    let mut servers = listen(arena, cells)?;
    let mut events = arena.events()?;
    let planned: Vec<_> = cells
        .iter()
        .map(|cell| plan(arena, case, cell))
        .collect::<Result<_>>()?;
    let (mut jobs, mut skipped) = (Vec::new(), Vec::new());
    for plan in planned {
        match plan {
            Ok(job) => {
                skipped.push(None);
                jobs.push(job);
            }
            Err(reason) => skipped.push(Some(reason)),
        }
    }
    let mut outcomes = exchange::run(&jobs, &mut servers, &mut events, numbers)?.into_iter();
    let results = cells.iter().zip(skipped).map(|(id, reason)| {
        let skipped = |detail: &str| Outcome {
            verdict: Verdict::Skipped,
            detail: detail.to_owned(),
            doubtful: false,
        };
        let outcome = match reason {
            Some(reason) => skipped(reason),
            None => outcomes.next().unwrap_or_else(|| skipped("not sent")),
        };
        Cell {
            id: id.clone(),
            verdict: outcome.verdict,
            detail: outcome.detail,
            doubtful: outcome.doubtful,
        }
    });
    Ok(results.collect())
}

/// Everyone who is sent something listens for it.
fn listen(arena: &Arena, cells: &[CellId]) -> Result<Servers> {
    let mut wanted: BTreeMap<_, (&Place, BTreeSet<_>)> = BTreeMap::new();
    for cell in cells {
        let Some(place) = arena.place(&cell.destination) else {
            continue;
        };
        for &address in &place.addresses {
            // Pods of their node's network are one with it.
            let (_, ports) = wanted.entry(address).or_insert((place, BTreeSet::new()));
            ports.insert((cell.protocol, cell.port));
        }
    }
    let mut servers = Servers::default();
    for (address, (place, ports)) in wanted {
        let ports: Vec<_> = ports.into_iter().collect();
        servers.listen(arena.namespace(place)?, address, &ports)?;
    }
    Ok(servers)
}

/// Between whom a cell runs, or why it does not.
fn plan<'a>(
    arena: &'a Arena,
    case: &Case,
    cell: &CellId,
) -> Result<std::result::Result<Job<'a>, &'static str>> {
    if cell.destination.is_service() {
        return Ok(Err("services are not handled yet"));
    }
    if case.needs.contains(&Need::L7) {
        return Ok(Err("rules about requests are not handled yet"));
    }
    if case.needs.contains(&Need::Fqdn) {
        return Ok(Err("rules about names are not handled yet"));
    }
    let of_family = |place: &Place| {
        let mut all = place.addresses.iter().copied();
        all.find(|&address| Family::of(address) == cell.family)
    };
    let (Some(source), Some(destination)) =
        (arena.place(&cell.source), arena.place(&cell.destination))
    else {
        return Ok(Err("there is no such endpoint"));
    };
    let (Some(from), Some(to)) = (of_family(source), of_family(destination)) else {
        return Ok(Err("an end has no address of this family"));
    };
    // A node speaks to its own pods, and to others', by the address that its kernel takes.
    let is_host = source.is_of_node();
    Ok(Ok(Job {
        cell: cell.clone(),
        source: arena.namespace(source)?,
        from: (!is_host).then_some(from),
        to,
    }))
}
