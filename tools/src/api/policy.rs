//! What is said of policy: documents, identities and explanations.

use std::path::PathBuf;

use datapath_user::policy::{DocumentId, DocumentKind, Explanation, Labels, PolicyMode, Refusal};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Failure, Kind};

/// A text with documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyText {
    /// Where it is from: what is said of its documents begins with this. The agent opens nothing.
    pub file: Option<PathBuf>,
    /// The text, YAML or JSON.
    pub text: String,
}

/// Documents to put in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// Where they are.
    pub texts: Vec<PolicyText>,
    /// Whether those that can be used are put in force though others cannot.
    #[serde(default)]
    pub partial: bool,
}

/// What was put in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyReport {
    /// The documents that are in force by this, in the order of the texts; none where some were
    /// refused, unless it was asked for the others.
    pub applied: Vec<AppliedDocument>,
    /// What is wrong with the others.
    pub refused: Vec<Refusal>,
    /// How long it took until all endpoints were judged by them, microseconds.
    pub took_us: u64,
}

/// A document that was put in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedDocument {
    /// What it is called.
    #[serde(flatten)]
    pub id: DocumentId,
    /// What that changed.
    pub change: Change,
}

/// What putting a document in force changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// There was none of its name.
    Created,
    /// It took the place of one of its name.
    Changed,
    /// It was in force already.
    Unchanged,
}

/// Documents to take out of force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteRequest {
    /// Their names.
    pub documents: Vec<DocumentId>,
}

/// What was taken out of force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteReport {
    /// The documents.
    pub deleted: Vec<DocumentId>,
    /// How long it took until all endpoints were judged without them, microseconds.
    pub took_us: u64,
}

/// The documents of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyList {
    /// One each, by name; those without one are last.
    pub documents: Vec<PolicyEntry>,
}

/// A document of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyEntry {
    /// What it is called; none of a refused one whose name cannot be read.
    pub id: Option<DocumentId>,
    /// How many rules of it are in force.
    pub rules: usize,
    /// How many pods of this node it is for.
    pub endpoints: usize,
    /// Whether it is for this node itself.
    pub node: bool,
    /// What becomes of it.
    pub state: PolicyState,
    /// How it came.
    pub source: PolicySource,
    /// Its file; none if it came from standard input.
    pub file: Option<PathBuf>,
    /// What is wrong with it, with file, line and column.
    pub problems: Vec<String>,
}

/// What becomes of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyState {
    /// It is in force.
    Enforced,
    /// It cannot be used. The last good one of its name is in force, or it is for nobody.
    Refused,
    /// It cannot be used, and there was no good one: whom it is for is closed.
    Quarantined,
    /// It was applied, and a file of the directory has its name: that one counts.
    Shadowed,
}

/// How a document came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicySource {
    /// By a file of the directory that the agent follows.
    Directory,
    /// By the API.
    Applied,
}

/// A document with its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDetail {
    /// What becomes of it.
    #[serde(flatten)]
    pub entry: PolicyEntry,
    /// The pods of this node that it is for, by id.
    pub pods: Vec<String>,
    /// Its text; none where its file says something else by now.
    pub text: Option<String>,
}

/// A flow that is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// Who would begin it, see [`Datapath::find_end`](datapath_user::Datapath::find_end).
    pub from: String,
    /// With whom, likewise.
    pub to: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, or type of an ICMP message; zero where there is neither.
    #[serde(default)]
    pub port: u16,
}

/// The answer to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// What policy says.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// Whether it is let through though policy denies it: those that deny it are audited.
    pub audited: bool,
}

/// Whether what would be denied is to be let through, and told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditRequest {
    /// Of this endpoint; none: of all.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Whether it is.
    pub on: bool,
}

/// An identity, and who has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityEntry {
    /// Its number.
    pub number: u32,
    /// The labels that it stands for.
    pub labels: Labels,
    /// The prefix, of one that stands for such.
    pub prefix: Option<IpNet>,
    /// Endpoints of this node that have it, by id.
    pub endpoints: Vec<String>,
    /// Addresses of other nodes' pods that have it.
    pub remote: usize,
}

/// Where the agent's policy comes from, and when it last changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySources {
    /// Who needs rules.
    pub mode: PolicyMode,
    /// Whether what would be denied is let through, and told, for all endpoints.
    pub audit: bool,
    /// When the documents in force last changed.
    pub changed: Option<Timestamp>,
    /// Documents that came by the API.
    pub applied: usize,
    /// The directory of documents.
    pub directory: Option<Followed>,
    /// The cluster file.
    pub cluster: Option<Followed>,
}

/// A file or directory that is followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// Where it is.
    pub path: PathBuf,
    /// What it says, in few words.
    pub says: String,
    /// Why what it says now is not in force; what it said before is.
    pub problem: Option<String>,
}

/// Reads what a document is called: `KIND/NAMESPACE/NAME`, or `KIND/NAME` of a kind without
/// namespaces. Kinds may be written in lower case, and as kubectl shortens them: `netpol`, `cnp`,
/// `ccnp`.
///
/// # Errors
///
/// [`Kind::Invalid`] with what to write instead.
pub fn parse_document_id(text: &str) -> Result<DocumentId, Failure> {
    let wrong = |why: &str| {
        let error = format!(
            "{text:?} names no document: {why}; write KIND/NAMESPACE/NAME as `dpctl policy list` \
             does, for example NetworkPolicy/shop/web or CiliumClusterwideNetworkPolicy/base"
        );
        Failure::of(Kind::Invalid, error)
    };
    let mut parts = text.split('/');
    let word = parts.next().unwrap_or_default();
    let kind = match word.to_ascii_lowercase().as_str() {
        "networkpolicy" | "netpol" => DocumentKind::NetworkPolicy,
        "ciliumnetworkpolicy" | "cnp" => DocumentKind::CiliumNetworkPolicy,
        "ciliumclusterwidenetworkpolicy" | "ccnp" => DocumentKind::CiliumClusterwideNetworkPolicy,
        _ => return Err(wrong(&format!("there is no kind {word:?}"))),
    };
    let rest: Vec<&str> = parts.collect();
    let (namespace, name) = match (kind, rest.as_slice()) {
        (DocumentKind::CiliumClusterwideNetworkPolicy, [name]) => (None, *name),
        (DocumentKind::CiliumClusterwideNetworkPolicy, _) => {
            return Err(wrong("documents of this kind have no namespace"));
        }
        (_, [namespace, name]) if !namespace.is_empty() => (Some((*namespace).to_owned()), *name),
        (_, _) => return Err(wrong("a document of this kind has a namespace and a name")),
    };
    if name.is_empty() {
        return Err(wrong("its name is missing"));
    }
    Ok(DocumentId {
        kind,
        namespace,
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_named_as_they_are_listed() {
        for (text, whole) in [
            ("NetworkPolicy/shop/web", "NetworkPolicy/shop/web"),
            ("netpol/shop/web", "NetworkPolicy/shop/web"),
            ("cnp/shop/web", "CiliumNetworkPolicy/shop/web"),
            ("ccnp/base", "CiliumClusterwideNetworkPolicy/base"),
        ] {
            assert_eq!(parse_document_id(text).unwrap().to_string(), whole);
        }
        for (text, why) in [
            ("web", "there is no kind \"web\""),
            ("NetworkPolicy/web", "has a namespace and a name"),
            ("ccnp/shop/base", "have no namespace"),
            ("netpol/shop/", "its name is missing"),
        ] {
            let said = parse_document_id(text).unwrap_err().to_string();
            assert!(said.contains(why) && said.contains("policy list"), "{said}");
        }
    }
}
