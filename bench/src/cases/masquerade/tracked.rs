//! What is tracked: that what is measured are flows of the kind that is meant.

use std::{fs, io, thread, time::Duration};

use aya::maps::{HashMap, Map, MapData, MapError};
use datapath_conformance::netns::Namespace;
use datapath_kern::abi::flow::{Flow, FlowKey};
use socket2::{Domain, Protocol, Type};

use super::{lab::destinations, variant::Variant};
use crate::{
    error::{Error, Result},
    rig::Rig,
};

/// Where a namespace's own settings of conntrack are.
const CONNTRACK: &str = "net.netfilter.nf_conntrack";
/// How long an entry may live without a packet, seconds: longer than any bench.
pub(in crate::cases) const LONG_S: u32 = 86_400;

/// The tables that a variant tracks flows in.
#[derive(Clone, Copy, Debug)]
pub(in crate::cases) struct Tracked<'a> {
    pub(in crate::cases) variant: Variant,
    pub(in crate::cases) rig: &'a Rig,
}

impl Tracked<'_> {
    /// How many flows of the bench are established, or `None` where nobody tracks.
    ///
    /// Ours are those with both halves in the established table; for netfilter all that it has in
    /// the namespace, which has no others.
    pub(in crate::cases) fn established(&self) -> Result<Option<u64>> {
        match self.variant {
            Variant::Datapath => Ok(Some(self.halves("flows")? / 2)),
            Variant::Plain => Ok(None),
            _ => self.in_conntrack().map(Some),
        }
    }

    /// How many flows of the bench are there, but not proven.
    pub(in crate::cases) fn unproven(&self) -> Result<Option<u64>> {
        match self.variant {
            Variant::Datapath => Ok(Some(self.halves("pending")? / 2)),
            Variant::Plain => Ok(None),
            _ => self.established(),
        }
    }

    /// How many of netfilter's entries will not make room for others (`ASSURED`).
    pub(in crate::cases) fn assured(&self) -> Result<u64> {
        let file = "/proc/thread-self/net/nf_conntrack";
        let table = self.node()?.run(|| fs::read_to_string(file))?;
        let table = table.map_err(Error::os("read", file))?;
        let assured = table.lines().filter(|line| line.contains("[ASSURED]"));
        Ok(assured.count() as u64)
    }

    /// Forgets what netfilter tracks in the namespace.
    pub(in crate::cases) fn forget(&self) -> Result<()> {
        let socket = self.node()?.socket(
            Domain::from(NETLINK),
            Type::RAW,
            Some(Protocol::from(NETLINK_NETFILTER)),
        )?;
        let told = socket.send(&flush_request()).and_then(|_| {
            let mut answer = [const { std::mem::MaybeUninit::uninit() }; 64];
            let _length = socket.recv(&mut answer)?;
            Ok(())
        });
        told.map_err(Error::os("flush", "connections that netfilter tracks"))?;
        // What timers hold is gone a moment later.
        for _ in 0..100 {
            if self.in_conntrack()? == 0 {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(Error::os("flush", "connections that netfilter tracks")(
            io::Error::from(io::ErrorKind::TimedOut),
        ))
    }

    /// Has netfilter keep what it tracks, and makes sure that it has room for so many flows.
    pub(in crate::cases) fn make_room(&self, flows: u32) -> Result<()> {
        let node = self.node()?;
        let key = format!("{CONNTRACK}_max");
        let most: u64 = number(&node.sysctl(&key)?);
        let wanted = u64::from(flows) + u64::from(flows / 64);
        if most < wanted {
            return Err(Error::Unfit {
                what: "net.netfilter.nf_conntrack_max",
                value: most.to_string(),
                wanted: wanted.to_string(),
                remedy: format!(
                    "it is one number for the whole machine, which a bench does not change: \
                     `sysctl -w {key}={wanted}`, and again"
                ),
            });
        }
        for timeout in ["udp_timeout", "udp_timeout_stream", "tcp_timeout_syn_sent"] {
            node.set_sysctl(&format!("{CONNTRACK}_{timeout}"), &LONG_S.to_string())?;
        }
        Ok(())
    }

    fn in_conntrack(&self) -> Result<u64> {
        let count = self.node()?.sysctl(&format!("{CONNTRACK}_count"))?;
        Ok(number(&count))
    }

    fn node(&self) -> Result<&Namespace> {
        Ok(self.rig.node(1)?.namespace())
    }

    /// How many entries of one of our tables belong to flows of the bench.
    fn halves(&self, table: &'static str) -> Result<u64> {
        let path = self.rig.node(1)?.bpffs().join("maps").join(table);
        let failed = |source: MapError| Error::Table {
            table,
            source: Box::new(source),
        };
        let map: HashMap<MapData, FlowKey, Flow> = MapData::from_pin(path)
            .and_then(Map::from_map_data)
            .and_then(HashMap::try_from)
            .map_err(failed)?;
        let range = destinations();
        let mut count = 0;
        for key in map.keys() {
            match key {
                Ok(key) => {
                    let ends = [key.source, key.destination];
                    let of_bench = ends.iter().any(|end| range.contains(&end.to_ip()));
                    count += u64::from(of_bench);
                }
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(count)
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_default()
}

/// `AF_NETLINK`, and its protocol for netfilter (include/uapi/linux/netlink.h).
const NETLINK: i32 = 16;
const NETLINK_NETFILTER: i32 = 12;

/// A message that asks for every entry of the namespace to be deleted: `IPCTNL_MSG_CT_DELETE`
/// without attributes (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`).
///
/// ```text
/// length 4 | type 2 | flags 2 | sequence 4 | port 4 | family 1 | version 1 | resource 2
/// ```
fn flush_request() -> [u8; 20] {
    const SUBSYSTEM_CTNETLINK: u16 = 1;
    const DELETE: u16 = 2;
    const REQUEST_AND_ACKNOWLEDGE: u16 = 0x05;

    let mut message = [0; 20];
    let fields = [
        &20_u32.to_ne_bytes()[..],
        &(SUBSYSTEM_CTNETLINK << 8 | DELETE).to_ne_bytes(),
        &REQUEST_AND_ACKNOWLEDGE.to_ne_bytes(),
    ];
    for (byte, value) in message.iter_mut().zip(fields.concat()) {
        *byte = value;
    }
    message
}
