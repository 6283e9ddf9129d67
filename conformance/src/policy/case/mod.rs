//! Policy cases: files that say what there is, which policies hold, and who may reach whom.
//!
//! A file holds several YAML documents: one [`Case`], and beside it what Kubernetes would be given.
//! Policies are kept as text: whoever runs the case reads them, and some are there to be refused.

mod assertion;
mod document;
mod endpoint;
mod object;
mod probe;
mod spec;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

pub use self::{
    assertion::{Assertion, Expected},
    document::PolicyText,
    endpoint::EndpointId,
    object::{ExternalHost, Namespace, Node, Pod, Service},
    probe::{CellId, Http, Probe, ProbeProtocol, read_probes},
    spec::Need,
};
use self::{
    document::{Piece, Problem},
    spec::Spec,
};
use crate::{
    error::{Error, Result},
    family::Family,
};

/// A case as its file has it, checked: whatever is named is there.
#[derive(Clone, Debug)]
pub struct Case {
    /// The file.
    pub file: PathBuf,
    /// Its name, which is the file's without its ending.
    pub name: String,
    /// What it is about, for people.
    pub title: String,
    /// Words to choose cases by.
    pub tags: BTreeSet<String>,
    /// Features without which cells may be skipped.
    pub needs: BTreeSet<Need>,
    /// What is sent from each source to each destination.
    pub probes: Vec<Probe>,
    /// Over which families.
    pub families: Vec<Family>,
    /// Who sends.
    pub sources: Vec<EndpointId>,
    /// To whom.
    pub destinations: Vec<EndpointId>,
    /// The policies that must be refused: `Kind/namespace/name`, or `Kind/name`.
    pub rejected: BTreeSet<String>,
    /// What is expected of cells.
    pub assertions: Vec<Assertion>,
    /// Namespaces, by name, with their labels.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Nodes, in the order of the file.
    pub nodes: Vec<Node>,
    /// Pods, in the order of the file.
    pub pods: Vec<Pod>,
    /// Services, in the order of the file.
    pub services: Vec<Service>,
    /// Hosts outside, in the order of the file.
    pub hosts: Vec<ExternalHost>,
    /// Policies, in the order of the file.
    pub policies: Vec<PolicyText>,
}

impl Case {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when it cannot be read, [`Error::Case`] with the place of what is wrong in it.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).map_err(Error::os("read", file.display()))?;
        let stem = file.file_stem().and_then(|stem| stem.to_str());
        let case = Self::parse(&text, file)?;
        if stem.is_some_and(|stem| stem != case.name) {
            return Err(Error::Case {
                file: file.to_owned(),
                line: 1,
                problem: format!("the case is named {:?}: name it as the file", case.name),
            });
        }
        Ok(case)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    ///
    /// [`Error::Case`] with the place of what is wrong.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        Self::build(text, file).map_err(|Problem { line, problem }| Error::Case {
            file: file.to_owned(),
            line,
            problem,
        })
    }

    /// Returns all cells: every source to every destination by every probe in every family.
    ///
    /// What is no pod is not probed from what is no pod, and ICMP runs in its own family only.
    #[must_use]
    pub fn cells(&self) -> Vec<CellId> {
        let mut cells = Vec::new();
        for source in &self.sources {
            for destination in &self.destinations {
                if !source.is_pod() && !destination.is_pod() && !destination.is_service() {
                    continue;
                }
                for probe in &self.probes {
                    for &family in &self.families {
                        if !probe.protocol.runs_on(family) {
                            continue;
                        }
                        cells.push(CellId {
                            source: source.clone(),
                            destination: destination.clone(),
                            family,
                            protocol: probe.protocol,
                            port: probe.port,
                            http: probe.http.clone(),
                        });
                    }
                }
            }
        }
        cells
    }

    /// Returns all endpoints that may send.
    fn endpoints(&self) -> Vec<EndpointId> {
        let pods = self.pods.iter().map(Pod::id);
        let hosts = self.hosts.iter().map(ExternalHost::id);
        pods.chain(hosts)
            .chain(self.nodes.iter().map(Node::id))
            .collect()
    }

    fn build(text: &str, file: &Path) -> Result<Self, Problem> {
        let mut found = Found::default();
        for piece in document::split(text) {
            found.take(piece)?;
        }
        let Some((line, name, spec)) = found.case else {
            return Err(Problem::at(
                1,
                "there is no Case: begin the file with a document of `apiVersion: conformance/v1` \
                 and `kind: Case`",
            ));
        };
        let mut case = Self {
            file: file.to_owned(),
            name,
            title: spec.title.clone(),
            tags: spec.tags.iter().cloned().collect(),
            needs: spec.needs.iter().copied().collect(),
            probes: spec.probes.clone(),
            families: spec.families()?,
            sources: Vec::new(),
            destinations: Vec::new(),
            rejected: spec.rejected.iter().cloned().collect(),
            assertions: Vec::new(),
            namespaces: found.namespaces,
            nodes: found.nodes,
            pods: found.pods,
            services: found.services,
            hosts: found.hosts,
            policies: found.policies,
        };
        case.check(line)?;
        let everyone = case.endpoints();
        case.sources = Spec::endpoints(spec.sources.as_deref(), &everyone)?;
        let services: Vec<_> = case.services.iter().map(Service::id).collect();
        let receivers = [everyone, services].concat();
        case.destinations = Spec::endpoints(spec.destinations.as_deref(), &receivers)?;
        case.assertions = spec.assertions(&case, &receivers)?;
        Ok(case)
    }

    /// Checks that what is named is there, and there once.
    fn check(&self, line: u64) -> Result<(), Problem> {
        let mut ids = BTreeSet::new();
        let ids_of = self.endpoints().into_iter();
        for id in ids_of.chain(self.services.iter().map(Service::id)) {
            if !ids.insert(id.clone()) {
                return Err(Problem::at(line, format!("{id} is there twice")));
            }
        }
        for pod in &self.pods {
            if !self.nodes.iter().any(|node| node.name == pod.node) {
                let problem = format!(
                    "{} is on node {:?}, which is not there: spec.nodeName must name a Node of the \
                     file",
                    pod.id(),
                    pod.node
                );
                return Err(Problem::at(pod.line, problem));
            }
            if !pod.host_network && pod.addresses.is_empty() {
                let problem = format!("{} has no address: give it status.podIPs", pod.id());
                return Err(Problem::at(pod.line, problem));
            }
        }
        let mut addresses = BTreeMap::new();
        let of_pods = self.pods.iter().filter(|pod| !pod.host_network);
        let all = of_pods
            .map(|pod| (pod.id(), &pod.addresses, pod.line))
            .chain(
                self.nodes
                    .iter()
                    .map(|node| (node.id(), &node.addresses, node.line)),
            )
            .chain(
                self.hosts
                    .iter()
                    .map(|host| (host.id(), &host.addresses, host.line)),
            );
        for (id, own, line) in all {
            for address in own {
                if let Some(other) = addresses.insert(*address, id.clone()) {
                    let problem = format!("{id} has {address}, which is the address of {other}");
                    return Err(Problem::at(line, problem));
                }
            }
        }
        Ok(())
    }
}

/// What was found in a file so far.
#[derive(Default)]
struct Found {
    case: Option<(u64, String, Spec)>,
    namespaces: BTreeMap<String, Namespace>,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    services: Vec<Service>,
    hosts: Vec<ExternalHost>,
    policies: Vec<PolicyText>,
}

impl Found {
    fn take(&mut self, piece: Piece<'_>) -> Result<(), Problem> {
        if let Some(policy) = piece.policy() {
            self.policies.push(policy);
            return Ok(());
        }
        let (version, kind) = piece.kind()?;
        match (version.as_str(), kind.as_str()) {
            ("conformance/v1", "Case") => {
                if self.case.is_some() {
                    return Err(piece.wrong("there is a Case already: a file has one"));
                }
                let (name, spec) = spec::read(&piece)?;
                self.case = Some((piece.line, name, spec));
            }
            ("conformance/v1", "ExternalHost") => self.hosts.push(object::host(&piece)?),
            ("v1", "Namespace") => {
                let namespace = object::namespace(&piece)?;
                let name = namespace.name.clone();
                if self.namespaces.insert(name.clone(), namespace).is_some() {
                    return Err(piece.wrong(format!("there are two namespaces {name:?}")));
                }
            }
            ("v1", "Node") => self.nodes.push(object::node(&piece)?),
            ("v1", "Pod") => self.pods.push(object::pod(&piece)?),
            ("v1", "Service") => self.services.push(object::service(&piece)?),
            _ => {
                return Err(piece.wrong(format!(
                    "unknown kind {kind:?} of {version:?}: a case has Case and ExternalHost \
                     (conformance/v1), Namespace, Node, Pod and Service (v1), NetworkPolicy, \
                     CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(in crate::policy) mod tests;
