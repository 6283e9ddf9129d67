//! Which flows are meant.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::names::Names;
use super::pair::{
    FlowEnd, FlowFamily, FlowNat, FlowPair, FlowState, FlowTableName, FlowVerdict, NatKind,
    Protocol,
};
use crate::error::Error;
use crate::events::EndKind;
use crate::naming;

/// Which flows are meant: those that fit everything given. The default fits all.
///
/// All of it is flat, and its values are words, so that it can stand behind the `?` of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowFilter {
    /// An endpoint, by id, at either end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Who began it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<EndFilter>,
    /// With whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<EndFilter>,
    /// The IP protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// A port, or the identifier of an echo, at either end, before or after translation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How far it has come: one of these.
    #[serde(skip_serializing_if = "States::is_empty")]
    pub state: States,
    /// Whether it is translated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat: Option<bool>,
    /// Where it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<FlowTableName>,
    /// The address family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<FlowFamily>,
    /// What policy says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<FlowVerdict>,
}

/// Several states, as a list with commas: `syn,unreplied`. The empty one fits all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct States(pub Vec<FlowState>);

/// One end of a flow: who, and which port.
///
/// | text | end |
/// |---|---|
/// | `10.244.1.2`, `10.0.0.0/8`, `fd00::/8` | an address, any of a prefix |
/// | `host`, `world` | this node, whoever is neither node nor pod |
/// | `web-0`, `n2` | an endpoint by id, a peer by name |
/// | `web-0:80`, `10.0.0.0/8:80`, `[fd00::1]:80`, `:80` | with a port |
///
/// Addresses and ports fit those before translation, and those put in their place: what a server
/// sees as its client finds the pod's flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndFilter {
    /// Who.
    pub who: Who,
    /// The port, or identifier of an echo.
    pub port: Option<u16>,
}

/// Who is at an end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Anyone.
    Any,
    /// Who has an address of this prefix.
    Net(IpNet),
    /// This node.
    Host,
    /// Who is neither node nor pod.
    World,
    /// The endpoint or the peer of this name.
    Named(String),
}

impl FlowFilter {
    /// Whether it fits all flows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a flow is meant.
    #[must_use]
    pub fn takes(&self, flow: &FlowPair<'_>) -> bool {
        self.takes_ends(flow) && self.takes_condition(flow)
    }

    /// The part that either half tells, and that stays as it is while the flow lives.
    pub(crate) fn takes_ends(&self, flow: &FlowPair<'_>) -> bool {
        let ends = [&flow.source, &flow.destination];
        let is_pod = |end: &FlowEnd<'_>, id: &str| end.kind == EndKind::Endpoint && end.name == id;
        let nat = flow.nat.as_ref();
        let put_in = |kind| nat.filter(|nat| nat.kind == kind);
        let v4 = flow.source.address.is_ipv4();
        fits(self.protocol.as_ref(), |protocol| {
            *protocol == flow.protocol
        }) && fits(self.family.as_ref(), |family| {
            (*family == FlowFamily::Ipv4) == v4
        }) && fits(self.pod.as_ref(), |id| {
            ends.into_iter().any(|end| is_pod(end, id))
        }) && fits(self.port.as_ref(), |port| {
            ends.into_iter().any(|end| end.port == *port)
                || nat.is_some_and(|nat| nat.port == *port)
        }) && fits(self.nat.as_ref(), |wanted| *wanted == nat.is_some())
            && fits(self.from.as_ref(), |from| {
                from.takes(&flow.source, put_in(NatKind::Source))
            })
            && fits(self.to.as_ref(), |to| {
                to.takes(&flow.destination, put_in(NatKind::Destination))
            })
    }

    /// The part that changes while the flow lives.
    pub(crate) fn takes_condition(&self, flow: &FlowPair<'_>) -> bool {
        self.state.takes(flow.state)
            && fits(self.table.as_ref(), |table| *table == flow.table)
            && fits(self.verdict.as_ref(), |verdict| *verdict == flow.verdict)
    }

    /// Makes sure that whom it names is there.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchEnd`].
    pub(crate) fn check(&self, names: &Names) -> Result<(), Error> {
        if let Some(pod) = &self.pod {
            names.check_endpoint(pod)?;
        }
        for end in self.from.iter().chain(&self.to) {
            if let Who::Named(name) = &end.who {
                names.check_end(name)?;
            }
        }
        Ok(())
    }
}

impl States {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn takes(&self, state: FlowState) -> bool {
        self.is_empty() || self.0.contains(&state)
    }
}

impl fmt::Display for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.0.iter().map(|state| state.word()).collect();
        f.write_str(&words.join(","))
    }
}

impl FromStr for States {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let words = text.split(',').map(str::trim);
        words.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl EndFilter {
    fn takes(&self, end: &FlowEnd<'_>, put_in: Option<&FlowNat>) -> bool {
        let port = |port: u16| fits(self.port.as_ref(), |wanted| *wanted == port);
        let by_name = match &self.who {
            Who::Any => true,
            Who::Host => end.kind == EndKind::Host,
            Who::World => end.kind == EndKind::World,
            Who::Named(name) => {
                matches!(end.kind, EndKind::Endpoint | EndKind::Peer) && end.name == *name
            }
            // An address and its port go together, before translation or after.
            Who::Net(net) => {
                let has = |at: SocketAddr| net.contains(&at.ip()) && port(at.port());
                return has(end.socket()) || put_in.is_some_and(|nat| has(nat.socket()));
            }
        };
        by_name && (port(end.port) || put_in.is_some_and(|nat| port(nat.port)))
    }
}

impl fmt::Display for EndFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.who, self.port) {
            (Who::Net(net), Some(port)) if is_address(net) => {
                write!(f, "{}", SocketAddr::new(net.addr(), port))
            }
            // A prefix of IPv6 needs the brackets for the same reason.
            (Who::Net(IpNet::V6(net)), Some(port)) => write!(f, "[{net}]:{port}"),
            (who, None) => who.fmt(f),
            (who, Some(port)) => write!(f, "{who}:{port}"),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => Ok(()),
            Self::Net(net) if is_address(net) => net.addr().fmt(f),
            Self::Net(net) => net.fmt(f),
            Self::Host => f.write_str("host"),
            Self::World => f.write_str("world"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl FromStr for EndFilter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Invalid {
            what: "end of a flow",
            value: text.to_owned(),
            rule: "must be an address, a prefix, host, world, or the name of a pod or peer, and may \
                   have a port behind it: 10.244.1.2, 10.0.0.0/8, [fd00::1]:443, web-0:80, :53",
        };
        if let Some(net) = network(text) {
            return Ok(Self {
                who: Who::Net(net),
                port: None,
            });
        }
        let ported = text.rsplit_once(':').filter(|_| !text.ends_with(']'));
        let (who, port) = match ported {
            Some((who, port)) => (who, Some(port.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let bare = who.strip_prefix('[').and_then(|who| who.strip_suffix(']'));
        let who = match who {
            "" if port.is_some() => Who::Any,
            "host" => Who::Host,
            "world" => Who::World,
            _ => match (bare, network(bare.unwrap_or(who))) {
                (None, Some(IpNet::V6(_))) => return Err(wrong()),
                (_, Some(net)) => Who::Net(net),
                (None, None) if is_name(who) => Who::Named(who.to_owned()),
                _ => return Err(wrong()),
            },
        };
        Ok(Self { who, port })
    }
}

impl TryFrom<String> for EndFilter {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<EndFilter> for String {
    fn from(end: EndFilter) -> Self {
        end.to_string()
    }
}

impl TryFrom<String> for States {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<States> for String {
    fn from(states: States) -> Self {
        states.to_string()
    }
}

/// A prefix; an address is the prefix that has nothing else.
fn network(text: &str) -> Option<IpNet> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).ok()
}

fn is_address(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// Whether it may be the name of something. Digits with dots between are an address with a slip of
/// the pen.
fn is_name(text: &str) -> bool {
    let slip = text.contains('.') && text.chars().all(|c| c.is_ascii_digit() || c == '.');
    !slip && naming::check_id("name", text).is_ok()
}

fn fits<T>(wanted: Option<&T>, fit: impl FnOnce(&T) -> bool) -> bool {
    wanted.is_none_or(fit)
}

#[cfg(test)]
mod tests {
    use super::super::join::Joined;
    use super::super::join::tests::{masqueraded, names};
    use super::*;

    fn flow(names: &Names) -> FlowPair<'_> {
        let [(key, half), (_, answers)] = masqueraded(40_000, 9);
        let id = super::super::join::FlowId::of(&key, &half);
        let mut joined = Joined::new(id, FlowTableName::Established, &key, &half);
        joined.add(FlowTableName::Established, &answers);
        joined.view(names, 0)
    }

    fn end(text: &str) -> EndFilter {
        text.parse().unwrap()
    }

    #[test]
    fn ends_are_shown_as_they_are_read() {
        for text in [
            "10.244.1.2",
            "10.0.0.0/8",
            "10.0.0.0/8:80",
            "10.244.1.2:80",
            "fd00::/8",
            "[fd00::/8]:80",
            "fd00::1",
            "[fd00::1]:443",
            "host",
            "host:22",
            "world:80",
            "web-0",
            "web-0.a_b:80",
            ":53",
        ] {
            assert_eq!(end(text).to_string(), text);
        }
        assert_eq!(end("[fd00::1]"), end("fd00::1"));
    }

    #[test]
    fn what_is_no_end_is_refused_with_what_is() {
        for text in [
            "",
            ":",
            "10.244.1",
            "10.0.0.0/33",
            "10.0.0.1:http",
            "10.0.0.1:70000",
            "a b",
            "fd00::1::80",
            "[fd00::1]80",
            "web/0",
            "-",
        ] {
            let error = text.parse::<EndFilter>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("{text:?}")) && error.contains("web-0:80"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_flow_fits_what_is_true_of_it() {
        let names = names();
        let flow = flow(&names);
        let from = |text| FlowFilter {
            from: Some(end(text)),
            ..FlowFilter::default()
        };
        let to = |text| FlowFilter {
            to: Some(end(text)),
            ..FlowFilter::default()
        };
        let fitting = [
            FlowFilter::default(),
            from("web-0"),
            from("web-0:40000"),
            from("10.244.1.0/24:40000"),
            // As the server sees it.
            from("192.0.2.11:40001"),
            from(":40001"),
            to("world"),
            to("world:80"),
            to("198.51.100.10:80"),
            FlowFilter {
                pod: Some("web-0".to_owned()),
                protocol: Some(Protocol(6)),
                port: Some(80),
                state: States(vec![FlowState::Syn, FlowState::Established]),
                nat: Some(true),
                table: Some(FlowTableName::Established),
                family: Some(FlowFamily::Ipv4),
                verdict: Some(FlowVerdict::Allow),
                ..FlowFilter::default()
            },
        ];
        for filter in fitting {
            assert!(filter.takes(&flow), "{filter:?}");
        }
        let other = [
            from("web-1"),
            from("n2"),
            from("host"),
            from("10.244.1.2:40001"),
            from("192.0.2.11:40000"),
            from("198.51.100.10"),
            to("web-0"),
            to("world:443"),
            to("192.0.2.11"),
            to("host"),
        ];
        let single = |change: fn(&mut FlowFilter)| {
            let mut filter = FlowFilter::default();
            change(&mut filter);
            filter
        };
        let unfit = [
            single(|filter| filter.pod = Some("world".to_owned())),
            single(|filter| filter.protocol = Some(Protocol(17))),
            single(|filter| filter.port = Some(443)),
            single(|filter| filter.state = States(vec![FlowState::Closed])),
            single(|filter| filter.nat = Some(false)),
            single(|filter| filter.table = Some(FlowTableName::Pending)),
            single(|filter| filter.family = Some(FlowFamily::Ipv6)),
            single(|filter| filter.verdict = Some(FlowVerdict::Deny)),
        ];
        for filter in other.into_iter().chain(unfit) {
            assert!(!filter.takes(&flow) && !filter.is_empty(), "{filter:?}");
        }
    }

    #[test]
    fn filters_survive_json() {
        let filter = FlowFilter {
            from: Some(end("[fd00::1]:80")),
            state: "syn, closed".parse().unwrap(),
            nat: Some(false),
            ..FlowFilter::default()
        };
        let json = serde_json::to_string(&filter).unwrap();
        assert_eq!(
            json,
            r#"{"from":"[fd00::1]:80","state":"syn,closed","nat":false}"#
        );
        assert_eq!(serde_json::from_str::<FlowFilter>(&json).unwrap(), filter);
        let error = serde_json::from_str::<FlowFilter>(r#"{"form":"a"}"#).unwrap_err();
        assert!(error.to_string().contains("form"), "{error}");
    }
}
