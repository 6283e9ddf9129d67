//! Parts of a flow in words.

use std::fmt::{self, Display};
use std::net::SocketAddr;

use datapath_user::{FlowEnd, FlowPair, FlowVerdict};

/// `10.244.1.2:40000 (web-0)`.
pub(super) struct End<'a>(pub(super) &'a FlowEnd<'a>);

impl Display for End<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(end) = self;
        address(end.socket(), f)?;
        write!(f, " ({})", end.name)
    }
}

/// `snat 192.0.2.11:40000`; nothing for a flow that is not translated.
pub(super) struct Nat<'a>(pub(super) &'a FlowPair<'a>);

impl Display for Nat<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(nat) = &self.0.nat else {
            return Ok(());
        };
        f.write_str(nat.kind.word())?;
        f.write_str(" ")?;
        address(nat.socket(), f)
    }
}

/// `established`, and what is odd about it: `syn, deny`, `established, reply missing`.
pub(super) struct State<'a>(pub(super) &'a FlowPair<'a>);

impl Display for State<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(flow) = self;
        f.write_str(flow.state.word())?;
        if flow.verdict == FlowVerdict::Deny {
            f.write_str(", deny")?;
        }
        match flow.missing {
            Some(half) => write!(f, ", {half} missing"),
            None => Ok(()),
        }
    }
}

/// Shows an address with its port; port 0 is none.
fn address(at: SocketAddr, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match at.port() {
        0 => at.ip().fmt(f),
        port if at.is_ipv4() => write!(f, "{}:{port}", at.ip()),
        port => write!(f, "[{}]:{port}", at.ip()),
    }
}
