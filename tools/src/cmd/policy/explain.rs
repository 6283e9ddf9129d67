//! `dpctl policy explain`

use clap::Args;
use datapath_user::policy::{Explanation, Judgement, Labels};

use super::{Context, Outcome};
use crate::{
    api::{ExplainRequest, Explained, Kind},
    error::Error,
    table::{list, pairs},
};

const EXAMPLES: &str = "\
An end is one of:
  web-0                  an endpoint of this node, or a peer
  shop/web-0             a pod by namespace and name, also of another node
  10.244.1.5             an address of a pod or a node, or one outside
  4711                   an identity, see `dpctl identity list`
  reserved:world         a reserved identity; also host and world in short
  app=web,io.kubernetes.pod.namespace=shop
                         a pod with exactly these labels, whether there is one or not

Each end is judged as its own node would judge it, with the documents that are in force here.

Exit codes:
  0  allowed
  1  denied
  2  an end is not there, or the command line makes no sense
  3  no agent can be reached

Examples:
  dpctl policy explain --from shop/web-0 --to shop/db-0 --port 5432/TCP
  dpctl policy explain --from reserved:world --to web-0 --port 80
  dpctl policy explain --from 10.244.1.5 --to 192.0.2.53 --port 53/UDP
  dpctl policy explain --from shop/web-0 --to host --icmp 8
  dpctl --output json policy explain --from web-0 --to db-0 --port 80/TCP | jq .ingress.rule";

/// ICMP (RFC 792) and ICMPv6 (RFC 4443).
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Say whether a flow would be let through, and by which rule, or which one is missing
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("what").required(true)))]
pub(in crate::cmd) struct Explain {
    /// Who would begin it
    #[arg(long, value_name = "END")]
    from: String,

    /// With whom
    #[arg(long, value_name = "END")]
    to: String,

    /// To which port: 80/TCP, 53/UDP, 3868/SCTP, or 80 for TCP
    #[arg(long, value_name = "PORT/PROTOCOL", value_parser = port, group = "what")]
    port: Option<(u8, u16)>,

    /// By ICMP messages of which type: 8 is an echo request
    #[arg(long, value_name = "TYPE", group = "what")]
    icmp: Option<u8>,

    /// By ICMPv6 messages of which type: 128 is an echo request
    #[arg(long, value_name = "TYPE", group = "what")]
    icmpv6: Option<u8>,
}

impl Explain {
    pub(in crate::cmd) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let explained = context.client()?.explain(&self.request());
        let explained = explained.map_err(|error| match error {
            Error::Refused(failure) if matches!(failure.kind, Kind::Missing | Kind::Invalid) => {
                let sentence = failure.to_string();
                Error::Usage { sentence }
            }
            other => other,
        })?;
        let shown = context.show(&explained, |explained| {
            text(explained, &self.from, &self.to)
        })?;
        Ok(Outcome {
            failed: !explained.explanation.allowed,
            ..shown
        })
    }

    fn request(&self) -> ExplainRequest {
        let icmp = self.icmp.map(|kind| (ICMP, kind.into()));
        let icmpv6 = self.icmpv6.map(|kind| (ICMPV6, kind.into()));
        let (protocol, port) = self.port.or(icmp).or(icmpv6).unwrap_or_default();
        ExplainRequest {
            from: self.from.clone(),
            to: self.to.clone(),
            protocol,
            port,
        }
    }
}

/// Reads a port with its protocol; TCP where none is said.
fn port(text: &str) -> Result<(u8, u16), String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let remedy = "write a port from 1 to 65535 and TCP, UDP or SCTP, as in 80/TCP";
    let protocol = match protocol.to_ascii_uppercase().as_str() {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        "ICMP" => return Err("ICMP has types and no ports: write --icmp 8".to_owned()),
        "ICMPV6" => return Err("ICMPv6 has types and no ports: write --icmpv6 128".to_owned()),
        _ => return Err(format!("there is no protocol {protocol:?}: {remedy}")),
    };
    match number.parse() {
        Ok(0) | Err(_) => Err(format!("{number:?} is no port: {remedy}")),
        Ok(number) => Ok((protocol, number)),
    }
}

fn text(explained: &Explained, from: &str, to: &str) -> String {
    let explanation = &explained.explanation;
    let Explanation { protocol, port, .. } = explanation;
    let allowed = explanation.allowed;
    let verdict = if allowed { "allowed" } else { "denied" };
    let icmp = protocol.starts_with("ICMP");
    let kind = if icmp { "type " } else { "" };
    let audit = if explained.audited {
        "what is denied here is let through, and told"
    } else {
        ""
    };
    let head = format!("{verdict}: {from} -> {to}, {protocol} {kind}{port}\n");
    head + &pairs(&[
        ("from", labels(&explanation.from)),
        ("to", labels(&explanation.to)),
        ("egress", judgement(&explanation.egress)),
        ("ingress", judgement(&explanation.ingress)),
        ("audit", audit.to_owned()),
    ])
}

/// Labels without the one that only repeats the namespace.
fn labels(all: &Labels) -> String {
    let repeated = format!("{}kubernetes.io/metadata.name", Labels::NAMESPACE_LABELS);
    match list(all.iter().filter(|label| label.key != repeated)) {
        none if none.is_empty() => "no labels".to_owned(),
        told => told,
    }
}

/// What is said of one side, with the rules that all but fit below.
fn judgement(of: &Judgement) -> String {
    let mut text = of.to_string();
    for near in &of.near {
        text.push_str("\n         ");
        text.push_str(&near.to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use datapath_user::policy::{
        ExplainEnd, ExplainQuery, Label, PolicyEngine, PolicySettings, document,
    };

    use super::*;

    /// `web` takes TCP 80 of `front` and of nobody else.
    const WEB: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: front}}}]
      ports: [{port: 80}]
";

    fn explained(from: &str, port: u16, audited: bool) -> String {
        let mut engine = PolicyEngine::new(PolicySettings::default());
        for document in document::read(WEB, Some("web.yaml".as_ref())).documents {
            let _all = engine.upsert(document);
        }
        let end = |app: &str| {
            let labels = [
                format!("app={app}"),
                "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop".to_owned(),
                "io.kubernetes.pod.namespace=shop".to_owned(),
            ];
            let labels = labels.map(|label| label.parse::<Label>().unwrap());
            ExplainEnd::Labels(labels.into_iter().collect())
        };
        let explanation = engine.explain(&ExplainQuery {
            from: end(from),
            to: end("web"),
            protocol: 6,
            port,
        });
        let explained = Explained {
            explanation,
            audited,
        };
        text(&explained, &format!("shop/{from}"), "web-0")
    }

    #[test]
    fn explanations_read_well() {
        insta::assert_snapshot!(explained("front", 80, false), @"
        allowed: shop/front -> web-0, TCP 80
        from     k8s:app=front, k8s:io.kubernetes.pod.namespace=shop
        to       k8s:app=web, k8s:io.kubernetes.pod.namespace=shop
        egress   allowed: no document isolates it in this direction
        ingress  allowed by NetworkPolicy/shop/web spec.ingress[0] (web.yaml:8)
        ");
        insta::assert_snapshot!(explained("front", 81, false), @"
        denied: shop/front -> web-0, TCP 81
        from     k8s:app=front, k8s:io.kubernetes.pod.namespace=shop
        to       k8s:app=web, k8s:io.kubernetes.pod.namespace=shop
        egress   allowed: no document isolates it in this direction
        ingress  denied: no rule allows it, and NetworkPolicy/shop/web isolates it
                 near: NetworkPolicy/shop/web spec.ingress[0] (web.yaml:8) allows this peer, but only 80/TCP
        ");
        assert_eq!(labels(&Labels::default()), "no labels");
        insta::assert_snapshot!(explained("other", 80, true), @"
        denied: shop/other -> web-0, TCP 80
        from     k8s:app=other, k8s:io.kubernetes.pod.namespace=shop
        to       k8s:app=web, k8s:io.kubernetes.pod.namespace=shop
        egress   allowed: no document isolates it in this direction
        ingress  denied: no rule allows it, and NetworkPolicy/shop/web isolates it
                 near: NetworkPolicy/shop/web spec.ingress[0] (web.yaml:8) allows this port, but only with [k8s:app=front, k8s:io.kubernetes.pod.namespace=shop]
        audit    what is denied here is let through, and told
        ");
    }

    #[test]
    fn ports_are_read_strictly() {
        assert_eq!(port("80/TCP").unwrap(), (6, 80));
        assert_eq!(port("53/udp").unwrap(), (17, 53));
        assert_eq!(port("80").unwrap(), (6, 80));
        for (bad, why) in [
            ("http", "\"http\" is no port"),
            ("0/TCP", "\"0\" is no port"),
            ("65536/TCP", "from 1 to 65535"),
            ("80/HTTP", "no protocol \"HTTP\""),
            ("8/ICMP", "--icmp 8"),
        ] {
            let said = port(bad).unwrap_err();
            assert!(said.contains(why), "{bad}: {said}");
        }
    }
}
