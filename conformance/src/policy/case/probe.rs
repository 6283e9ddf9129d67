//! What is sent, and the single cells of a matrix.

use std::{fmt, fs, path::Path, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::EndpointId;
use crate::{
    error::{Error, Result},
    family::Family,
};

/// What is sent to every destination.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// By which protocol.
    pub protocol: ProbeProtocol,
    /// To which port; for ICMP the type.
    pub port: u16,
    /// As which request; only with TCP.
    #[serde(default)]
    pub http: Option<Http>,
}

/// An HTTP request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
}

/// Protocols that are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProbeProtocol {
    /// TCP.
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
    /// ICMP for IPv4.
    #[serde(rename = "ICMP")]
    Icmp,
    /// ICMP for IPv6.
    #[serde(rename = "ICMPv6")]
    Icmpv6,
}

/// One cell: a probe from one endpoint to another over one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellId {
    /// Who sends.
    #[serde(rename = "src")]
    pub source: EndpointId,
    /// To whom.
    #[serde(rename = "dst")]
    pub destination: EndpointId,
    /// Over which family: 4 or 6 in JSON.
    #[serde(serialize_with = "number", deserialize_with = "from_number")]
    pub family: Family,
    /// By which protocol.
    pub protocol: ProbeProtocol,
    /// To which port; for ICMP the type.
    pub port: u16,
    /// As which request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
}

impl ProbeProtocol {
    /// Whether it runs over a family.
    #[must_use]
    pub fn runs_on(self, family: Family) -> bool {
        match self {
            Self::Icmp => family == Family::Ipv4,
            Self::Icmpv6 => family == Family::Ipv6,
            Self::Tcp | Self::Udp | Self::Sctp => true,
        }
    }
}

/// Reads a file of probes (`netprobes/1`) for a case.
///
/// # Errors
///
/// [`Error::Os`] when it cannot be read, [`Error::Unreadable`] for its form, [`Error::Invalid`] when
/// it is for another case.
pub fn read_probes(file: &Path, case: &str) -> Result<Vec<CellId>> {
    let text = fs::read_to_string(file).map_err(Error::os("read", file.display()))?;
    let probes: Probes = serde_json::from_str(&text).map_err(|source| Error::Unreadable {
        what: file.display().to_string(),
        source,
    })?;
    if probes.format != FORMAT {
        return Err(Error::Invalid {
            what: "format of the probes",
            value: probes.format,
            rule: "must be netprobes/1",
        });
    }
    if probes.case != case {
        return Err(Error::Invalid {
            what: "case of the probes",
            value: probes.case,
            rule: "must be the one that is run",
        });
    }
    if let Some(cell) = probes
        .cells
        .iter()
        .find(|cell| !cell.protocol.runs_on(cell.family))
    {
        return Err(Error::Invalid {
            what: "probe",
            value: cell.to_string(),
            rule: "ICMP runs on 4 only, ICMPv6 on 6 only",
        });
    }
    Ok(probes.cells)
}

const FORMAT: &str = "netprobes/1";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Probes {
    format: String,
    case: String,
    #[serde(rename = "probes")]
    cells: Vec<CellId>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn number<S: Serializer>(family: &Family, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u8(match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 6,
    })
}

fn from_number<'de, D: Deserializer<'de>>(from: D) -> Result<Family, D::Error> {
    match u8::deserialize(from)? {
        4 => Ok(Family::Ipv4),
        6 => Ok(Family::Ipv6),
        other => Err(de::Error::custom(format!("family {other}: must be 4 or 6"))),
    }
}

impl fmt::Display for ProbeProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
            Self::Icmpv6 => "ICMPv6",
        })
    }
}

impl FromStr for ProbeProtocol {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "TCP" => Self::Tcp,
            "UDP" => Self::Udp,
            "SCTP" => Self::Sctp,
            "ICMP" => Self::Icmp,
            "ICMPv6" => Self::Icmpv6,
            _ => {
                return Err(Error::Invalid {
                    what: "protocol",
                    value: text.to_owned(),
                    rule: "must be TCP, UDP, SCTP, ICMP or ICMPv6",
                });
            }
        })
    }
}

impl fmt::Display for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            destination,
            family,
            protocol,
            port,
            http,
        } = self;
        write!(f, "{source} > {destination} {protocol}/{port} {family}")?;
        http.as_ref().map_or(Ok(()), |http| write!(f, " {http}"))
    }
}
