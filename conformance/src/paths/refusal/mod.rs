//! What must not get through: frames by hand, each of which must arrive nowhere and be dropped for
//! exactly the right reason, on the right node.
//!
//! Every group begins with honest frames of the same make, which must arrive: a refusal proves
//! nothing if the frame would not have arrived anyway.

mod pod;
mod tunnel;
mod underlay;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use datapath_kern::verdict::DropReason;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    check::{Complaint, Found, Subject},
    frames::Mac,
    patience,
    site::{Cast, Host, NodeView, Site},
};
use crate::{
    error::{Error, Result},
    family::Family,
    frame::{
        Direction, FrameSocket,
        forge::{self, Place},
    },
    netns::Namespace,
    patience::scaled,
    probe::RawPort,
    report::Check,
};

/// How long a dropped frame's delivery is waited for after its drop was counted. Delivery takes
/// microseconds.
fn grace() -> Duration {
    scaled(Duration::from_millis(15))
}
/// The port that frames by hand go to. Somebody listens there, or the answer "port unreachable"
/// would move counters too.
const DISCARD: u16 = 9;
/// The port that frames by hand come from.
const HAND: u16 = 40_009;
/// UDP port of the tunnel (RFC 8926 section 3.3).
const GENEVE: u16 = 6081;
/// The reason that pods' own stacks move all the time, by router solicitations and group reports.
const BACKGROUND: DropReason = DropReason::Multicast;

/// Everything that must not get through.
pub(super) fn checks(cast: &Cast<'_, '_>, view: &dyn NodeView, mut tell: impl FnMut(Check)) {
    let mut guard = match Guard::post(*cast, view) {
        Ok(guard) => guard,
        Err(error) => {
            let subject = Subject::new("refusals", "watch every host");
            tell(subject.check(|| Err(error.into())));
            return;
        }
    };
    for family in Family::ALL {
        pod::checks(&mut guard, family, &mut tell);
    }
    for family in Family::ALL {
        tunnel::checks(&mut guard, family, &mut tell);
        underlay::checks(&mut guard, family, &mut tell);
    }
}

/// Watches every host of the lab while frames are sent.
struct Guard<'s, 'a> {
    cast: Cast<'s, 'a>,
    view: &'s dyn NodeView,
    posts: Vec<Post>,
    /// Take what arrives for [`DISCARD`].
    _sinks: Vec<Socket>,
    /// Told apart by what is in them, no two checks' frames are the same.
    serial: u32,
}

/// An ear at an interface where nothing forged may be heard.
struct Post {
    name: String,
    /// In from the interface, or, on an uplink, out.
    direction: Direction,
    ear: FrameSocket,
}

/// Where and why frames must be dropped.
#[derive(Clone, Copy)]
struct Fate {
    /// The node, by its place in the site.
    node: usize,
    reason: DropReason,
}

impl<'s, 'a> Guard<'s, 'a> {
    fn post(cast: Cast<'s, 'a>, view: &'s dyn NodeView) -> Result<Self> {
        let mut posts = Vec::new();
        let mut sinks = Vec::new();
        let mut add = |name: &str, host: &Host<'_>, interface: &str, direction| {
            let index = host.namespace.link(interface)?.index;
            posts.push(Post {
                name: name.to_owned(),
                direction,
                ear: FrameSocket::open(host.namespace, Some(index))?,
            });
            Ok::<_, Error>(())
        };
        let site = cast.site;
        for pod in &site.pods {
            add(
                &pod.host.name,
                &pod.host,
                &pod.host.interface,
                Direction::In,
            )?;
            sinks.push(sink(pod.host.namespace)?);
        }
        for node in &site.nodes {
            let Host {
                name, interface, ..
            } = &node.host;
            add(
                &format!("the uplink of {name}"),
                &node.host,
                interface,
                Direction::Out,
            )?;
            add(
                &format!("the stack of {name}"),
                &node.host,
                &node.gateway_interface,
                Direction::In,
            )?;
            sinks.push(sink(node.host.namespace)?);
        }
        add(
            &site.outside.name,
            &site.outside,
            &site.outside.interface,
            Direction::In,
        )?;
        sinks.push(sink(site.outside.namespace)?);
        Ok(Self {
            cast,
            view,
            posts,
            _sinks: sinks,
            serial: 0,
        })
    }

    /// Makes bytes that only the next frames have.
    fn marker(&mut self) -> Vec<u8> {
        self.serial += 1;
        let process = std::process::id();
        format!("by hand {process:08x} {:08x}", self.serial).into_bytes()
    }

    /// Checks that a frame that is as it should be arrives at `target` and moves no counter.
    fn passes(
        &mut self,
        port: &mut RawPort,
        subject: Subject,
        target: &str,
        make: impl FnOnce(&[u8]) -> Result<Vec<u8>>,
    ) -> Check {
        subject.check(|| {
            let marker = self.marker();
            let frame = make(&marker)?;
            self.listen_anew()?;
            let before = self.drops()?;
            let start = Instant::now();
            port.send(&frame)?;
            loop {
                let heard = self.heard(&marker)?;
                if heard.iter().any(|name| name == target) {
                    break;
                }
                if start.elapsed() > patience() {
                    return Err(Complaint::new(format!(
                        "nothing arrived at {target} within {:?}; heard at: {}; drops: {}",
                        patience(),
                        list(&heard),
                        list(&self.moved_but(&before, None)?)
                    )));
                }
                thread::sleep(Duration::from_millis(1));
            }
            let (bytes, elapsed) = (frame.len(), start.elapsed());
            Ok(Found {
                detail: format!("{bytes} bytes by hand arrived at {target} after {elapsed:.0?}"),
                actions: 1,
            })
        })
    }

    /// Checks that frames arrive nowhere and that each is counted as it should be.
    fn refused(
        &mut self,
        port: &mut RawPort,
        subject: Subject,
        fate: Fate,
        make: impl FnOnce(&[u8]) -> Result<Vec<Vec<u8>>>,
    ) -> Check {
        subject.check(|| {
            let marker = self.marker();
            let frames = make(&marker)?;
            self.listen_anew()?;
            let before = self.drops()?;
            for frame in &frames {
                port.send(frame)?;
            }
            self.judge(&before, fate, frames.len() as u64, &marker)
        })
    }

    /// Waits until so many frames are counted, and a moment longer for what was let through.
    fn judge(
        &mut self,
        before: &Drops,
        fate: Fate,
        wanted: u64,
        marker: &[u8],
    ) -> Result<Found, Complaint> {
        let (label, deadline) = (fate.reason.label(), Instant::now() + patience());
        while self.risen(before, fate)? < wanted && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(grace());
        let heard = self.heard(marker)?;
        let count = self.risen(before, fate)?;
        let others = self.moved_but(before, Some(fate))?;
        let name = self.node_name(fate.node);
        // Nobody else moves a counter meanwhile, but for the one.
        let exact = count == wanted || fate.reason == BACKGROUND && count > wanted;
        if !exact || !heard.is_empty() || !others.is_empty() {
            return Err(Complaint::new(format!(
                "of {wanted} frames {count} were dropped as \"{label}\" on {name}; \
                 other drops: {}; arrived at: {}",
                list(&others),
                list(&heard)
            )));
        }
        Ok(Found {
            detail: format!("nothing arrived, \"{label}\" +{count} on {name}"),
            actions: wanted,
        })
    }

    fn node_name(&self, node: usize) -> &str {
        self.cast
            .site
            .nodes
            .get(node)
            .map_or("?", |node| &node.host.name)
    }

    fn drops(&self) -> Result<Drops> {
        drops(self.cast.site, self.view)
    }

    /// Drops what was heard before.
    fn listen_anew(&mut self) -> Result<()> {
        self.heard(b"").map(drop)
    }

    /// Names the posts that have heard the marker since the last time.
    fn heard(&mut self, marker: &[u8]) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for post in &mut self.posts {
            let mut heard = false;
            // A time in the past: what has arrived.
            let now = Instant::now();
            let failed = || Error::os("receive frames at", &post.name);
            while let Some(frame) = post.ear.next(now).map_err(failed())? {
                heard |= frame.direction == post.direction && contains(&frame.bytes, marker);
            }
            if heard {
                names.push(post.name.clone());
            }
        }
        Ok(names)
    }

    fn risen(&self, before: &Drops, fate: Fate) -> Result<u64> {
        let label = fate.reason.label();
        let earlier = before
            .get(fate.node)
            .and_then(|drops| drops.get(label))
            .copied();
        let now = self.view.drops(fate.node)?.get(label).copied();
        Ok(now.unwrap_or(0).saturating_sub(earlier.unwrap_or(0)))
    }

    /// Says which counters moved, but for the one that should and the one that always may.
    fn moved_but(&self, before: &Drops, fate: Option<Fate>) -> Result<Vec<String>> {
        let expected = fate.map(|fate| (fate.node, fate.reason.label()));
        movements(self.cast.site, self.view, before, expected)
    }
}

/// What every node has dropped so far.
pub(super) type Drops = Vec<BTreeMap<String, u64>>;

/// Reads the counters of every node.
pub(super) fn drops(site: &Site<'_>, view: &dyn NodeView) -> Result<Drops> {
    (0..site.nodes.len()).map(|node| view.drops(node)).collect()
}

/// Says which counters have moved since `before`, but for an expected one and the one that pods'
/// own stacks move.
pub(super) fn movements(
    site: &Site<'_>,
    view: &dyn NodeView,
    before: &Drops,
    expected: Option<(usize, &str)>,
) -> Result<Vec<String>> {
    let mut moved = Vec::new();
    for (index, (node, earlier)) in site.nodes.iter().zip(before).enumerate() {
        for (reason, count) in view.drops(index)? {
            let rise = count.saturating_sub(earlier.get(&reason).copied().unwrap_or(0));
            let known = reason == BACKGROUND.label() || expected == Some((index, &reason));
            if rise > 0 && !known {
                moved.push(format!("\"{reason}\" +{rise} on {}", node.host.name));
            }
        }
    }
    Ok(moved)
}

/// Listens on [`DISCARD`], and never answers.
fn sink(namespace: &Namespace) -> Result<Socket> {
    let socket = namespace.socket(Domain::IPV6, Type::DGRAM, None)?;
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, DISCARD));
    socket
        .set_only_v6(false)
        .and_then(|()| socket.bind(&SockAddr::from(address)))
        .map_err(Error::os("listen on port 9 in", namespace.name()))?;
    Ok(socket)
}

/// A datagram between two ends, with the marker in it.
fn datagram(from: (Mac, IpAddr), to: (Mac, IpAddr), marker: &[u8]) -> Result<Vec<u8>> {
    let from = Place {
        mac: from.0,
        address: SocketAddr::new(from.1, HAND),
    };
    let to = Place {
        mac: to.0,
        address: SocketAddr::new(to.1, DISCARD),
    };
    forge::udp(from, to, marker)
}

fn contains(bytes: &[u8], marker: &[u8]) -> bool {
    !marker.is_empty() && bytes.windows(marker.len()).any(|window| window == marker)
}

fn list(things: &[String]) -> String {
    if things.is_empty() {
        "none".to_owned()
    } else {
        things.join(", ")
    }
}

/// Gives an address near another one that nobody has.
fn unused(near: IpAddr) -> IpAddr {
    match near {
        IpAddr::V4(near) => Ipv4Addr::from_bits(near.to_bits() | 0xf0).into(),
        IpAddr::V6(near) => Ipv6Addr::from_bits(near.to_bits() | 0xf000).into(),
    }
}
