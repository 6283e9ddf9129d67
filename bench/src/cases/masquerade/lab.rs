//! A node with four pods, and the far end of its uplink.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{
    Error as LabError,
    family::Family,
    frame::forge::Place,
    netns::Namespace,
    topology::{
        NodePlan,
        plan::{self, BRIDGE, UPLINK},
    },
};
use datapath_kern::verdict::DropReason;
use datapath_user::{EndpointShare, PodDevice, Timeouts};
use ipnet::IpNet;

use super::{
    super::policy::rules,
    sockets,
    tracked::{LONG_S, Tracked},
    variant::Variant,
};
use crate::{
    affinity,
    contest::Sample,
    error::{Error, Result},
    live::{Content, Generator, Order, Reflector, Sink, Template},
    machine::{Card, Machine},
    programs::Times,
    rig::{Rig, pod_address},
    stopwatch::Stopwatch,
    uplink::Uplink,
};

/// Pods that send; they use the same source ports.
pub(in crate::cases) const PODS: u8 = 4;
/// First of these.
pub(in crate::cases) const FIRST_PORT: u16 = 20_000;
/// Port that all flows go to.
pub(in crate::cases) const PORT: u16 = 7007;
/// Frames that one pod sends before it is another's turn.
const TURN: u32 = 8192;
/// Flows of a pod that are opened before their replies are waited for.
const HANDFUL: u32 = 2048;
/// How long the last frames may take on their way.
const PATIENCE: Duration = Duration::from_secs(2);
/// After this long netfilter takes a UDP flow with packets both ways for one that stays
/// (`stream_ts` in `net/netfilter/nf_conntrack_proto_udp.c`).
const STREAM_AFTER: Duration = Duration::from_millis(2100);

/// Where the flows go, reserved for benches (RFC 2544): nobody is there.
pub(in crate::cases) fn destinations() -> IpNet {
    const RANGE: ipnet::Ipv4Net = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15);
    RANGE.into()
}

/// Flows to send frames of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cases) struct Flows {
    pub(in crate::cases) content: Content,
    /// How many, of all pods together.
    pub(in crate::cases) count: u32,
    /// How many destinations they go to, in turn.
    pub(in crate::cases) destinations: u16,
    pub(in crate::cases) first_port: u16,
    /// Last 16 bits of the first destination.
    pub(in crate::cases) first_destination: u16,
}

impl Flows {
    /// Flows of UDP, each pod's to 64 destinations in turn. With more flows come further ones; the
    /// first stay the same.
    pub(in crate::cases) const fn of_udp(count: u32) -> Self {
        Self {
            content: Content::ShortUdp,
            count,
            destinations: 64,
            first_port: FIRST_PORT,
            first_destination: 1,
        }
    }

    /// Flows of UDP as those of [`Flows::of_udp`], and none of them.
    pub(in crate::cases) fn of_others(count: u32) -> Self {
        Self {
            first_destination: 1 << 15,
            ..Self::of_udp(count)
        }
    }

    /// Flows of UDP, all to one destination.
    pub(in crate::cases) const fn to_one_destination(count: u32) -> Self {
        Self {
            destinations: 1,
            ..Self::of_udp(count)
        }
    }

    /// How many are those of a pod, counted from 0.
    pub(in crate::cases) fn of_pod(&self, pod: u8) -> u32 {
        share(self.count, u32::from(pod), u32::from(PODS))
    }
}

/// What falls to one of `all`, counted from 0.
fn share(count: u32, one: u32, all: u32) -> u32 {
    count / all.max(1) + u32::from(one < count % all.max(1))
}

/// Settings of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cases) struct Shape {
    pub(in crate::cases) variant: Variant,
    /// Flows that there must be room for, beside those of the datapath's defaults.
    pub(in crate::cases) room: u32,
    /// Source ports that ours hands out, if not all.
    pub(in crate::cases) nat_ports: Option<(u16, u16)>,
    /// Seconds that an unproven flow of ours lives.
    pub(in crate::cases) pending_s: u32,
    /// Rules that say what pods may begin; none: they may begin all.
    pub(in crate::cases) rules: Option<u32>,
}

impl Shape {
    pub(in crate::cases) const fn new(variant: Variant, room: u32) -> Self {
        Self {
            variant,
            room,
            nat_ports: None,
            pending_s: LONG_S,
            rules: None,
        }
    }
}

/// A lab of one variant.
#[derive(Debug)]
pub(in crate::cases) struct Lab {
    shape: Shape,
    pods: Vec<Pod>,
    // Off their interfaces before these go.
    gutters: RefCell<Vec<Sink>>,
    sink: RefCell<Option<Sink>>,
    /// Whether the node's uplink is a network card, beyond which nobody counts or answers.
    on_card: bool,
    rig: Rig,
}

#[derive(Debug)]
struct Pod {
    /// The node's side of its interface.
    interface: String,
    place: Place,
    gateway: [u8; 6],
}

/// What came of sending.
#[derive(Clone, Copy, Debug)]
pub(in crate::cases) struct Outcome {
    pub(in crate::cases) elapsed: Duration,
    pub(in crate::cases) cpu: Duration,
    pub(in crate::cases) sent: u64,
    pub(in crate::cases) delivered: u64,
    /// Frames that a network card says it has sent meanwhile. Some cards say so late.
    pub(in crate::cases) gone: Option<u64>,
}

impl Outcome {
    /// As a sample: a unit of work is a frame.
    #[allow(
        clippy::cast_precision_loss,
        reason = "beyond 2^53 frames a sample would take years"
    )]
    pub(in crate::cases) fn sample(self) -> Sample {
        let gone = self
            .gone
            .map(|gone| ("frames sent by the card", gone as f64));
        Sample {
            units: self.sent,
            elapsed: self.elapsed,
            cpu: self.cpu,
            sent: self.sent,
            delivered: self.delivered,
            flaw: None,
            observed: gone.into_iter().collect(),
        }
    }
}

impl Lab {
    /// Builds it, on a network card if there is one, and describes it in `machine`.
    pub(in crate::cases) fn build(
        shape: Shape,
        uplink: Option<&Uplink>,
        machine: &mut Machine,
    ) -> Result<Self> {
        let node = NodePlan {
            pods: PODS,
            ..NodePlan::default()
        };
        let rig = if shape.variant == Variant::Datapath {
            Rig::datapath_with((1, node), uplink, Family::Ipv4, |config| {
                let entries = shape.room.saturating_mul(2).next_power_of_two();
                config.max_flows = config.max_flows.max(Some(1 << 17)).max(Some(entries));
                config.max_pending = config.max_pending.max(Some(1 << 15));
                if shape.pending_s != LONG_S || shape.nat_ports.is_some() {
                    config.max_pending = config.max_pending.max(Some(entries.saturating_mul(2)));
                }
                config.pod_device = PodDevice::Veth;
                // Four pods are no crowd that would have to be kept from each other.
                config.endpoint_share = EndpointShare {
                    established_percent: 100,
                    pending_percent: 100,
                };
                config.timeouts = Timeouts {
                    other_established_s: LONG_S,
                    other_pending_s: shape.pending_s,
                    tcp_pending_s: shape.pending_s,
                    ..Timeouts::default()
                };
                if let Some((first, last)) = shape.nat_ports {
                    (config.nat_ports.first, config.nat_ports.last) = (first, last);
                }
            })?
        } else {
            Rig::plain_with((1, node), uplink)?
        };
        let pods = (1..=PODS).map(|pod| Pod::find(&rig, pod));
        let lab = Self {
            shape,
            pods: pods.collect::<Result<_>>()?,
            gutters: RefCell::new(Vec::new()),
            sink: RefCell::new(None),
            on_card: uplink.is_some(),
            rig,
        };
        if let Some(uplink) = uplink {
            machine.uplink = Some(Card::look(lab.node()?, UPLINK, uplink)?);
        } else {
            lab.set_next_hop()?;
        }
        if let Some(tool) = shape.variant.set_up(lab.node()?)? {
            machine.add_tool(shape.variant.name(), tool);
        }
        if shape.variant.has_conntrack() {
            lab.tracked().make_room(shape.room)?;
            machine.add_conntrack(lab.node()?)?;
        }
        if shape.variant != Variant::Plain && !lab.on_card {
            sockets::check(&lab.rig, shape.variant)?;
        }
        if let Some(rules) = shape.rules {
            rules::give(&lab.rig, shape.variant, rules, || lab.check_refused())?;
        }
        lab.rig.describe(shape.variant.name(), machine)?;
        Ok(lab)
    }

    /// Makes sure that no pod may begin anything.
    fn check_refused(&self) -> Result<()> {
        let flows = Flows::of_udp(PODS.into());
        self.catch(flows)?;
        let generators = self.generators(flows, Order::Next)?;
        let outcome = self.send(&generators, flows.count, || self.taken())?;
        if outcome.delivered == 0 {
            return Ok(());
        }
        Err(Error::Incomplete {
            program: self.shape.variant.name(),
            missing: "rules: what none of them allows has arrived",
        })
    }

    /// Nobody asks for the next hop's address from now on, nor waits for it.
    fn set_next_hop(&self) -> Result<()> {
        let bridge = self.rig.fabric().router().link(BRIDGE)?;
        let (netlink, uplink) = (self.node()?.netlink()?, self.node()?.link(UPLINK)?);
        let gateway = plan::fabric_address(Family::Ipv4);
        let set = netlink.add_neighbour(uplink.index, gateway, bridge.mac);
        Ok(set.map_err(|source| LabError::Netlink {
            namespace: self.rig.fabric().plan().lab.to_string(),
            source,
        })?)
    }

    pub(in crate::cases) fn tracked(&self) -> Tracked<'_> {
        Tracked {
            variant: self.shape.variant,
            rig: &self.rig,
        }
    }

    /// Opens flows that are not open yet, each with its reply, and makes sure that all are
    /// established. Flows that are open are to be among them.
    pub(in crate::cases) fn establish(&self, flows: Flows) -> Result<()> {
        self.open(flows)?;
        if self.shape.variant.has_conntrack() {
            thread::sleep(STREAM_AFTER);
            self.reflect(flows, 1)?;
            let assured = self.tracked().assured()?;
            self.expect(flows, assured)?;
        }
        self.catch(flows)?;
        self.check(flows)
    }

    /// Opens flows, each with its reply, and confirms it.
    pub(in crate::cases) fn open(&self, flows: Flows) -> Result<()> {
        if self.shape.variant.has_conntrack() {
            self.tracked().forget()?;
        }
        self.reflect(flows, 2)
    }

    /// Opens flows, each with its reply, as far as there are ports, and returns how many have none.
    pub(in crate::cases) fn establish_most(&self, flows: Flows) -> Result<u32> {
        self.open(flows)?;
        let wanted = u64::from(flows.count);
        let mut found = self.tracked().established()?.unwrap_or(wanted);
        // Netfilter begins its search anywhere, each time anew.
        for _ in 0..4 {
            if found >= wanted || self.shape.variant == Variant::Datapath {
                break;
            }
            self.reflect(flows, 2)?;
            found = self.tracked().established()?.unwrap_or(wanted);
        }
        self.catch(flows)?;
        Ok(u32::try_from(wanted.saturating_sub(found)).unwrap_or(u32::MAX))
    }

    /// Opens as many of these flows as there are ports for, each with its reply, beside others that
    /// are established; makes sure that it ends with `wanted` established flows.
    pub(in crate::cases) fn fill(&self, flows: Flows, wanted: u32) -> Result<()> {
        const TRIES: usize = 30;

        let all = Flows {
            count: wanted,
            ..flows
        };
        for _ in 0..TRIES {
            self.open(flows)?;
            if self.tracked().established()? >= Some(wanted.into()) {
                break;
            }
        }
        self.catch(flows)?;
        self.check(all)
    }

    /// Sends the first packets of flows that nobody answers, and makes sure that they are there and not established.
    pub(in crate::cases) fn begin_unanswered(&self, flows: Flows) -> Result<()> {
        if self.shape.variant.has_conntrack() {
            self.tracked().forget()?;
        }
        self.catch(flows)?;
        let mut generators = self.generators(flows, Order::Next)?;
        for generator in &mut generators {
            generator.seek(0)?;
        }
        self.send(&generators, flows.count, || self.taken())?;
        self.check_unproven(flows)
    }

    /// Makes sure that just these flows are there, and not established.
    pub(in crate::cases) fn check_unproven(&self, flows: Flows) -> Result<()> {
        match self.tracked().unproven()? {
            Some(found) => self.expect(flows, found),
            None => Ok(()),
        }
    }

    /// Makes sure that just these flows are established.
    pub(in crate::cases) fn check(&self, flows: Flows) -> Result<()> {
        match self.tracked().established()? {
            Some(found) => self.expect(flows, found),
            None => Ok(()),
        }
    }

    /// Puts the sink at the far end.
    pub(in crate::cases) fn catch(&self, flows: Flows) -> Result<()> {
        self.sink.replace(None);
        let lengths = BTreeSet::from([self.template(flows, 0)?.len()]);
        let (namespace, interface) = self.far_end()?;
        let attach = if self.on_card {
            Sink::count_leaving
        } else {
            Sink::attach
        };
        let sink = attach(namespace, interface, &lengths)?;
        self.sink.replace(Some(sink));
        Ok(())
    }

    /// Generators for all pods that have any of these flows.
    pub(in crate::cases) fn generators(
        &self,
        flows: Flows,
        order: Order,
    ) -> Result<Vec<Generator>> {
        let node = self.node()?;
        let pods = (0..PODS).zip(&self.pods);
        pods.filter(|(number, _)| flows.of_pod(*number) > 0)
            .map(|(number, pod)| {
                let template = self.template(flows, number)?;
                Generator::ordered(node, &pod.interface, template, order)
            })
            .collect()
    }

    /// Sends frames from the pods in turn, as many from each, and waits until all have arrived
    /// somewhere: `arrived` counts them.
    pub(in crate::cases) fn send(
        &self,
        generators: &[Generator],
        frames: u32,
        arrived: impl Fn() -> Result<u64>,
    ) -> Result<Outcome> {
        let before = arrived()?;
        let (gone, _) = self.rig.uplink_sent(1)?;
        let cpu = affinity::last()?;
        let watch = Stopwatch::start()?;
        let all = u32::try_from(generators.len()).unwrap_or(u32::MAX);
        let elapsed = self.node()?.run(|| {
            affinity::pin_to(cpu)?;
            let mut elapsed = Duration::ZERO;
            let shares = (0..all).map(|one| share(frames, one, all));
            let mut left: Vec<_> = generators.iter().zip(shares).collect();
            while left.iter().any(|(_, left)| *left > 0) {
                for (generator, left) in &mut left {
                    let turn = TURN.min(*left);
                    if turn > 0 {
                        elapsed += generator.send(turn)?;
                        *left -= turn;
                    }
                }
            }
            Ok::<_, Error>(elapsed)
        })??;
        let (_, cpu) = watch.read()?;
        let sent = u64::from(frames);
        let start = Instant::now();
        let mut delivered = arrived()? - before;
        let mut tail = Duration::ZERO;
        while delivered < sent && start.elapsed() < PATIENCE {
            thread::yield_now();
            delivered = arrived()? - before;
            tail = start.elapsed();
        }
        let gone = self.rig.uplink_sent(1)?.0.saturating_sub(gone);
        Ok(Outcome {
            elapsed: elapsed + tail,
            cpu,
            sent,
            delivered,
            gone: self.on_card.then_some(gone),
        })
    }

    /// How many frames the sink has taken so far.
    pub(in crate::cases) fn taken(&self) -> Result<u64> {
        self.sink.borrow().as_ref().map_or(Ok(0), Sink::taken)
    }

    /// How many frames ours has refused so far for want of a port.
    pub(in crate::cases) fn refused(&self) -> Result<u64> {
        let drops = self.rig.drops(1)?;
        let reasons = [DropReason::NatExhausted, DropReason::NatShare].into_iter();
        Ok(reasons.filter_map(|reason| drops.get(reason.label())).sum())
    }

    /// Has every flow forgotten that time has run out for, or that netfilter has.
    pub(in crate::cases) fn forget(&self) -> Result<()> {
        match self.shape.variant {
            Variant::Plain => Ok(()),
            Variant::Datapath => {
                thread::sleep(Duration::from_secs(u64::from(self.shape.pending_s) + 1));
                self.rig.sweep(1)
            }
            _ => self.tracked().forget(),
        }
    }

    /// What the programs on the packets' way cost in a number of frames, in nanoseconds per frame.
    /// It makes every one of them dearer.
    pub(in crate::cases) fn programs(
        &self,
        generators: &[Generator],
        frames: u32,
    ) -> Result<Vec<(&'static str, f64)>> {
        let far_end = self.far_end()?;
        let node = self.node()?;
        let mut places: Vec<_> = self
            .pods
            .iter()
            .map(|pod| (node, pod.interface.as_str()))
            .collect();
        places.extend([(node, UPLINK), far_end]);
        let times = Times::start(&places)?;
        let told = Cell::new(0);
        // Where they arrive does not matter here, and nothing is waited for.
        self.send(generators, frames, || Ok(told.replace(u64::from(frames))))?;
        Ok(times.since(frames))
    }

    /// Sends one frame of each flow `times` times, and has each answered, up to the pod.
    fn reflect(&self, flows: Flows, times: usize) -> Result<()> {
        self.sink.replace(None);
        let template = self.template(flows, 0)?;
        let lengths = BTreeSet::from([template.len()]);
        let gutters = (1..=PODS).map(|pod| Sink::attach(self.rig.pod(1, pod)?, UPLINK, &lengths));
        self.gutters.replace(gutters.collect::<Result<_>>()?);
        let (namespace, interface) = self.far_end()?;
        let attach = if self.on_card {
            Reflector::turn_leaving
        } else {
            Reflector::attach
        };
        let _reflector = attach(namespace, interface, &template)?;
        let cpu = affinity::last()?;
        let mut generators = self.generators(flows, Order::Next)?;
        let gutters = self.gutters.borrow();
        let gutters = gutters.as_slice();
        self.node()?.run(|| {
            affinity::pin_to(cpu)?;
            for (generator, gutter) in generators.iter_mut().zip(gutters) {
                let count = generator.template().flows();
                let mut first = 0;
                while first < count {
                    let handful = HANDFUL.min(count - first);
                    for _ in 0..times {
                        let before = gutter.taken()?;
                        generator.seek(first.into())?;
                        generator.send(handful)?;
                        await_replies(gutter, before + u64::from(handful))?;
                    }
                    first += handful;
                }
            }
            Ok::<_, Error>(())
        })??;
        Ok(())
    }

    fn template(&self, flows: Flows, pod: u8) -> Result<Template> {
        let missing = || Error::Invalid {
            what: "pod",
            value: pod.to_string(),
            rule: "the lab has four, counted from 0 here",
        };
        let of = self.pods.get(usize::from(pod)).ok_or_else(missing)?;
        let place = |mac, address, port| Place {
            mac,
            address: SocketAddr::new(address, port),
        };
        let from = place(of.place.mac, of.place.address.ip(), flows.first_port);
        let [first, second, ..] = match destinations().network() {
            IpAddr::V4(network) => network.octets(),
            IpAddr::V6(_) => [0; 4],
        };
        let [third, fourth] = flows.first_destination.to_be_bytes();
        let destination = Ipv4Addr::new(first, second, third, fourth);
        let to = place(of.gateway, destination.into(), PORT);
        let count = flows.of_pod(pod).max(1);
        Template::new(flows.content, from, to, count, flows.destinations)
    }

    fn expect(&self, flows: Flows, found: u64) -> Result<()> {
        if found == u64::from(flows.count) {
            return Ok(());
        }
        Err(Error::NotEstablished {
            found: usize::try_from(found).unwrap_or(usize::MAX),
            wanted: flows.count as usize,
            protocol: "udp",
            from: format!("{PODS} pods ({})", self.shape.variant),
            to: destinations().to_string(),
            node: 1,
        })
    }

    fn node(&self) -> Result<&Namespace> {
        Ok(self.rig.node(1)?.namespace())
    }

    /// Where frames arrive, or where they leave if nobody is known beyond.
    fn far_end(&self) -> Result<(&Namespace, &'static str)> {
        Ok(if self.on_card {
            (self.node()?, UPLINK)
        } else {
            (self.rig.fabric().router(), "n1")
        })
    }
}

impl Pod {
    fn find(rig: &Rig, pod: u8) -> Result<Self> {
        let interface = rig.host_interface(1, pod)?;
        let address = SocketAddr::new(pod_address(1, pod, Family::Ipv4), FIRST_PORT);
        Ok(Self {
            place: Place {
                mac: rig.pod(1, pod)?.link(UPLINK)?.mac,
                address,
            },
            gateway: rig.node(1)?.namespace().link(&interface)?.mac,
            interface,
        })
    }
}

/// Waits until the pod has had so many replies. Those of refused flows never come.
fn await_replies(gutter: &Sink, wanted: u64) -> Result<()> {
    let start = Instant::now();
    while gutter.taken()? < wanted && start.elapsed() < Duration::from_millis(200) {
        thread::yield_now();
    }
    Ok(())
}
