//! Network policy: who may begin a flow with whom.
//!
//! Documents are read into [`Document`]s, which name endpoints by [`Selector`]s over [`Labels`].
//! What is known of identities and their labels turns them into rule sets for the kernel: that is
//! the [`PolicyEngine`].

mod cidr;
mod claim;
mod class;
mod compile;
pub mod document;
mod engine;
mod explain;
mod identity;
mod installed;
mod labels;
mod matcher;
mod model;
mod numbering;
mod quarantine;
pub(crate) mod reserved;
mod rules;
mod selector;
mod settings;
mod universe;
mod view;

pub use class::{Class, ClassEntry};
pub use document::{Reading, Refusal};
pub use engine::{PolicyEngine, PolicyStats};
pub use explain::{ExplainEnd, ExplainQuery, Explanation, Judgement, NearRule, Otherwise, Reason};
pub use identity::{ClusterIdentities, IdentityAllocator, LocalIdentities};
pub use labels::{Label, Labels, source};
pub use model::{
    Document, DocumentId, DocumentKind, Entity, IcmpFamily, NamedPort, Peer, Peers, PortProtocol,
    PortRule, PortValue, Ports, Rule, RuleVerdict, Section, Spec, Subject,
};
pub use quarantine::{Place, QuarantineKey};
pub use reserved::reserved_identity;
pub use rules::{Changed, DirectionRules, RuleRef, RuleSet, SubjectKey};
pub use selector::{Operator, Requirement, Selector};
pub use settings::{CidrMatch, HostToLocal, OwnNode, PolicyMode, PolicySettings};
pub use view::{IdentityView, PolicyReport, PolicyView};
