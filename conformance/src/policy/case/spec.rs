//! The document that makes a file a case.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{
    Assertion, Case, CellId, EndpointId, Expected, Probe, ProbeProtocol,
    document::{Piece, Problem},
};
use crate::family::Family;

/// Features that a case may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// SCTP.
    Sctp,
    /// Names in policies.
    Fqdn,
    /// Requests of protocols above TCP.
    L7,
    /// Services.
    Service,
}

/// What a case says of itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    #[serde(default)]
    pub(super) title: String,
    #[serde(default)]
    pub(super) tags: Vec<String>,
    /// For people only.
    #[serde(default, rename = "ref")]
    _reference: Option<Reference>,
    #[serde(default)]
    pub(super) needs: Vec<Need>,
    pub(super) probes: Vec<Probe>,
    families: Spanned<Vec<u8>>,
    #[serde(default)]
    pub(super) sources: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    pub(super) destinations: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    pub(super) rejected: Vec<String>,
    #[serde(default)]
    assert: Vec<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "it is checked to be text, and that is all")]
enum Reference {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "apiVersion")]
    _version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
}

/// Reads the document: the case's name, and the rest.
pub(super) fn read(piece: &Piece<'_>) -> Result<(String, Spec), Problem> {
    let document: Document = piece.read()?;
    let spec = document.spec;
    if spec.probes.is_empty() {
        return Err(piece.wrong("spec.probes is empty: name at least one probe"));
    }
    for probe in &spec.probes {
        if probe.http.is_some() && probe.protocol != ProbeProtocol::Tcp {
            let problem = format!("spec.probes: http goes with TCP, not {}", probe.protocol);
            return Err(piece.wrong(problem));
        }
        let icmp = matches!(probe.protocol, ProbeProtocol::Icmp | ProbeProtocol::Icmpv6);
        if icmp && probe.port > 255 {
            let problem = format!("spec.probes: {} is no ICMP type", probe.port);
            return Err(piece.wrong(problem));
        }
        if !icmp && probe.port == 0 {
            return Err(piece.wrong("spec.probes: port 0 cannot be listened on"));
        }
    }
    Ok((document.metadata.name, spec))
}

impl Spec {
    pub(super) fn families(&self) -> Result<Vec<Family>, Problem> {
        let line = self.families.defined.line();
        let mut families = Vec::new();
        for number in &self.families.value {
            let family = match number {
                4 => Family::Ipv4,
                6 => Family::Ipv6,
                other => {
                    return Err(Problem::at(line, format!("family {other}: write 4 or 6")));
                }
            };
            if !families.contains(&family) {
                families.push(family);
            }
        }
        if families.is_empty() {
            return Err(Problem::at(
                line,
                "spec.families is empty: name 4, 6 or both",
            ));
        }
        Ok(families)
    }

    /// The endpoints of a list; without one, all.
    pub(super) fn endpoints(
        list: Option<&[Spanned<String>]>,
        all: &[EndpointId],
    ) -> Result<Vec<EndpointId>, Problem> {
        let Some(list) = list else {
            return Ok(all.to_vec());
        };
        let mut found = Vec::new();
        for entry in list {
            let line = entry.defined.line();
            let id = entry.value.parse::<EndpointId>();
            let id = id.map_err(|error| Problem::at(line, error.to_string()))?;
            known(&id, all, line)?;
            if !found.contains(&id) {
                found.push(id);
            }
        }
        Ok(found)
    }

    /// What is expected; no two lines say different things of one cell.
    pub(super) fn assertions(
        &self,
        case: &Case,
        all: &[EndpointId],
    ) -> Result<Vec<Assertion>, Problem> {
        let family = case.families.iter().min().copied();
        let family = family.unwrap_or(Family::Ipv4);
        let mut said: BTreeMap<CellId, Expected> = BTreeMap::new();
        let mut found = Vec::new();
        for entry in &self.assert {
            let line = entry.defined.line();
            let assertion = Assertion::parse(&entry.value, line, family)
                .map_err(|error| Problem::at(line, error.to_string()))?;
            let cell = &assertion.cell;
            known(&cell.source, all, line)?;
            known(&cell.destination, all, line)?;
            if !case.families.contains(&cell.family) {
                let problem = format!("{cell}: the case's families leave that out");
                return Err(Problem::at(line, problem));
            }
            let is_probed = |probe: &Probe| {
                (probe.protocol, probe.port, &probe.http) == (cell.protocol, cell.port, &cell.http)
            };
            if !case.probes.iter().any(is_probed) {
                let problem = format!("{cell}: that is none of the case's probes");
                return Err(Problem::at(line, problem));
            }
            let before = said.insert(cell.clone(), assertion.expected);
            if before.is_some_and(|before| before != assertion.expected) {
                let problem = format!("{cell}: an assertion before says otherwise");
                return Err(Problem::at(line, problem));
            }
            found.push(assertion);
        }
        Ok(found)
    }
}

fn known(id: &EndpointId, all: &[EndpointId], line: u64) -> Result<(), Problem> {
    if all.contains(id) {
        Ok(())
    } else {
        Err(Problem::at(line, format!("there is no {id} in the file")))
    }
}
