//! A flow as people and programs read it: its two halves as one.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use datapath_kern::wire::ip::protocol;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::words::words;
use crate::error::Error;
use crate::events::EndKind;

/// A flow, both directions of it, as it began.
///
/// In JSON it is one object, the first member of which says what the others mean:
///
/// ```json
/// {"format":"flow/1","protocol":"tcp",
///  "source":{"kind":"endpoint","name":"web-0","identity":1001,"address":"10.244.1.2","port":40000},
///  "destination":{"kind":"world","name":"world","identity":2,"address":"198.51.100.10","port":80},
///  "nat":{"kind":"snat","address":"192.0.2.11","port":40000},
///  "state":"established","verdict":"allow","table":"established",
///  "arrival":"pod","target":"uplink","via_stack":false,
///  "packets":12,"bytes":3456,"reply_packets":10,"reply_bytes":123456,
///  "expires_in_s":7980,"rule_id":0,"pair":9,"missing":null}
/// ```
///
/// Members may be added under the same format, and none goes away or changes what it means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowPair<'a> {
    /// What the members mean.
    pub format: FlowFormat,
    /// The IP protocol.
    pub protocol: Protocol,
    /// Who began it, before translation.
    #[serde(borrow)]
    pub source: FlowEnd<'a>,
    /// With whom, before translation.
    #[serde(borrow)]
    pub destination: FlowEnd<'a>,
    /// What is put in the place of the source (`snat`) or the destination (`dnat`); the other
    /// direction has it undone.
    pub nat: Option<FlowNat>,
    /// How far it has come.
    pub state: FlowState,
    /// What policy says; `deny` if it says so of either direction.
    pub verdict: FlowVerdict,
    /// Where it is kept; `established` as soon as one half is there.
    pub table: FlowTableName,
    /// How packets of the original direction come in.
    pub arrival: FlowWay,
    /// Where they go.
    pub target: FlowWay,
    /// Whether the host's stack translated the flow and gets its answers.
    pub via_stack: bool,
    /// Frames of the original direction.
    pub packets: u64,
    /// Bytes of those, link headers included.
    pub bytes: u64,
    /// Frames of the other direction.
    pub reply_packets: u64,
    /// Bytes of those.
    pub reply_bytes: u64,
    /// Seconds that it lives without another packet.
    pub expires_in_s: u32,
    /// The policy rule that decided, zero where none did.
    pub rule_id: u32,
    /// Number of this incarnation of the flow, the same in both halves.
    pub pair: u32,
    /// The half that is not there: a fault, unless the flow was being changed at that moment.
    pub missing: Option<FlowHalf>,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEnd<'a> {
    /// What sort of end it is.
    pub kind: EndKind,
    /// The endpoint's id, the peer's name, `host` or `world`; `gone` for one that is no more.
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    /// Its identity, zero where the half that knows it is missing.
    pub identity: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its port, or the identifier of an echo; zero for protocols without.
    pub port: u16,
}

/// What a flow's source or destination is replaced by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowNat {
    /// Which of the two is.
    pub kind: NatKind,
    /// The address put in.
    pub address: IpAddr,
    /// The port, or identifier of an echo, put in.
    pub port: u16,
}

/// The number of the format of [`FlowPair`] in JSON: `flow/1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowFormat;

impl FlowFormat {
    const NAME: &'static str = "flow/1";
}

impl Serialize for FlowFormat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Self::NAME)
    }
}

impl<'de> Deserialize<'de> for FlowFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Cow::<str>::deserialize(deserializer)?;
        if name == Self::NAME {
            return Ok(Self);
        }
        Err(serde::de::Error::custom(format!(
            "format {name}, and this version reads {}",
            Self::NAME
        )))
    }
}

/// An IP protocol: `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, or its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    const NAMES: [(u8, &'static str); 5] = [
        (protocol::TCP, "tcp"),
        (protocol::UDP, "udp"),
        (protocol::ICMP, "icmp"),
        (protocol::ICMPV6, "icmpv6"),
        (protocol::SCTP, "sctp"),
    ];

    /// Its name, where it has one.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        let found = Self::NAMES.iter().find(|(number, _)| *number == self.0);
        found.map(|(_, name)| *name)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

impl FromStr for Protocol {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let named = Self::NAMES
            .iter()
            .find(|(_, name)| name.eq_ignore_ascii_case(text));
        let number = named.map(|(number, _)| *number);
        number
            .or_else(|| text.parse().ok())
            .map(Self)
            .ok_or_else(|| Error::Invalid {
                what: "protocol",
                value: text.to_owned(),
                rule: "must be tcp, udp, icmp, icmpv6, sctp, or a number up to 255",
            })
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.name() {
            Some(name) => serializer.serialize_str(name),
            None => serializer.collect_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

words! {
    /// How far a flow has come.
    FlowState("state", "must be syn, unreplied, replied, established, closing, closed or reset") {
        /// TCP: the other side has not answered.
        Syn = "syn",
        /// Another protocol: the other side has not answered.
        Unreplied = "unreplied",
        /// The other side has answered, and who began has not gone on from there.
        Replied = "replied",
        /// Both sides have shown that they mean it.
        Established = "established",
        /// One side has ended it.
        Closing = "closing",
        /// Both have.
        Closed = "closed",
        /// One side is said to have reset it, and nothing else has come since.
        Reset = "reset",
    }
}

words! {
    /// What policy says of a flow.
    FlowVerdict("verdict", "must be allow or deny") {
        /// Its packets are forwarded.
        Allow = "allow",
        /// They are dropped.
        Deny = "deny",
    }
}

words! {
    /// A flow table.
    FlowTableName("table", "must be established or pending") {
        /// That of flows which both sides have confirmed; nothing is evicted from it.
        Established = "established",
        /// That of all others.
        Pending = "pending",
    }
}

words! {
    /// A way into the datapath, or out of it.
    FlowWay("way", "must be pod, tunnel, uplink, host or unknown") {
        /// A pod of this node.
        Pod = "pod",
        /// The tunnel to a peer.
        Tunnel = "tunnel",
        /// An uplink, not encapsulated.
        Uplink = "uplink",
        /// This node's stack.
        Host = "host",
        /// One that this version does not know.
        Unknown = "unknown",
    }
}

words! {
    /// What a translation replaces.
    NatKind("translation", "must be snat or dnat") {
        /// The source.
        Source = "snat",
        /// The destination.
        Destination = "dnat",
    }
}

words! {
    /// One of the two directions of a flow.
    FlowHalf("direction", "must be original or reply") {
        /// That in which it began.
        Original = "original",
        /// That of the answers.
        Reply = "reply",
    }
}

words! {
    /// An address family.
    FlowFamily("family", "must be ipv4 or ipv6") {
        /// IPv4.
        Ipv4 = "ipv4",
        /// IPv6.
        Ipv6 = "ipv6",
    }
}

impl FlowPair<'_> {
    /// Frames of both directions.
    #[must_use]
    pub const fn all_packets(&self) -> u64 {
        self.packets.saturating_add(self.reply_packets)
    }

    /// Bytes of both directions.
    #[must_use]
    pub const fn all_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.reply_bytes)
    }

    /// The same, with names of its own.
    #[must_use]
    pub fn into_owned(self) -> FlowPair<'static> {
        FlowPair {
            source: self.source.into_owned(),
            destination: self.destination.into_owned(),
            ..self
        }
    }
}

impl FlowEnd<'_> {
    /// Address and port.
    #[must_use]
    pub const fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    fn into_owned(self) -> FlowEnd<'static> {
        FlowEnd {
            name: Cow::Owned(self.name.into_owned()),
            ..self
        }
    }
}

impl FlowNat {
    /// Address and port.
    #[must_use]
    pub const fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_read_as_they_are_shown() {
        for (number, text) in [(6, "tcp"), (17, "udp"), (58, "icmpv6"), (47, "47")] {
            assert_eq!(Protocol(number).to_string(), text);
            assert_eq!(text.parse::<Protocol>().unwrap(), Protocol(number));
        }
        assert_eq!("SCTP".parse::<Protocol>().unwrap(), Protocol(132));
        let error = "tpc".parse::<Protocol>().unwrap_err().to_string();
        assert!(
            error.contains("\"tpc\"") && error.contains("icmpv6"),
            "{error}"
        );
    }

    #[test]
    fn words_are_the_same_everywhere() {
        for state in FlowState::ALL {
            let json = serde_json::to_string(state).unwrap();
            assert_eq!(json, format!("\"{}\"", state.word()));
            assert_eq!(state.word().parse::<FlowState>().unwrap(), *state);
        }
        let error = "open".parse::<FlowState>().unwrap_err().to_string();
        assert!(
            error.contains("\"open\"") && error.contains("closing"),
            "{error}"
        );
    }

    #[test]
    fn another_format_is_refused_by_name() {
        let error = serde_json::from_str::<FlowFormat>("\"flow/2\"").unwrap_err();
        assert!(error.to_string().contains("flow/2"), "{error}");
    }
}
