//! Which events someone wants to see.

use std::{fmt, net::IpAddr, str::FromStr};

use datapath_user::{EventEnd, EventKind, EventVerdict, EventView};
use ipnet::IpNet;

use super::{LabelSelector, Untold};

/// What events must fulfil to be shown.
///
/// Conditions of one name are alternatives; those of different names must all hold. What fits one
/// of `not` is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// What they must fulfil.
    pub only: Vec<Condition>,
    /// What they must not.
    pub not: Vec<Condition>,
}

/// One condition: a name, and what its value must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    field: &'static Field,
    text: String,
    test: Test,
}

/// A thing that conditions can be about.
#[derive(Debug)]
pub struct Field {
    /// Its name: the option of `dpctl watch`, and the parameter of the API.
    pub name: &'static str,
    /// What stands for its value in a help text.
    pub value: &'static str,
    /// What it is, for a help text.
    pub help: &'static str,
    /// Which group of options it belongs to.
    pub heading: &'static str,
    parse: fn(&str) -> Result<Test, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Kind(EventKind),
    Verdict(EventVerdict),
    Reason(String),
    Direction(&'static str),
    Protocol(String),
    IpVersion(u8),
    TcpFlags(Vec<&'static str>),
    Interface(String),
    Endpoint(String),
    Document(String),
    End(Side, EndTest),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Either,
    From,
    To,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum EndTest {
    Ip(IpNet),
    Port(u16),
    Pod(Option<String>, String),
    Namespace(String),
    Label(LabelSelector),
    Identity(u32),
}

/// Numbers below this one are reserved identities.
const RESERVED: u32 = 256;
/// The identity of what is outside the cluster.
const WORLD: u32 = 2;

const WHAT: &str = "Which events";
const PACKET: &str = "Which packets";
const ENDS: &str = "From whom and to whom";

/// Field of either end, of the sender, and of the receiver.
macro_rules! sided {
    ($name:literal, $value:literal, $help:literal, $parse:path) => {
        [
            Field {
                name: $name,
                value: $value,
                help: concat!($help, ", on either side"),
                heading: ENDS,
                parse: |text| $parse(text).map(|test| Test::End(Side::Either, test)),
            },
            Field {
                name: concat!("from-", $name),
                value: $value,
                help: concat!($help, ", as sender"),
                heading: ENDS,
                parse: |text| $parse(text).map(|test| Test::End(Side::From, test)),
            },
            Field {
                name: concat!("to-", $name),
                value: $value,
                help: concat!($help, ", as receiver"),
                heading: ENDS,
                parse: |text| $parse(text).map(|test| Test::End(Side::To, test)),
            },
        ]
    };
}

static SINGLE: [Field; 10] = [
    Field {
        name: "type",
        value: "TYPE",
        help: "drop: packets that were dropped; policy-verdict: what policy said of new flows",
        heading: WHAT,
        parse: kind,
    },
    Field {
        name: "verdict",
        value: "VERDICT",
        help: "forwarded, dropped or audit, also as allowed, denied or audited",
        heading: WHAT,
        parse: verdict,
    },
    Field {
        name: "reason",
        value: "WORDS",
        help: "Those with these words in the drop reason, in any case: `policy denied`",
        heading: WHAT,
        parse: reason,
    },
    Field {
        name: "policy",
        value: "[[KIND/]NAMESPACE/]NAME",
        help: "Those that this policy document decided",
        heading: WHAT,
        parse: document,
    },
    Field {
        name: "traffic-direction",
        value: "DIRECTION",
        help: "ingress or egress, seen from the pods",
        heading: PACKET,
        parse: direction,
    },
    Field {
        name: "protocol",
        value: "NAME",
        help: "tcp, udp, icmp, icmpv6, sctp, arp, or the IP protocol's number",
        heading: PACKET,
        parse: protocol,
    },
    Field {
        name: "ip-version",
        value: "VERSION",
        help: "4 or 6",
        heading: PACKET,
        parse: ip_version,
    },
    Field {
        name: "tcp-flags",
        value: "FLAGS",
        help: "TCP segments with all of these flags: SYN,ACK",
        heading: PACKET,
        parse: tcp_flags,
    },
    Field {
        name: "interface",
        value: "NAME",
        help: "Those at this interface",
        heading: PACKET,
        parse: |text| Ok(Test::Interface(text.to_owned())),
    },
    Field {
        name: "endpoint",
        value: "ID",
        help: "Those of this endpoint, as sender, as receiver, or at its interface",
        heading: ENDS,
        parse: |text| Ok(Test::Endpoint(text.to_owned())),
    },
];

static OF_ENDS: [[Field; 3]; 6] = [
    sided!(
        "ip",
        "ADDRESS[/BITS]",
        "Those with this address, or one of this prefix",
        ip
    ),
    sided!("port", "PORT", "Those with this port", port),
    sided!(
        "pod",
        "[NAMESPACE/]NAME",
        "Those of pods whose names begin so (`shop/` are all of a namespace)",
        pod
    ),
    sided!(
        "namespace",
        "NAME",
        "Those of pods of this namespace",
        namespace
    ),
    sided!(
        "label",
        "SELECTOR",
        "Those whose labels fit: app=web, `app in (a,b)`, reserved:world",
        label
    ),
    sided!(
        "identity",
        "NUMBER|NAME",
        "Those of this security identity: a number, or host, world, remote-node, ...",
        identity
    ),
];

impl Field {
    /// All of them.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        SINGLE.iter().chain(OF_ENDS.iter().flatten())
    }

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::all().find(|field| field.name == name)
    }

    /// A condition on it.
    ///
    /// # Errors
    ///
    /// What values it can have, for one that it cannot.
    pub fn is(&'static self, text: &str) -> Result<Condition, String> {
        Ok(Condition {
            field: self,
            text: text.to_owned(),
            test: (self.parse)(text)?,
        })
    }
}

impl PartialEq for Field {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Field {}

impl EventFilter {
    /// The filter with one more condition; `name` is one of [`Field`].
    ///
    /// # Errors
    ///
    /// A sentence, for a name that there is none of and for a value that it cannot have.
    pub fn and(mut self, name: &str, text: &str) -> Result<Self, String> {
        let field = Field::named(name).ok_or_else(|| format!("unknown field `{name}`"))?;
        self.only.push(field.is(text)?);
        Ok(self)
    }

    /// Whether an event is wanted.
    #[must_use]
    pub fn takes(&self, event: &EventView) -> bool {
        self.takes_by(|condition| condition.test.fits(event))
            && !self.not.iter().any(|condition| condition.test.fits(event))
    }

    /// Whether it is wanted to know that events are missing: it is, unless they are of a drop reason
    /// that was not asked for.
    #[must_use]
    pub fn takes_untold(&self, untold: &Untold) -> bool {
        let Some(reason) = untold.reason.as_deref() else {
            return true;
        };
        self.takes_by(|condition| match &condition.test {
            Test::Reason(words) => reason.to_lowercase().contains(words),
            _ => true,
        })
    }

    /// Whether one condition of every name fits.
    fn takes_by(&self, fits: impl Fn(&Condition) -> bool) -> bool {
        self.only.iter().all(|condition| {
            let mut same = self.only.iter();
            same.any(|other| other.field == condition.field && fits(other))
        })
    }
}

impl Condition {
    /// Name of what it is about.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.field.name
    }
}

/// The value that it asks for.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Test {
    fn fits(&self, event: &EventView) -> bool {
        let ends = [&event.source, &event.destination];
        match self {
            Self::Kind(kind) => event.kind == *kind,
            Self::Verdict(verdict) => event.verdict == *verdict,
            Self::Reason(words) => event.reason.to_lowercase().contains(words),
            Self::Direction(name) => event.direction == *name,
            Self::Protocol(name) => event.protocol.eq_ignore_ascii_case(name),
            Self::IpVersion(version) => event.ip_version == Some(*version),
            Self::TcpFlags(flags) => flags
                .iter()
                .all(|flag| event.tcp_flags.split(", ").any(|set| set == *flag)),
            Self::Interface(name) => event.interface == *name,
            Self::Endpoint(id) => {
                let named = |end: &EventEnd| end.name.as_ref() == Some(id);
                event.endpoint.as_ref() == Some(id) || ends.into_iter().any(named)
            }
            Self::Document(name) => decided_by(event, name),
            Self::End(Side::Either, test) => ends.into_iter().any(|end| test.fits(end)),
            Self::End(Side::From, test) => test.fits(&event.source),
            Self::End(Side::To, test) => test.fits(&event.destination),
        }
    }
}

impl EndTest {
    fn fits(&self, end: &EventEnd) -> bool {
        match self {
            Self::Ip(net) => end.address.is_some_and(|address| net.contains(&address)),
            Self::Port(port) => end.port == Some(*port),
            Self::Pod(namespace, name) => {
                let pod = end.pod.as_deref().or_else(|| {
                    let endpoint = end.kind == Some(datapath_user::EndKind::Endpoint);
                    end.name.as_deref().filter(|_| endpoint)
                });
                let within = namespace.is_none() || end.namespace == *namespace;
                within && pod.is_some_and(|pod| pod.starts_with(name.as_str()))
            }
            Self::Namespace(name) => end.namespace.as_ref() == Some(name),
            Self::Label(selector) => selector.matches(&end.labels),
            // The world is the world of both families.
            Self::Identity(WORLD) => matches!(end.identity, Some(WORLD | 9 | 10)),
            Self::Identity(number) => end.identity == Some(*number),
        }
    }
}

/// Whether a document of this name has the rule that decided.
fn decided_by(event: &EventView, name: &str) -> bool {
    let rule = event
        .policy
        .as_ref()
        .and_then(|policy| policy.rule.as_ref());
    let document = rule.and_then(|rule| rule.document.as_ref());
    document.is_some_and(|document| {
        let whole = document.to_string();
        whole == name || whole.ends_with(&format!("/{name}"))
    })
}

/// The one of `all` that is written so, in any case.
fn word<T: Copy>(text: &str, what: &str, all: &[(&str, T)]) -> Result<T, String> {
    let found = all.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
        format!(
            "there is no {what} {text:?}; there are: {}",
            names.join(", ")
        )
    })
}

fn kind(text: &str) -> Result<Test, String> {
    let all = EventKind::ALL.map(|kind| (kind.as_str(), kind));
    word(text, "type of events", &all).map(Test::Kind)
}

fn verdict(text: &str) -> Result<Test, String> {
    let all = [
        ("forwarded", EventVerdict::Forwarded),
        ("dropped", EventVerdict::Dropped),
        ("audit", EventVerdict::Audit),
        ("allowed", EventVerdict::Forwarded),
        ("denied", EventVerdict::Dropped),
        ("audited", EventVerdict::Audit),
    ];
    word(text, "verdict", &all).map(Test::Verdict)
}

/// Words of a drop reason: some reason must have them.
fn reason(text: &str) -> Result<Test, String> {
    let words = text.to_lowercase();
    if datapath_user::drop_reasons().any(|reason| reason.to_lowercase().contains(&words)) {
        return Ok(Test::Reason(words));
    }
    let all: Vec<_> = datapath_user::drop_reasons().collect();
    Err(format!(
        "no drop reason has these words; they are: {}",
        all.join(", ")
    ))
}

fn document(text: &str) -> Result<Test, String> {
    if text.is_empty() || text.split('/').count() > 3 {
        return Err(
            "the name of a policy document: web, shop/web or NetworkPolicy/shop/web".into(),
        );
    }
    Ok(Test::Document(text.to_owned()))
}

fn direction(text: &str) -> Result<Test, String> {
    let all = ["ingress", "egress"].map(|name| (name, name));
    word(text, "direction", &all).map(Test::Direction)
}

fn protocol(text: &str) -> Result<Test, String> {
    const NAMES: [&str; 6] = ["tcp", "udp", "icmp", "icmpv6", "sctp", "arp"];
    let name = text.to_lowercase();
    // As Hubble and etherparse spell it.
    let name = if name == "icmpv4" {
        "icmp".to_owned()
    } else {
        name
    };
    if NAMES.contains(&name.as_str()) || name.parse::<u8>().is_ok() {
        return Ok(Test::Protocol(name));
    }
    Err(format!(
        "there is no protocol {text:?}; there are: {}, and numbers up to 255",
        NAMES.join(", ")
    ))
}

fn ip_version(text: &str) -> Result<Test, String> {
    let all = [
        ("4", 4),
        ("6", 6),
        ("v4", 4),
        ("v6", 6),
        ("ipv4", 4),
        ("ipv6", 6),
    ];
    word(text, "IP version", &all).map(Test::IpVersion)
}

fn tcp_flags(text: &str) -> Result<Test, String> {
    let all = ["SYN", "ACK", "FIN", "RST", "PSH", "URG", "ECE", "CWR"].map(|flag| (flag, flag));
    let flags = text
        .split(',')
        .map(|flag| word(flag.trim(), "TCP flag", &all));
    flags.collect::<Result<_, _>>().map(Test::TcpFlags)
}

/// A prefix; an address is the prefix that has nothing else.
fn ip(text: &str) -> Result<EndTest, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address
        .or_else(|_| text.parse())
        .map(EndTest::Ip)
        .map_err(|_| {
            format!(
                "{text:?} is neither an address such as 10.244.1.2 nor a prefix such as \
                 10.244.0.0/16"
            )
        })
}

fn port(text: &str) -> Result<EndTest, String> {
    let port = u16::from_str(text);
    port.map(EndTest::Port)
        .map_err(|_| format!("{text:?} is no port: a number up to 65535"))
}

fn pod(text: &str) -> Result<EndTest, String> {
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace).filter(|name| !name.is_empty()), name),
        None => (None, text),
    };
    if name.contains('/') || text.is_empty() {
        return Err(format!("{text:?} is no pod: write its name, or shop/web-0"));
    }
    Ok(EndTest::Pod(namespace.map(str::to_owned), name.to_owned()))
}

fn namespace(text: &str) -> Result<EndTest, String> {
    if text.is_empty() || text.contains('/') {
        return Err(format!("{text:?} is no name of a namespace"));
    }
    Ok(EndTest::Namespace(text.to_owned()))
}

fn label(text: &str) -> Result<EndTest, String> {
    text.parse().map(EndTest::Label)
}

fn identity(text: &str) -> Result<EndTest, String> {
    let named = (0..RESERVED)
        .filter_map(|number| Some((datapath_user::reserved_identity(number)?, number)));
    let named: Vec<_> = named.collect();
    u32::from_str(text)
        .or_else(|_| word(text.trim_start_matches("reserved:"), "identity", &named))
        .map(EndTest::Identity)
}
