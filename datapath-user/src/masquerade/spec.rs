//! What a configuration says of an uplink.

use std::fmt;
use std::net::IpAddr;

use datapath_kern::abi::addr::Addr;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;

/// An uplink to be: an interface, and how pods leave by it.
///
/// Read from a plain name, or from a table:
///
/// ```
/// # #[derive(serde::Deserialize)]
/// # struct File { uplinks: Vec<datapath_user::UplinkSpec> }
/// # let file: File = toml::from_str(r#"
/// uplinks = [
///     "eth0",
///     { name = "eth1", masquerade = false },
///     { name = "eth2", masquerade = ["203.0.113.7", "2001:db8::7"] },
/// ]
/// # "#)?;
/// # assert_eq!(file.uplinks.len(), 3);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkSpec {
    /// Name of its interface.
    pub name: String,
    /// How pods leave by it; none: as [`Config::masquerade`](crate::Config::masquerade) says.
    pub masquerade: Option<Masquerade>,
}

/// Whether pods leave by an uplink behind an address of the node, and behind which.
///
/// Written as `true`, `false`, `"ipv4"`, `"ipv6"`, or as a list of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Masquerade {
    /// They do, behind the address that [the rule](crate::MasqueradeRule) finds.
    #[default]
    On,
    /// They leave under their own addresses.
    Off,
    /// They do in IPv4, and leave under their own addresses in IPv6.
    OnlyIpv4,
    /// They do in IPv6, and leave under their own addresses in IPv4.
    OnlyIpv6,
    /// They do, behind these addresses of the node, one per family at most and never behind
    /// another; in a family without one the rule finds it.
    Behind(Vec<IpAddr>),
}

impl UplinkSpec {
    /// An uplink with everything by default.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            masquerade: None,
        }
    }

    /// Checks what can be checked without a kernel.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let wrong = |value: String, rule| {
            Err(Error::Setting {
                field: "uplinks",
                value,
                rule,
            })
        };
        if self.name.is_empty() {
            return wrong("\"\"".to_owned(), "must be names of interfaces");
        }
        let Some(Masquerade::Behind(addresses)) = &self.masquerade else {
            return Ok(());
        };
        let say =
            |what: &dyn fmt::Debug| format!("{{ name = {:?}, masquerade = {what:?} }}", self.name);
        if addresses.is_empty() {
            let rule = "must name an address to masquerade behind, or say `masquerade = false`";
            return wrong(say(addresses), rule);
        }
        for &address in addresses {
            let packed = Addr::from(address);
            if packed.is_martian() || packed.is_multicast() {
                let rule = "must name addresses that other hosts can answer to: not unspecified, \
                            loopback, link-local or multicast";
                return wrong(say(&[address]), rule);
            }
        }
        for v4 in [true, false] {
            let of_family = addresses.iter().filter(|address| address.is_ipv4() == v4);
            if of_family.count() > 1 {
                return wrong(say(addresses), "must name one address per family at most");
            }
        }
        Ok(())
    }

    /// How pods leave by it, given what is so by default.
    pub(crate) fn masquerade(&self, by_default: bool) -> Masquerade {
        let default = if by_default {
            Masquerade::On
        } else {
            Masquerade::Off
        };
        self.masquerade.clone().unwrap_or(default)
    }
}

impl Masquerade {
    /// Whether there is one in a family.
    pub(crate) fn is_on(&self, v4: bool) -> bool {
        match self {
            Self::On | Self::Behind(_) => true,
            Self::Off => false,
            Self::OnlyIpv4 => v4,
            Self::OnlyIpv6 => !v4,
        }
    }

    /// The addresses that it names.
    pub(crate) fn named(&self) -> &[IpAddr] {
        match self {
            Self::Behind(addresses) => addresses,
            _ => &[],
        }
    }
}

impl From<String> for UplinkSpec {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

impl From<&str> for UplinkSpec {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl Serialize for UplinkSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(masquerade) = &self.masquerade else {
            return serializer.serialize_str(&self.name);
        };
        let mut table = serializer.serialize_map(Some(2))?;
        table.serialize_entry("name", &self.name)?;
        table.serialize_entry("masquerade", masquerade)?;
        table.end()
    }
}

impl<'de> Deserialize<'de> for UplinkSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// The table.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            name: String,
            masquerade: Option<Masquerade>,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = UplinkSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an interface, or a table with `name` and `masquerade`")
            }

            fn visit_str<E>(self, name: &str) -> Result<UplinkSpec, E> {
                Ok(UplinkSpec::new(name))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<UplinkSpec, A::Error> {
                let Table { name, masquerade } =
                    Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(UplinkSpec { name, masquerade })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Serialize for Masquerade {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::On => serializer.serialize_bool(true),
            Self::Off => serializer.serialize_bool(false),
            Self::OnlyIpv4 => serializer.serialize_str("ipv4"),
            Self::OnlyIpv6 => serializer.serialize_str("ipv6"),
            Self::Behind(addresses) => addresses.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Masquerade {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Masquerade;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, \"ipv4\", \"ipv6\", or a list of addresses of this node")
            }

            fn visit_bool<E>(self, on: bool) -> Result<Masquerade, E> {
                Ok(if on { Masquerade::On } else { Masquerade::Off })
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Masquerade, E> {
                match word {
                    "ipv4" => Ok(Masquerade::OnlyIpv4),
                    "ipv6" => Ok(Masquerade::OnlyIpv6),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(word), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Masquerade, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list))
                    .map(Masquerade::Behind)
                    .map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize, Serialize)]
    struct File {
        uplinks: Vec<UplinkSpec>,
    }

    fn read(list: &str) -> Result<Vec<UplinkSpec>, toml::de::Error> {
        toml::from_str::<File>(&format!("uplinks = {list}")).map(|file| file.uplinks)
    }

    #[test]
    fn names_and_tables_are_read_and_written() {
        let text = r#"["eth0", { name = "eth1", masquerade = false },
            { name = "eth2", masquerade = ["203.0.113.7", "2001:db8::7"] },
            { name = "eth3", masquerade = "ipv6" }, { name = "eth4", masquerade = true },
            { name = "eth5", masquerade = "ipv4" }, { name = "eth6" }]"#;
        let uplinks = read(text).unwrap();
        let named = uplinks.iter().map(|uplink| uplink.masquerade.clone());
        let behind = ["203.0.113.7", "2001:db8::7"].map(|text| text.parse().unwrap());
        let wanted = [
            None,
            Some(Masquerade::Off),
            Some(Masquerade::Behind(behind.to_vec())),
            Some(Masquerade::OnlyIpv6),
            Some(Masquerade::On),
            Some(Masquerade::OnlyIpv4),
            None,
        ];
        assert_eq!(named.collect::<Vec<_>>(), wanted);
        let file = File { uplinks };
        let written = toml::to_string(&file).unwrap();
        assert_eq!(toml::from_str::<File>(&written).unwrap(), file, "{written}");
        for uplink in &file.uplinks {
            uplink.validate().unwrap();
            assert_eq!(
                uplink.masquerade(false).is_on(true),
                matches!(uplink.name.as_str(), "eth2" | "eth4" | "eth5")
            );
            assert_eq!(
                uplink.masquerade(true).is_on(false),
                !matches!(uplink.name.as_str(), "eth1" | "eth5")
            );
        }
    }

    #[test]
    fn what_cannot_be_an_uplink_is_refused_by_name() {
        for (text, said) in [
            ("[7]", "the name of an interface"),
            (r#"[{ nam = "eth0" }]"#, "expected `name` or `masquerade`"),
            (r#"[{ name = "eth0", masquerade = "ipv5" }]"#, "\"ipv5\""),
            (
                r#"[{ name = "eth0", masquerade = ["x"] }]"#,
                "invalid IP address",
            ),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        for (text, said) in [
            (
                r#"[{ name = "", masquerade = true }]"#,
                "names of interfaces",
            ),
            (
                r#"[{ name = "eth0", masquerade = [] }]"#,
                "masquerade = false",
            ),
            (
                r#"[{ name = "eth0", masquerade = ["192.0.2.1", "192.0.2.2"] }]"#,
                "one address per family",
            ),
            (
                r#"[{ name = "eth0", masquerade = ["fe80::1"] }]"#,
                "[fe80::1]",
            ),
            (
                r#"[{ name = "eth0", masquerade = ["127.0.0.1"] }]"#,
                "loopback",
            ),
        ] {
            let error = read(text).unwrap()[0].validate().unwrap_err().to_string();
            assert!(
                error.contains(said) && error.contains("uplinks"),
                "{text}: {error}"
            );
        }
    }
}
