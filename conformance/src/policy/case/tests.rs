use std::path::Path;

use super::*;

pub(in crate::policy) const CASE: &str = "\
apiVersion: conformance/v1
kind: Case
metadata: {name: c}
spec:
  probes: [{protocol: TCP, port: 80}, {protocol: ICMPv6, port: 128}]
  families: [4, 6]
  assert: [x/a > ext:far TCP/80 = allow]
---
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: x}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.244.1.10}]}
---
apiVersion: conformance/v1
kind: ExternalHost
metadata: {name: far}
spec: {ips: [198.51.100.7]}
---
apiVersion: networking.k8s.io/v1beta1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
PodSelector: {}
";

fn parse(text: &str) -> Result<Case> {
    Case::parse(text, Path::new("c.yaml"))
}

#[test]
fn a_case_is_what_its_file_says() {
    let case = parse(CASE).unwrap();
    assert_eq!(case.policies[0].object, "NetworkPolicy/x/p");
    assert_eq!(case.policies[0].line, 25);
    assert_eq!(case.assertions[0].line, 7);
    let cells: Vec<_> = case.cells().iter().map(ToString::to_string).collect();
    assert_eq!(cells.len(), 5 * 3, "{cells:?}");
    assert!(cells.contains(&"ext:far > pod:x/a ICMPv6/128 IPv6".to_owned()));
    assert!(!cells.iter().any(|cell| cell.contains("ext:far > node:n1")));
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let wrong = [
        ("kind: Case", "kind: Caze", 1, "Caze"),
        ("  families: [4, 6]", "  families: [5]", 6, "family 5"),
        ("  families: [4, 6]", "  family: [4]", 6, "family"),
        ("TCP, port: 80}", "tcp, port: 80}", 5, "tcp"),
        ("x/a > ext:far", "x/b > ext:far", 7, "pod:x/b"),
        ("TCP/80 =", "UDP/80 =", 7, "none of the case's probes"),
        ("nodeName: n1", "nodeName: n2", 14, "\"n2\""),
        ("10.244.1.10", "10.244.1.300", 14, "10.244.1.300"),
        ("10.244.1.10", "192.0.2.11", 9, "the address of pod:x/a"),
        ("{ips: [198.51.100.7]}", "{ip: 198.51.100.7}", 23, "ip"),
        ("kind: NetworkPolicy", "kind: Ingress", 25, "Ingress"),
    ];
    for (from, to, line, part) in wrong {
        assert!(CASE.contains(from), "{from}");
        let said = parse(&CASE.replacen(from, to, 1)).unwrap_err().to_string();
        let place = format!("c.yaml:{line}: ");
        assert!(said.starts_with(&place), "{to}: {said}");
        assert!(said.contains(part), "{to}: {said}");
    }
}

#[test]
fn a_cell_is_not_expected_to_be_two_things() {
    let twice = "[x/a > ext:far TCP/80 = allow, x/a > ext:far TCP/80 = deny]";
    let text = CASE.replacen("[x/a > ext:far TCP/80 = allow]", twice, 1);
    let said = parse(&text).unwrap_err().to_string();
    assert!(said.contains("says otherwise"), "{said}");
}
