//! A node, and what happens to it.

use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::config::tunnel as mode;
use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::flow::{FlowKey, verdict};
use datapath_kern::abi::nexthop::PEERS_BASE;
use datapath_kern::abi::tunnel::Uplink;
use datapath_kern::env::{Env, Table};
use datapath_kern::host::{Buffer, Hash, Host, plan};
use datapath_kern::packet::Family;
use datapath_kern::verdict::Action;

use super::check;
use super::frames::{self, Arrival, NODE, PEER, PODS, pod};
use super::input::{Condition, Kind, Place, Settings, Span, Step, What};
use crate::support::icmp::IcmpError;
use crate::support::{Out, frame, invariants, policy, run_packet};

/// A frame that came to somebody, whose answer would arrive at a place.
struct Departed {
    answered_at: Place,
    bytes: Vec<u8>,
    sound: bool,
}

/// The node.
pub(crate) struct World {
    host: Host,
    underlay: Family,
    /// The last frame that arrived, and whether its checksums were right.
    arrived: Option<(Arrival, bool)>,
    departed: Option<Departed>,
}

impl World {
    pub(crate) fn new(settings: &Settings) -> Self {
        let underlay = if settings.underlay_v6 {
            Family::V6
        } else {
            Family::V4
        };
        let world = Self {
            host: host(settings),
            underlay,
            arrived: None,
            departed: None,
        };
        // Cannot fail: there is room for them.
        for number in 1..=PODS {
            world.host.add_pod(NODE, number).unwrap();
        }
        world.host.add_peer(NODE, PEER, underlay, PODS).unwrap();
        let mut identities = vec![identity::HOST, identity::WORLD, identity::REMOTE_NODE];
        for node in [NODE, PEER] {
            identities.extend((1..=PODS).map(|number| plan::pod_identity(node, number)));
        }
        policy::by_chance(&world.host, &identities);
        if settings.narrow {
            let slot = PEERS_BASE + u32::from(PEER);
            world.host.next_hops.update(&slot, |hop| {
                hop.path_mtu_bytes = 1300;
                hop.path_mtu_until_s = u32::MAX;
            });
        }
        world
    }

    /// Has one thing happen, and checks what must hold after it.
    pub(crate) fn take(&mut self, step: &Step) {
        match step {
            Step::Sound(what) => {
                if let Some((arrival, sound)) = self.arrival(what) {
                    let packet = packet(arrival.place, arrival.bytes.clone());
                    self.arrive(arrival.place, packet, sound);
                    self.arrived = Some((arrival, sound));
                }
            }
            Step::Frame(what, condition) => {
                if let Some((arrival, _)) = self.arrival(what) {
                    self.harmed(arrival, condition);
                }
            }
            Step::Wait(span) => self.host.advance(match *span {
                Span::Moment => 1,
                Span::Seconds(count) => count.into(),
                Span::Minutes(count) => u32::from(count) * 60,
                // Expiry times are compared as they are: the clock begins near zero at boot and
                // has more than a century.
                Span::Long(count) => count % 0x0100_0000,
            }),
            other => self.disturb(other),
        }
        if let Err(what) = invariants::of_flows(&self.host) {
            panic!("{what}");
        }
    }

    fn disturb(&self, step: &Step) {
        let host = &self.host;
        match *step {
            Step::EvictFlow(number) => {
                if let Some(key) = nth(&host.pending, number) {
                    host.pending.remove(&key);
                }
            }
            Step::EvictFragment(number) => {
                if let Some(key) = nth(&host.fragments, number) {
                    host.fragments.remove(&key);
                }
            }
            Step::Refuse([flows, pending, fragments, claims]) => {
                host.flows.refuse((flows % 4).into());
                host.pending.refuse((pending % 4).into());
                host.fragments.refuse((fragments % 4).into());
                host.claims.refuse((claims % 4).into());
            }
            Step::Generation(slot) => {
                let word = policy::any_word(u32::from(slot / (PODS + 1)));
                let slot = u32::from(slot % (PODS + 1));
                policy::switch(host, slot, word);
                host.peers.update(&slot, |peer| peer.generation += 1);
            }
            Step::Pod(number, there) => {
                let number = pod(number);
                host.endpoint_slots.remove(&plan::pod_interface(number));
                if there {
                    let generation = host.endpoints.get(&number.into()).map(|pod| pod.generation);
                    host.add_pod(NODE, number).unwrap();
                    host.endpoints.update(&number.into(), |endpoint| {
                        endpoint.generation = generation.unwrap_or(0) + 1;
                    });
                }
            }
            Step::Neighbour(known) => {
                let router = plan::node(plan::ROUTER, Family::V4);
                let mac = known.then_some(plan::node_mac(plan::ROUTER));
                host.routing.borrow_mut().neighbour(router, mac);
            }
            Step::Deny(number) => {
                for table in [&host.flows, &host.pending] {
                    if let Some(key) = nth(table, number) {
                        table.update(&key, |flow| flow.verdict = verdict::DENY);
                    }
                }
            }
            Step::Frame(..) | Step::Sound(_) | Step::Wait(_) => {}
        }
    }

    /// The frame, where it arrives, and whether its checksums are right.
    fn arrival(&self, what: &What) -> Option<(Arrival, bool)> {
        match what {
            What::Made(made) => {
                let sound = !matches!(made.l4, Kind::Other(_));
                Some((made.arrival(self.underlay), sound))
            }
            What::Again => self.arrived.clone(),
            What::Answer(flags) => {
                let last = self.departed.as_ref()?;
                let identity = |address| {
                    let entry = Env::ipcache(&self.host, &Addr::from(address));
                    entry.unwrap_or_default().identity
                };
                let bytes = frames::answer(&last.bytes, flags.bits(), &identity)?;
                let place = last.answered_at;
                Some((Arrival { place, bytes }, last.sound))
            }
            What::Error(complaint) => {
                let last = self.departed.as_ref()?;
                if frames::is_tunnelled(&last.bytes) && complaint.by_receiver {
                    return None;
                }
                let quote = frames::quotation(&last.bytes, complaint.quoted)?;
                let (from, to) = frames::ends(&last.bytes);
                let family = if from.is_ipv4() {
                    Family::V4
                } else {
                    Family::V6
                };
                let router = plan::node(plan::ROUTER, family);
                let (kind, code) = frames::complaint(complaint.kind, family);
                let error = IcmpError {
                    source: if complaint.by_receiver { to } else { router },
                    destination: from,
                    kind,
                    code,
                    value: complaint.value.into(),
                    quote,
                };
                let macs = (mac(&last.bytes, 0), mac(&last.bytes, 6));
                let bytes = error.frame(macs.0, macs.1, 62);
                let place = last.answered_at;
                Some((Arrival { place, bytes }, true))
            }
            What::Neighbour {
                pod: number,
                v6,
                other,
            } => {
                let family = if *v6 { Family::V6 } else { Family::V4 };
                let number = pod(*number);
                let target = if *other {
                    plan::pod(NODE, 99, family)
                } else {
                    plan::gateway(NODE, family)
                };
                let bytes = if *v6 {
                    frame::solicitation(NODE, number, target)
                } else {
                    frame::arp_request(NODE, number, target)
                };
                // `pod` counts from one.
                let place = Place::FromPod(number - 1);
                Some((Arrival { place, bytes }, true))
            }
            What::Raw(place, bytes) => {
                let (place, bytes) = (*place, bytes.0.clone());
                Some((Arrival { place, bytes }, false))
            }
        }
    }

    /// Has a frame arrive as the condition says.
    fn harmed(&mut self, arrival: Arrival, condition: &Condition) {
        let Arrival { place, mut bytes } = arrival;
        let place = condition.place.unwrap_or(place);
        for harm in condition.harms.iter().flatten() {
            harm.apply(&mut bytes);
        }
        let pieces = match condition.cut {
            Some(cut) => cut.apply(bytes),
            None => vec![bytes],
        };
        // For two verdicts and a drop.
        let room = if condition.event_room { usize::MAX } else { 3 };
        self.host.event_room.set(room);
        for bytes in pieces {
            let packet = Buffer {
                mark: condition.mark.bits(),
                vlan: condition.vlan.map(u16::from),
                partial: condition.partial,
                segment_bytes: condition.segment_bytes.map_or(0, u32::from),
                ..packet(place, bytes.clone())
            };
            self.arrive(place, packet, false);
            self.arrived = Some((Arrival { place, bytes }, false));
        }
    }

    fn arrive(&mut self, place: Place, packet: Buffer, sound: bool) {
        let (hook, _) = place.hook();
        let before = packet.clone();
        let out = run_packet(&self.host, hook, packet);
        check::outcome(&self.host, hook, &before, &out, sound);
        for (interface, copy) in &out.copies {
            assert_eq!(*interface, plan::GATEWAY_FAR, "where copies go");
            let (hook, interface) = Place::ToHost.hook();
            let copy = Buffer {
                interface,
                ..copy.clone()
            };
            let before = copy.clone();
            let out = run_packet(&self.host, hook, copy);
            check::outcome(&self.host, hook, &before, &out, false);
        }
        self.depart(place, out, sound);
    }

    /// Remembers what went somewhere, and who would answer it there.
    fn depart(&mut self, place: Place, out: Out, sound: bool) {
        let answered_at = match out.verdict.action {
            Action::Drop | Action::Consumed => return,
            Action::IntoPod => {
                let number = out.verdict.interface - plan::POD_INTERFACES;
                let number = u8::try_from(number).unwrap();
                Place::FromPod(number - 1)
            }
            Action::Out | Action::OutToNeighbour => Place::FromUplink,
            Action::ToHost => Place::FromHost,
            Action::Pass => match place {
                Place::ToPod(number) => Place::FromPod(number),
                Place::ToUplink => Place::FromUplink,
                _ => return,
            },
        };
        self.departed = Some(Departed {
            answered_at,
            bytes: out.bytes,
            sound,
        });
    }
}

/// The node without its pods and peers.
fn host(settings: &Settings) -> Host {
    let mut host = Host::node(NODE).unwrap();
    let config = &mut host.config;
    if settings.native {
        config.tunnel = mode::NATIVE;
    }
    config.identity_from_vni = u32::from(!settings.own_identities);
    config.tcp_loose = u32::from(!settings.strict_tcp);
    config.netkit_pods = settings.netkit.into();
    config.uplinks_pass_gso = settings.uplinks_pass_gso.into();
    config.answers_per_s = settings.answers_per_s.into();
    if settings.few_ports {
        config.nat_port_min = 40_000;
        config.nat_port_max = 40_003;
    }
    let lives = settings.lives_s.map(|seconds| u32::from(seconds) + 1);
    [
        config.tcp_established_s,
        config.tcp_pending_s,
        config.tcp_closed_s,
        config.other_established_s,
        config.other_pending_s,
    ] = lives;
    // Two halves have to fit in beside each other.
    let [flows, pending, fragments] = settings.room.map(|room| usize::from(room % 15) + 2);
    host.flows = Hash::new(flows);
    host.pending = Hash::evicting(pending);
    host.fragments = Hash::evicting(fragments);
    let [v4, v6] = settings.masquerade;
    host.uplinks.update(&plan::UPLINK, |uplink| {
        if !v4 {
            uplink.masquerade_v4 = Uplink::default().masquerade_v4;
        }
        if !v6 {
            uplink.masquerade_v6 = Uplink::default().masquerade_v6;
        }
    });
    host
}

fn packet(place: Place, bytes: Vec<u8>) -> Buffer {
    Buffer::new(place.hook().1, bytes)
}

fn mac(bytes: &[u8], at: usize) -> [u8; 6] {
    let mut mac = [0; 6];
    mac.copy_from_slice(&bytes[at..at + 6]);
    mac
}

/// One of a table's keys, by any number: the same one whenever the bytes are the same.
fn nth<K: Copy + Eq + std::hash::Hash + Ordered, V: Copy>(
    table: &Hash<K, V>,
    number: u8,
) -> Option<K> {
    let mut keys: Vec<K> = table.entries().into_iter().map(|(key, _)| key).collect();
    keys.sort_by_key(Ordered::place);
    let number = usize::from(number).checked_rem(keys.len())?;
    keys.get(number).copied()
}

/// Keys that can be put in order.
trait Ordered {
    fn place(&self) -> Vec<u8>;
}

impl Ordered for FlowKey {
    fn place(&self) -> Vec<u8> {
        zerocopy::IntoBytes::as_bytes(self).to_vec()
    }
}

impl Ordered for datapath_kern::abi::fragment::FragmentKey {
    fn place(&self) -> Vec<u8> {
        zerocopy::IntoBytes::as_bytes(self).to_vec()
    }
}
