//! What there is to say of documents and identities.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::document::Refusal;
use super::labels::Labels;
use super::model::Document;

/// What a change of documents came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyReport {
    /// Documents in force now.
    pub documents: usize,
    /// Those that are new, or other than they were.
    pub changed: usize,
    /// Those that were taken out.
    pub removed: usize,
    /// Refused ones.
    pub refused: usize,
    /// Of those, the ones without a last good one, whose subjects are closed.
    pub closed: usize,
    /// How long it took until all endpoints were judged by it, microseconds.
    pub took_us: u64,
}

/// A policy document, in force or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// What it is called: `Kind/namespace/name`; none of a refused one that has no name.
    pub id: Option<String>,
    /// Its file; none if it came another way.
    pub file: Option<PathBuf>,
    /// How many rules it has.
    pub rules: usize,
    /// How many pods of this node it is for.
    #[serde(default)]
    pub endpoints: usize,
    /// Whether it is for this node itself.
    #[serde(default)]
    pub node: bool,
    /// Why it was refused; none of one in force.
    pub refused: Option<String>,
    /// Whether its subjects are closed until it is mended: there is no last good one of it.
    #[serde(default)]
    pub closed: bool,
}

/// An identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityView {
    /// Its number.
    pub number: u32,
    /// The labels that it stands for.
    pub labels: Labels,
    /// Pods of this node, and addresses of other nodes' pods, that have it.
    pub users: usize,
    /// The prefix, of one that stands for such.
    pub prefix: Option<IpNet>,
}

impl PolicyView {
    /// One in force.
    ///
    /// `endpoints` and `node` say for whom it is.
    pub(crate) fn of(document: &Document, endpoints: usize, node: bool) -> Self {
        let rules = document
            .specs
            .iter()
            .map(|spec| spec.ingress.rules.len() + spec.egress.rules.len());
        Self {
            id: Some(document.id.to_string()),
            file: document.file.clone(),
            rules: rules.sum(),
            endpoints,
            node,
            refused: None,
            closed: false,
        }
    }

    /// A refused one.
    pub(crate) fn refused(refusal: &Refusal, closed: bool) -> Self {
        Self {
            id: refusal.id.as_ref().map(ToString::to_string),
            file: refusal.file.clone(),
            rules: 0,
            endpoints: 0,
            node: false,
            refused: Some(refusal.to_string()),
            closed,
        }
    }
}
