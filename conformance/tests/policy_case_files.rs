//! The files of policy cases: that they can be read, agree with a second reading, and are no copies.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of what clippy takes for one"
)]

mod util;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
    path::Path,
};

use datapath_conformance::policy::{
    case::{Case, Expected},
    matrix::refused,
    second::SecondReading,
};
use ipnet::IpNet;
use util::cases::all_cases;

#[test]
fn every_case_has_its_policies_refused_as_it_says() {
    let mut wrong = Vec::new();
    for case in all_cases() {
        let refused: BTreeMap<_, _> = refused(&case)
            .into_iter()
            .map(|one| (one.object, one.message))
            .collect();
        if !refused.keys().eq(&case.rejected) {
            wrong.push((case.name, case.rejected, refused));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_second_reading_of_every_case_expects_what_it_expects() {
    let (mut wrong, mut allowed, mut denied) = (Vec::new(), 0, 0);
    for case in all_cases() {
        let second = SecondReading::new(&case);
        for assertion in &case.assertions {
            let Some(passes) = second.passes(&assertion.cell) else {
                continue;
            };
            let expected = match assertion.expected {
                Expected::Allow => true,
                Expected::Deny => false,
                Expected::Unspecified => continue,
            };
            *(if expected { &mut allowed } else { &mut denied }) += 1;
            if passes != expected {
                let (line, text) = (assertion.line, &assertion.text);
                wrong.push(format!("{}, line {line}: {text}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(allowed > 1000 && denied > 1000, "{allowed} and {denied}");
}

#[test]
fn no_two_cases_differ_in_names_only() {
    let mut shapes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for case in all_cases() {
        shapes.entry(shape(&case)).or_default().push(case.name);
    }
    let alike: Vec<_> = shapes.values().filter(|names| names.len() > 1).collect();
    assert!(alike.is_empty(), "{alike:#?}");
}

#[test]
fn a_shape_is_the_same_under_other_names_only() {
    let case = |words: [&str; 5]| {
        let [namespace, pod, key, address, port] = words;
        let text = format!(
            "apiVersion: conformance/v1\nkind: Case\nmetadata: {{name: c}}\n\
             spec:\n  probes: [{{protocol: TCP, port: 80}}]\n  families: [4]\n  \
             assert: ['{namespace}/{pod} > ext:w TCP/80 = allow']\n\
             ---\napiVersion: conformance/v1\nkind: ExternalHost\nmetadata: {{name: w}}\n\
             spec: {{ips: [203.0.113.5]}}\n\
             ---\napiVersion: v1\nkind: Node\nmetadata: {{name: n1}}\n\
             status: {{addresses: [{{type: InternalIP, address: 192.0.2.11}}]}}\n\
             ---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: {pod}, namespace: {namespace}, labels: {{{key}: web}}}}\n\
             spec: {{nodeName: n1}}\nstatus: {{podIPs: [{{ip: {address}}}]}}\n\
             ---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: p, namespace: {namespace}}}\n\
             spec:\n  # Whom.\n  podSelector: {{matchLabels: {{{key}: web}}}}\n  \
             policyTypes: [Egress]\n  egress: [{{ports: [{{port: {port}}}]}}]\n"
        );
        Case::parse(&text, Path::new("c.yaml")).unwrap()
    };
    let one = shape(&case(["x", "a", "app", "10.0.0.1", "80"]));
    let renamed = shape(&case(["y", "b", "role", "10.0.0.7", "80"]));
    assert_eq!(one, renamed);
    let other = shape(&case(["x", "a", "app", "10.0.0.1", "81"]));
    assert_ne!(one, other);
}

/// What a case is but for its names: each is replaced by a number, in the order in which they come.
/// Prefixes keep their lengths.
fn shape(case: &Case) -> String {
    let mut text = Vec::new();
    let mut names = BTreeSet::new();
    let mut name = |words: &[&str]| {
        let parts = words.iter().flat_map(|word| word.split(SEPARATORS));
        names.extend(parts.map(str::to_owned));
    };
    for probe in &case.probes {
        text.push(format!("{} {}", probe.protocol, probe.port));
    }
    text.push(format!("{:?}", case.families));
    for namespace in case.namespaces.values() {
        name(&[&namespace.name]);
        text.push(format!("{} {:?}", namespace.name, namespace.labels));
    }
    for node in &case.nodes {
        name(&[&node.name]);
        text.push(format!(
            "{} {:?} {:?}",
            node.name, node.labels, node.addresses
        ));
    }
    for pod in &case.pods {
        name(&[&pod.namespace, &pod.name, &pod.service_account]);
        let ports = pod.ports.iter().inspect(|port| name(&[&port.name]));
        let ports: Vec<_> = ports.map(|it| (&it.name, it.port, it.protocol)).collect();
        text.push(format!(
            "{} {} {} {} {} {:?} {ports:?} {:?}",
            pod.namespace,
            pod.name,
            pod.node,
            pod.host_network,
            pod.service_account,
            pod.labels,
            pod.addresses
        ));
    }
    for host in &case.hosts {
        name(&[&host.name]);
        text.push(format!("{} {:?}", host.name, host.addresses));
    }
    let of_pods = case.pods.iter().map(|pod| &pod.labels);
    let of_nodes = case.nodes.iter().map(|node| &node.labels);
    let of_namespaces = case.namespaces.values().map(|it| &it.labels);
    for (key, value) in of_pods.chain(of_nodes).chain(of_namespaces).flatten() {
        name(&[key, value]);
    }
    for policy in &case.policies {
        name(policy.object.rsplit('/').next().as_slice());
        let lines = policy.text.lines().map(str::trim);
        text.extend(lines.filter(|it| !it.starts_with('#')).map(str::to_owned));
    }
    let asserted = case.assertions.iter().map(|it| it.text.clone());
    text.extend(asserted);

    let mut numbers = BTreeMap::new();
    let mut number = |name: &str| {
        let next = numbers.len();
        format!("#{} ", numbers.entry(name.to_owned()).or_insert(next))
    };
    let mut shape = String::new();
    let all = text.join("\n");
    for word in all.split(|c: char| c.is_whitespace() || "\"'[]{},".contains(c)) {
        if let Ok(address) = word.parse::<IpAddr>() {
            shape += &number(&address.to_string());
        } else if let Ok(prefix) = word.parse::<IpNet>() {
            let address = number(&prefix.addr().to_string());
            write!(shape, "{address}/{} ", prefix.prefix_len()).unwrap();
        } else {
            for part in word.split(SEPARATORS).filter(|part| !part.is_empty()) {
                if names.contains(part) {
                    shape += &number(part);
                } else {
                    write!(shape, "{part} ").unwrap();
                }
            }
        }
    }
    shape
}

/// What names are next to.
const SEPARATORS: [char; 3] = [':', '/', '='];
