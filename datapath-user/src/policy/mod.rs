//! Network policy: who may begin a flow with whom.
//!
//! Documents are read into [`Document`]s, which name endpoints by [`Selector`]s over [`Labels`].
//! What is known of identities and their labels turns them into rule sets for the kernel.

mod labels;
mod model;
mod selector;

pub use labels::{Label, Labels, source};
pub use model::{
    Document, DocumentId, DocumentKind, Entity, IcmpFamily, NamedPort, Peer, Peers, PortProtocol,
    PortRule, PortValue, Ports, Rule, RuleVerdict, Section, Spec, Subject,
};
pub use selector::{Operator, Requirement, Selector};
