//! Items in the form that was asked for.

use jiff::tz::TimeZone;

use super::{Style, hubble, line};
use crate::{api::Item, cmd::Output};

/// Writes items one after the other.
pub(super) struct Printer {
    output: Output,
    style: Style,
    zone: TimeZone,
    /// Widths of the columns so far; they only grow.
    widths: [usize; COLUMNS],
    begun: bool,
}

const COLUMNS: usize = 6;
const HEADS: [&str; COLUMNS] = [
    "TIMESTAMP",
    "SOURCE",
    "DESTINATION",
    "TYPE",
    "VERDICT",
    "SUMMARY",
];
/// What most rows fit into, as events that come later cannot be waited for.
const USUAL: [usize; COLUMNS] = [19, 28, 28, 28, 7, 0];
/// Goes between two events.
const RULE: &str = "------------\n";

impl Printer {
    /// Shows times in the machine's time zone.
    pub(super) fn new(output: Output, style: Style) -> Self {
        Self::in_zone(output, style, TimeZone::system())
    }

    fn in_zone(output: Output, style: Style, zone: TimeZone) -> Self {
        Self {
            output,
            style,
            zone,
            widths: USUAL,
            begun: false,
        }
    }

    /// One more item, with the end of its line.
    ///
    /// # Errors
    ///
    /// [`serde_json::Error`], which does not happen.
    pub(super) fn render(&mut self, item: &Item) -> serde_json::Result<String> {
        let text = match self.output {
            Output::Json => hubble::flow(item)?,
            Output::Jsonpb => hubble::response(item)?,
            Output::Table | Output::Compact => line::compact(item, &self.zone, self.style),
            Output::Dict => self.dict(item),
            Output::Tab => self.row(item),
        };
        self.begun = true;
        Ok(text + "\n")
    }

    fn dict(&self, item: &Item) -> String {
        let rule = if self.begun { RULE } else { "" };
        let heads = [
            "  TIMESTAMP",
            "     SOURCE",
            "DESTINATION",
            "       TYPE",
            "    VERDICT",
            "    SUMMARY",
        ];
        let fields = line::fields(item, &self.zone, self.style);
        let lines = heads.iter().zip(fields);
        let lines: Vec<_> = lines
            .map(|(head, field)| format!("{head}: {field}"))
            .collect();
        format!("{rule}{}", lines.join("\n"))
    }

    fn row(&mut self, item: &Item) -> String {
        let fields = line::fields(item, &self.zone, self.style);
        for (width, field) in self.widths.iter_mut().zip(&fields) {
            *width = (*width).max(field.chars().count());
        }
        let row = self.columns(&fields);
        if self.begun {
            return row;
        }
        format!("{}\n{row}", self.columns(&HEADS.map(str::to_owned)))
    }

    fn columns(&self, fields: &[String; COLUMNS]) -> String {
        let padded = fields
            .iter()
            .zip(self.widths)
            .map(|(field, width)| format!("{field:<width$}"));
        let row = padded.collect::<Vec<_>>().join("   ");
        row.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;

    fn render(output: Output) -> String {
        let mut printer = Printer::in_zone(output, Style::default(), TimeZone::UTC);
        let events = sample::events()
            .into_iter()
            .map(|event| Item::Event(Box::new(event)));
        let items = events.chain([sample::untold()]);
        items.map(|item| printer.render(&item).unwrap()).collect()
    }

    #[test]
    fn columns_are_hubbles() {
        insta::assert_snapshot!(render(Output::Tab), @"
        TIMESTAMP             SOURCE                         DESTINATION                    TYPE                           VERDICT   SUMMARY
        Nov 21 06:30:00.123   default/client-1:43210         default/server:80              policy-verdict:L3-L4 INGRESS   ALLOWED   TCP Flags: SYN
        Nov 21 06:30:00.123   default/client-1:43210         default/server:80              policy-verdict:none INGRESS    DENIED    TCP Flags: SYN
        Nov 21 06:30:00.123   default/client-1:43210         default/server:80              Policy denied                  DROPPED   TCP Flags: SYN
        Nov 21 06:30:00.123   default/client-1:43210         default/server:80              policy-verdict:none EGRESS     AUDITED   TCP Flags: SYN
        Nov 21 06:30:00.123   default/client-1               2001:db8::7                    policy-verdict:L3-Proto EGRESS   DENIED    ICMPv6 EchoRequest
                                                                                            EVENTS LOST                                37 events suppressed, too many in a second: Multicast
        ");
    }

    #[test]
    fn fields_are_hubbles() {
        insta::assert_snapshot!(render(Output::Dict), @"
          TIMESTAMP: Nov 21 06:30:00.123
             SOURCE: default/client-1:43210
        DESTINATION: default/server:80
               TYPE: policy-verdict:L3-L4 INGRESS
            VERDICT: ALLOWED
            SUMMARY: TCP Flags: SYN
        ------------
          TIMESTAMP: Nov 21 06:30:00.123
             SOURCE: default/client-1:43210
        DESTINATION: default/server:80
               TYPE: policy-verdict:none INGRESS
            VERDICT: DENIED
            SUMMARY: TCP Flags: SYN
        ------------
          TIMESTAMP: Nov 21 06:30:00.123
             SOURCE: default/client-1:43210
        DESTINATION: default/server:80
               TYPE: Policy denied
            VERDICT: DROPPED
            SUMMARY: TCP Flags: SYN
        ------------
          TIMESTAMP: Nov 21 06:30:00.123
             SOURCE: default/client-1:43210
        DESTINATION: default/server:80
               TYPE: policy-verdict:none EGRESS
            VERDICT: AUDITED
            SUMMARY: TCP Flags: SYN
        ------------
          TIMESTAMP: Nov 21 06:30:00.123
             SOURCE: default/client-1
        DESTINATION: 2001:db8::7
               TYPE: policy-verdict:L3-Proto EGRESS
            VERDICT: DENIED
            SUMMARY: ICMPv6 EchoRequest
        ------------
          TIMESTAMP: 
             SOURCE: 
        DESTINATION: 
               TYPE: EVENTS LOST
            VERDICT: 
            SUMMARY: 37 events suppressed, too many in a second: Multicast
        ");
    }

    #[test]
    fn lines_are_hubbles() {
        assert_eq!(render(Output::Table), render(Output::Compact));
        insta::assert_snapshot!(render(Output::Compact), @"
        Nov 21 06:30:00.123: default/client-1:43210 (ID:1234) -> default/server:80 (ID:5678) policy-verdict:L3-L4 INGRESS ALLOWED (TCP Flags: SYN)
        Nov 21 06:30:00.123: default/client-1:43210 (ID:1234) <> default/server:80 (ID:5678) policy-verdict:none INGRESS DENIED (TCP Flags: SYN)
        Nov 21 06:30:00.123: default/client-1:43210 (ID:1234) <> default/server:80 (ID:5678) Policy denied DROPPED (TCP Flags: SYN)
        Nov 21 06:30:00.123: default/client-1:43210 (ID:1234) -> default/server:80 (ID:5678) policy-verdict:none EGRESS AUDITED (TCP Flags: SYN)
        Nov 21 06:30:00.123: default/client-1 (ID:1234) <> 2001:db8::7 (world-ipv6) policy-verdict:L3-Proto EGRESS DENIED (ICMPv6 EchoRequest)
        37 events suppressed, too many in a second: Multicast
        ");
    }

    #[test]
    fn json_has_hubbles_names() {
        insta::assert_snapshot!(render(Output::Json), @r#"
        {"time":"2026-11-21T06:30:00.123456789Z","verdict":"FORWARDED","ethernet":{"source":"02:11:22:33:44:55","destination":"02:11:22:33:44:55"},"IP":{"source":"10.244.1.2","destination":"10.244.1.3","ipVersion":"IPv4"},"l4":{"TCP":{"source_port":43210,"destination_port":80,"flags":{"SYN":true}}},"source":{"identity":1234,"namespace":"default","labels":["k8s:io.kubernetes.pod.namespace=default"],"pod_name":"client-1"},"destination":{"identity":5678,"namespace":"default","labels":["k8s:io.kubernetes.pod.namespace=default"],"pod_name":"server"},"Type":"L3_L4","node_name":"n1","event_type":{"type":5},"traffic_direction":"INGRESS","policy_match_type":2,"is_reply":false,"interface":{"index":7,"name":"dp0123456789a"},"ingress_allowed_by":[{"name":"web","namespace":"shop","labels":["k8s:io.cilium.k8s.policy.derived-from=NetworkPolicy","k8s:io.cilium.k8s.policy.name=web","k8s:io.cilium.k8s.policy.namespace=shop","datapath:rule=spec.ingress[0]"],"kind":"NetworkPolicy"}],"Summary":"TCP Flags: SYN"}
        {"time":"2026-11-21T06:30:00.123456789Z","verdict":"DROPPED","drop_reason":133,"ethernet":{"source":"02:11:22:33:44:55","destination":"02:11:22:33:44:55"},"IP":{"source":"10.244.1.2","destination":"10.244.1.3","ipVersion":"IPv4"},"l4":{"TCP":{"source_port":43210,"destination_port":80,"flags":{"SYN":true}}},"source":{"identity":1234,"namespace":"default","labels":["k8s:io.kubernetes.pod.namespace=default"],"pod_name":"client-1"},"destination":{"identity":5678,"namespace":"default","labels":["k8s:io.kubernetes.pod.namespace=default"],"pod_name":"server"},"Type":"L3_L4","node_name":"n1","event_type":{"type":5},"traffic_direction":"INGRESS","drop_reason_desc":"POLICY_DENIED","interface":{"index":7,"name":"dp0123456789a"},"Summary":"TCP Flags: SYN"}
        {"time":"2026-11-21T06:30:00.123456789Z","verdict":"DROPPED","drop_reason":133,"ethernet":{"source":"02:11:22:33:44:55","destination":"02:11:22:33:44:55"},"IP":{"source":"10.244.1.2","destination":"10.244.1.3","ipVersion":"IPv4"},"l4":{"TCP":{"source_port":43210,"destination_port":80,"flags":{"SYN":true}}},"source":{"identity":1234,"namespace":"default","labels":["k8s:io.kubernetes.pod.namespace=default"],"pod_name":"client-1"},"destination":{"identity":5678,"namespace":"default","labels":["k8s:io.kubernetes.pod.namespace=default"],"pod_name":"server"},"Type":"L3_L4","node_name":"n1","event_type":{"type":1,"sub_type":133},"traffic_direction":"INGRESS","drop_reason_desc":"POLICY_DENIED","interface":{"index":7,"name":"dp0123456789a"},"Summary":"TCP Flags: SYN"}
        {"time":"2026-11-21T06:30:00.123456789Z","verdict":"AUDIT","ethernet":{"source":"02:11:22:33:44:55","destination":"02:11:22:33:44:55"},"IP":{"source":"10.244.1.2","destination":"10.244.1.3","ipVersion":"IPv4"},"l4":{"TCP":{"source_port":43210,"destination_port":80,"flags":{"SYN":true}}},"source":{"identity":1234,"namespace":"default","labels":["k8s:io.kubernetes.pod.namespace=default"],"pod_name":"client-1"},"destination":{"identity":5678,"namespace":"default","labels":["k8s:io.kubernetes.pod.namespace=default"],"pod_name":"server"},"Type":"L3_L4","node_name":"n1","event_type":{"type":5},"traffic_direction":"EGRESS","is_reply":false,"interface":{"index":7,"name":"dp0123456789a"},"Summary":"TCP Flags: SYN"}
        {"time":"2026-11-21T06:30:00.123456789Z","verdict":"DROPPED","drop_reason":181,"ethernet":{"source":"02:11:22:33:44:55","destination":"02:00:00:00:00:01"},"IP":{"source":"fd00:10:244:1::2","destination":"2001:db8::7","ipVersion":"IPv6"},"l4":{"ICMPv6":{"type":128}},"source":{"identity":1234,"namespace":"default","labels":["k8s:io.kubernetes.pod.namespace=default"],"pod_name":"client-1"},"destination":{"identity":10,"labels":["reserved:world-ipv6"]},"Type":"L3_L4","node_name":"n1","event_type":{"type":5},"traffic_direction":"EGRESS","policy_match_type":5,"drop_reason_desc":"POLICY_DENY","interface":{"index":7,"name":"dp0123456789a"},"egress_denied_by":[{"name":"web","namespace":"shop","labels":["k8s:io.cilium.k8s.policy.derived-from=CiliumNetworkPolicy","k8s:io.cilium.k8s.policy.name=web","k8s:io.cilium.k8s.policy.namespace=shop","datapath:rule=spec.egressDeny[0]"],"kind":"CiliumNetworkPolicy"}],"Summary":"ICMPv6 EchoRequest"}
        {"source":"UNKNOWN_LOST_EVENT_SOURCE","num_events_lost":"37","reason":"Multicast"}
        "#);
    }

    #[test]
    fn a_response_wraps_a_flow() {
        let flows = render(Output::Json);
        let responses = render(Output::Jsonpb);
        for (flow, response) in flows.lines().zip(responses.lines()) {
            let read = |text| serde_json::from_str::<serde_json::Value>(text).unwrap();
            let (flow, response) = (read(flow), read(response));
            if response.get("flow").is_some() {
                assert_eq!(response["flow"], flow);
                assert_eq!(response["time"], flow["time"]);
                assert_eq!(response["node_name"], flow["node_name"]);
            } else {
                assert_eq!(response["lost_events"], flow);
            }
        }
        assert_eq!(flows.lines().count(), responses.lines().count());
    }
}
