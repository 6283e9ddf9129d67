//! What policy said of a packet.

use std::path::PathBuf;

use datapath_kern::abi::event::Head;
use datapath_kern::abi::policy::matched;
use serde::{Deserialize, Serialize};

use super::ends::Directory;
use crate::policy::DocumentId;

/// Why policy let a packet through or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDecision {
    /// What the rule named.
    pub matched: PolicyMatch,
    /// Number of the rule; zero where none decided.
    pub rule_id: u32,
    /// The rule; none where none decided, and where it is gone since.
    pub rule: Option<EventRule>,
}

/// A rule of a policy document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRule {
    /// The document; none of a refused one whose name could not be read.
    pub document: Option<DocumentId>,
    /// Where the rule stands in it: `spec.ingress[0]`.
    pub path: String,
    /// The file of the document, if it is from one.
    pub file: Option<PathBuf>,
    /// Line of that file where the rule begins, counted from one.
    pub line: u64,
}

macro_rules! matches {
    ($($(#[$doc:meta])* $variant:ident = $number:path, $name:literal;)*) => {
        /// What of a flow a rule named, in Hubble's words.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum PolicyMatch {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl PolicyMatch {
            /// Its number, which is Cilium's too.
            #[must_use]
            pub const fn number(self) -> u8 {
                match self { $(Self::$variant => $number,)* }
            }

            /// The word for it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The one with this number; [`PolicyMatch::None`] for a number that none has.
            #[must_use]
            pub const fn from_number(number: u8) -> Self {
                match number { $($number => Self::$variant,)* _ => Self::None }
            }
        }
    };
}

matches! {
    /// No rule.
    None = matched::NONE, "none";
    /// The peer.
    L3Only = matched::L3_ONLY, "L3-Only";
    /// Peer and port.
    L3L4 = matched::L3_L4, "L3-L4";
    /// The port.
    L4Only = matched::L4_ONLY, "L4-Only";
    /// Nothing: the rule is about everyone and everything.
    All = matched::ALL, "all";
    /// Peer and protocol.
    L3Proto = matched::L3_PROTO, "L3-Proto";
    /// The protocol.
    ProtoOnly = matched::PROTO_ONLY, "Proto-Only";
}

impl PolicyDecision {
    /// What a record says.
    pub(super) fn of(head: &Head, directory: Option<&dyn Directory>) -> Self {
        let rule_id = head.rule_id;
        let known = directory.filter(|_| rule_id != 0);
        Self {
            matched: PolicyMatch::from_number(head.matched),
            rule_id,
            rule: known.and_then(|directory| directory.rule(rule_id)),
        }
    }
}
