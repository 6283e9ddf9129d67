//! `icmps`.

use super::super::node::{Node, Value};
use super::super::suggest;
use super::super::walk::Walk;
use super::Reader;
use crate::policy::{IcmpFamily, PortRule};

/// Fields that one item may have, as the schema has it.
const MOST_FIELDS: usize = 40;

/// Names of types of ICMP (IANA, "ICMP Type Numbers").
const TYPES_V4: [(&str, u8); 14] = [
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];
/// Names of types of ICMPv6 (IANA, "ICMPv6 type Numbers").
const TYPES_V6: [(&str, u8); 27] = [
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];

impl Reader<'_, '_> {
    pub(super) fn icmps(&self, node: &Node) -> Vec<PortRule> {
        let walk = self.walk;
        let items = walk.list(node, "`icmps`").unwrap_or_default();
        let mut rules = Vec::new();
        for item in items.iter().filter(|item| !item.is_null()) {
            let fields = walk.map(item, "an item of `icmps`", &["fields"]);
            let Some(list) = fields.and_then(|fields| fields.get("fields")) else {
                continue;
            };
            let fields = walk.list(list, "`fields`").unwrap_or_default();
            if fields.len() > MOST_FIELDS {
                let count = fields.len();
                let problem = format!("`fields` has {count} items, and {MOST_FIELDS} are allowed");
                walk.wrong_so(list.at, problem, "make several items of `icmps` of it");
            }
            let fields = fields.iter().filter(|field| !field.is_null());
            rules.extend(fields.filter_map(|item| field(walk, item)));
        }
        rules
    }
}

fn field(walk: &Walk<'_>, node: &Node) -> Option<PortRule> {
    let fields = walk.map(node, "an item of `fields`", &["family", "type"])?;
    let family = match fields.get("family") {
        None => IcmpFamily::V4,
        Some(node) => match walk.word(node, "`family`", &["IPv4", "IPv6"])? {
            "IPv4" => IcmpFamily::V4,
            _ => IcmpFamily::V6,
        },
    };
    let Some(kind) = fields.get("type") else {
        walk.wrong(node.at, "`type` is missing");
        return None;
    };
    let number = match &kind.value {
        Value::Text(text) => number_of(walk, kind, text, family),
        _ => walk.integer_of(kind, "`type`", 0..=255),
    };
    Some(PortRule::Icmp {
        family,
        kind: number?,
    })
}

/// Reads a type by its name, or a number that is in quotes.
fn number_of(walk: &Walk<'_>, node: &Node, text: &str, family: IcmpFamily) -> Option<u8> {
    let number = text.parse::<u8>().ok();
    if let Some(number) = number.filter(|number| number.to_string() == text) {
        return Some(number);
    }
    let (types, others) = match family {
        IcmpFamily::V4 => (&TYPES_V4[..], &TYPES_V6[..]),
        IcmpFamily::V6 => (&TYPES_V6[..], &TYPES_V4[..]),
    };
    let find = |types: &[(&str, u8)]| {
        let mut types = types.iter();
        types.find_map(|(name, number)| (*name == text).then_some(*number))
    };
    if let Some(number) = find(types) {
        return Some(number);
    }
    let names: Vec<&str> = types.iter().map(|(name, _)| *name).collect();
    let help = if find(others).is_some() {
        match family {
            IcmpFamily::V4 => "it is one of `family: IPv6`".to_owned(),
            IcmpFamily::V6 => "it is one of `family: IPv4`".to_owned(),
        }
    } else {
        match suggest::meant(text, &names) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "write a number from 0 to 255, or a name such as EchoRequest".to_owned(),
        }
    };
    walk.wrong_so(node.at, format!("`{text}` is no type of ICMP"), help);
    None
}
