//! The container datapath of a node, from user space: load it, attach it, tell it of endpoints
//! and peers, and see what it does.
//!
//! A node agent opens one [`Datapath`] in the node's network namespace, adds an endpoint per pod
//! and a peer per other node, and closes it in the end:
//!
//! ```no_run
//! use datapath_user::{Config, Datapath, EndpointSpec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let datapath = Datapath::open(Config {
//!     pod_cidrs: vec!["10.244.1.0/24".parse()?],
//!     gateways: vec!["10.244.1.1".parse()?],
//!     ..Config::new("/run/datapath/bpffs", ["eth0"])
//! })?;
//! datapath.add_endpoint(&EndpointSpec {
//!     id: "web-0".into(),
//!     netns: "/run/netns/web-0".into(),
//!     addresses: vec!["10.244.1.5".parse()?],
//!     namespace: Some("shop".into()),
//!     name: Some("web-0".into()),
//!     labels: [("app".into(), "web".into())].into(),
//!     ..EndpointSpec::default()
//! })?;
//! for metric in datapath.metrics()? {
//!     println!("{} {}: {}", metric.direction, metric.outcome, metric.packets);
//! }
//! datapath.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! The process may end in any way, and packets go on: maps and programs are pinned. The next
//! [`Datapath::open`] takes over what is there, puts its own programs in the place of the old ones,
//! and loses no flow. [`Datapath::leave`] ends like that on purpose, [`Datapath::close`] removes
//! everything, and [`cleanup`] removes what a dead process left.
//!
//! Calls block, for a millisecond or a few; a program on an async runtime makes them from a thread
//! that may. The packets themselves need nobody: they are handled in the kernel, whatever this
//! process does.

#![deny(unsafe_code)] // `batch` and `netkit` call bpf(2) for what aya does not know.

mod adoption;
mod batch;
mod bpffs;
mod changes;
mod clsact;
mod config;
mod datapath;
mod details;
pub mod doctor;
mod endpoint;
mod error;
mod events;
mod flows;
mod follow;
mod gateway;
mod inventory;
mod journal;
mod maps;
mod masquerade;
mod metrics;
mod naming;
mod netkit;
mod node;
mod object;
pub mod objects;
mod pair;
mod peer;
mod pod;
pub mod policy;
mod probe;
mod programs;
mod quota;
mod remains;
mod segmentation;
mod settle;
mod sizes;
mod status;
mod tallies;
mod uplink;
mod watch;

pub use adoption::Adoption;
pub use changes::{Change, Changes};
pub use config::Verdicts;
pub use config::{
    Attach, Config, EarlyFragments, EndpointShare, IdentityFrom, IdentitySource, PodDevice,
    PodStart, PolicyConfig, PortRange, Ports, Revoke, Timeouts, Tunnel,
};
pub use datapath::Datapath;
pub use endpoint::{EndpointPolicy, EndpointSpec, EndpointView};
pub use error::Error;
pub use events::{
    EndKind, EventEnd, EventKind, EventRule, EventVerdict, EventView, Events, IcmpView,
    PolicyDecision, PolicyMatch, TunnelView, UntoldView, drop_reasons,
};
pub use flows::{
    EndFilter, FlowChange, FlowEnd, FlowFamily, FlowFilter, FlowFollower, FlowFormat, FlowHalf,
    FlowList, FlowNat, FlowOrder, FlowPair, FlowSort, FlowState, FlowTableName, FlowTurn,
    FlowVerdict, FlowView, FlowWay, FlushReport, NatKind, NatView, Protocol, States, SweepPass,
    SweepReport, SweepSlice, SweepView, Who,
};
pub use masquerade::{
    Listed, ListedBy, Masquerade, MasqueradeRule, NonMasquerade, NonMasqueradeView, UplinkSpec,
};
pub use metrics::{MetricView, PolicyCount};
pub use object::{OBJECT, PROGRAMS};
pub use peer::{PeerSpec, PeerView, RemotePod};
pub use policy::reserved_identity;
pub use probe::Kernel;
pub use remains::{Removed, cleanup};
pub use status::{MapUsage, PolicyStatus, Status, TableUse};
pub use tallies::{TableTally, Tallies};
pub use uplink::{UplinkState, UplinkView};
pub use watch::FollowedFile;
