//! The benches that there are.

mod connection;
mod cpus;
mod family;
mod lane;
mod masquerade;
mod pingpong;
mod policy;
mod stream;

pub use self::{
    cpus::Cpus, family::AddressFamily, masquerade::Masquerade, pingpong::PingPong, policy::Policy,
    stream::Stream,
};
use crate::contest::Case;

/// All of them.
#[must_use]
pub fn all() -> [&'static dyn Case; 6] {
    [
        &Masquerade,
        &Policy,
        &Stream,
        &PingPong,
        &AddressFamily,
        &Cpus,
    ]
}

/// The one with this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static dyn Case> {
    all().into_iter().find(|case| case.name() == name)
}
