//! Many rules for what pods may begin, as each variant has them.

use std::{fmt::Write, io::Write as _, net::Ipv4Addr, process::Stdio};

use datapath_conformance::{family::Family, program, topology::plan};
use datapath_user::policy::{
    Document, DocumentId, DocumentKind, Peer, Peers, PortProtocol, PortRule, PortValue, Ports,
    Rule, RuleVerdict, Section, Selector, Spec, Subject,
};
use ipnet::{IpNet, Ipv4Net};

use super::super::masquerade::{
    lab::{PORT, destinations},
    variant::Variant,
};
use crate::{
    error::{Error, Result},
    rig::Rig,
};

/// The first address that is allowed to be spoken to, in a range for carriers (RFC 6598): nobody
/// does.
const FIRST: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
/// Ports that the rules allow, in turn.
const FIRST_PORT: u16 = 8000;
const PORTS: u32 = 64;

/// One rule: pods may begin with these, on this port.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    to: IpNet,
    protocol: PortProtocol,
    port: u16,
}

/// So many rules that allow nothing of what is sent.
fn unused(count: u32) -> Vec<Allowed> {
    let one = |number: u32| Allowed {
        to: Ipv4Net::from(Ipv4Addr::from(u32::from(FIRST) + number)).into(),
        protocol: if number.is_multiple_of(2) {
            PortProtocol::Tcp
        } else {
            PortProtocol::Udp
        },
        #[allow(clippy::cast_possible_truncation, reason = "below PORTS")]
        port: FIRST_PORT + (number / 2 % PORTS) as u16,
    };
    (0..count).map(one).collect()
}

/// The rules by which all that is sent goes out.
fn used() -> Vec<Allowed> {
    let one = |protocol| Allowed {
        to: destinations(),
        protocol,
        port: PORT,
    };
    [PortProtocol::Tcp, PortProtocol::Udp].map(one).into()
}

/// Whether a variant can be given them.
pub(in crate::cases) const fn has_them(variant: Variant) -> bool {
    matches!(
        variant,
        Variant::Datapath | Variant::IptablesLegacy | Variant::IptablesNft
    )
}

/// Gives so many rules to the node of a lab; `check` is called once all of them are there but those
/// that allow what is sent.
///
/// # Errors
///
/// What the datapath or the tool says, and what `check` says.
pub(in crate::cases) fn give(
    rig: &Rig,
    variant: Variant,
    count: u32,
    check: impl Fn() -> Result<()>,
) -> Result<()> {
    let (unused, used) = (unused(count.saturating_sub(2)), used());
    let restore_both = |tool| {
        let pods = plan::pod_cidr(1, Family::Ipv4);
        let all = format!("-D FORWARD -s {pods} -m conntrack --ctstate NEW -j ACCEPT\n");
        restore(rig, tool, &(all + &appended(&unused)))?;
        check()?;
        restore(rig, tool, &appended(&used))
    };
    match variant {
        Variant::IptablesLegacy => restore_both("iptables-legacy-restore"),
        Variant::IptablesNft => restore_both("iptables-nft-restore"),
        _ => {
            rig.set_policies(1, vec![document(&unused)])?;
            check()?;
            rig.set_policies(1, vec![document(&[unused, used].concat())])
        }
    }
}

/// The rules as a policy document: those of all pods of the lab.
fn document(rules: &[Allowed]) -> Document {
    let rules = rules.iter().enumerate().map(|(at, allowed)| Rule {
        path: format!("spec.egress[{at}]"),
        line: 1,
        verdict: RuleVerdict::Allow,
        peers: Peers::Of(vec![Peer::Cidr {
            cidr: allowed.to,
            except: Vec::new(),
        }]),
        ports: Ports::Of(vec![PortRule::Port {
            protocol: Some(allowed.protocol),
            port: PortValue::Range(allowed.port..=allowed.port),
        }]),
    });
    Document {
        id: DocumentId {
            kind: DocumentKind::CiliumClusterwideNetworkPolicy,
            namespace: None,
            name: "bench".into(),
        },
        file: None,
        specs: vec![Spec {
            subject: Subject::Endpoints(Selector::default()),
            ingress: Section::default(),
            egress: Section {
                isolates: true,
                rules: rules.collect(),
            },
        }],
    }
}

/// The rules as a tool of netfilter reads them.
fn appended(rules: &[Allowed]) -> String {
    let pods = plan::pod_cidr(1, Family::Ipv4);
    let mut text = String::new();
    for Allowed { to, protocol, port } in rules {
        let protocol = protocol.to_string().to_lowercase();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "-A FORWARD -s {pods} -d {to} -p {protocol} --dport {port} -j ACCEPT"
        );
    }
    text
}

/// Has a tool of netfilter carry out lines about the filter table, all or none.
fn restore(rig: &Rig, tool: &'static str, lines: &str) -> Result<()> {
    let text = format!("*filter\n{lines}COMMIT\n");
    let mut command = rig.node(1)?.namespace().command(tool);
    let (reader, mut writer) = std::io::pipe().map_err(Error::os("make", "a pipe"))?;
    command.args(["-w", "--noflush"]).stdin(Stdio::from(reader));
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || writer.write_all(text.as_bytes()));
        let told = program::output(tool, "iptables", &mut command);
        drop(command);
        let written = writing.join().unwrap_or(Ok(()));
        told?;
        written.map_err(Error::os("write to", tool))
    })
}
