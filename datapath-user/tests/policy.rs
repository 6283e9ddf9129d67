//! Policy in the kernel: real packets, allowed and denied. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, outside of what clippy takes for one"
)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use common::{Lab, Namespace, OUTSIDE, here, ip, of, ping, pod};
use datapath_user::policy::{Document, ExplainQuery, document};
use datapath_user::{Config, Datapath, EndpointSpec, PodStart, PolicyConfig};

const SHORT: Duration = Duration::from_millis(700);

/// A pod of the namespace `shop` with the label `app`.
fn labelled(id: &str, number: u8) -> (Namespace, EndpointSpec) {
    let (namespace, spec) = pod(id, number);
    let spec = EndpointSpec {
        identity: None,
        namespace: Some("shop".into()),
        name: Some(id.into()),
        labels: [("app".to_owned(), id.to_owned())].into(),
        ..spec
    };
    (namespace, spec)
}

fn documents(text: &str) -> Vec<Document> {
    let reading = document::read(text, None);
    assert!(reading.refused.is_empty(), "{:?}", reading.refused);
    reading.documents
}

/// `web` takes TCP 80 of `front` and of nobody else.
const WEB: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
    - from: [{podSelector: {matchLabels: {app: front}}}]
      ports: [{port: 80}]
";

/// Whether a connection from one namespace to a port of another's address comes about.
fn connects(from: &Namespace, to: &Namespace, address: IpAddr, port: u16) -> bool {
    let at = SocketAddr::new(address, port);
    let server = to.run(|| TcpListener::bind(at).unwrap());
    let connected = from.run(|| TcpStream::connect_timeout(&at, SHORT));
    drop(server);
    connected.is_ok()
}

/// A connection that stays.
struct Held(TcpStream, TcpStream);

impl Held {
    fn open(from: &Namespace, to: &Namespace, address: IpAddr, port: u16) -> Self {
        let at = SocketAddr::new(address, port);
        let server = to.run(|| TcpListener::bind(at).unwrap());
        let near = from.run(|| TcpStream::connect_timeout(&at, common::PATIENCE).unwrap());
        let far = server.accept().unwrap().0;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(SHORT)).unwrap();
        }
        Self(near, far)
    }

    /// Whether a byte gets to the other side and back.
    fn goes(&mut self) -> bool {
        let mut byte = [0];
        self.0.write_all(b"x").is_ok()
            && self.1.read_exact(&mut byte).is_ok()
            && self.1.write_all(b"y").is_ok()
            && self.0.read_exact(&mut byte).is_ok()
    }
}

/// What is said of flows to `web` on port 80, whoever they are named by.
fn explained_as_it_is(datapath: &Datapath, web: &EndpointSpec) {
    let address = web.addresses[0].to_string();
    let explained = |from: &str, to: &str| {
        let [from, to] = [from, to].map(|end| datapath.find_end(end).unwrap());
        let (protocol, port) = (6, 80);
        datapath.explain(&ExplainQuery {
            from,
            to,
            protocol,
            port,
        })
    };
    for (from, to, allowed) in [
        ("shop/front", "shop/web", true),
        ("front", &address, true),
        ("shop/other", "web", false),
        ("reserved:world", "web", false),
        (OUTSIDE[0], &address, false),
        ("host", "web", true),
        (
            "k8s:app=front,io.kubernetes.pod.namespace=shop",
            "web",
            true,
        ),
    ] {
        let said = explained(from, to).unwrap();
        assert_eq!(said.allowed, allowed, "{from} -> {to}: {said}");
    }
    for (unknown, remedy) in [
        ("nobody", "`dpctl endpoint list`"),
        ("shop/nobody", "cluster file"),
        ("10.244.1.99", "pod of this node"),
        ("999999", "`dpctl identity list`"),
        ("reserved:nobody", "reserved:host"),
        ("=web", "key=value"),
    ] {
        let said = datapath.find_end(unknown).unwrap_err().to_string();
        assert!(said.contains(remedy), "{said}");
    }
    let view = &datapath.policies()[0];
    assert_eq!((view.endpoints, view.node), (1, false));
}

#[test]
fn a_pod_takes_what_a_rule_allows_and_nothing_else() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let [(web, web_spec), (front, front_spec), (other, other_spec)] =
            [("web", 5), ("front", 6), ("other", 7)].map(|(id, number)| labelled(id, number));
        let views =
            [&web_spec, &front_spec, &other_spec].map(|spec| datapath.add_endpoint(spec).unwrap());
        assert!(
            views
                .iter()
                .all(|view| view.identity >= 256 && view.identity_allocated)
        );
        let mut held = Held::open(&front, &web, web_spec.addresses[0], 80);
        let mut denied = Held::open(&other, &web, web_spec.addresses[1], 80);
        let report = datapath.set_policies(documents(WEB), Vec::new()).unwrap();
        assert_eq!((report.documents, report.changed), (1, 1));
        assert!(held.goes(), "what is allowed goes on");
        assert!(!denied.goes(), "what is not is cut");
        for address in web_spec.addresses.clone() {
            assert!(connects(&front, &web, address, 80));
            assert!(!connects(&front, &web, address, 81));
            assert!(!connects(&other, &web, address, 80));
            assert!(connects(&web, &other, address_of(&other_spec, address), 81));
            ping(here, address).unwrap();
        }
        assert!(!connects(&lab.outside, &web, web_spec.addresses[0], 80));
        explained_as_it_is(&datapath, &web_spec);
        let status = datapath.status().unwrap().policy;
        assert!(
            status.known && status.rule_sets == 1 && status.documents == 1,
            "{status:?}"
        );
        let judged = datapath.endpoints();
        let of = |id: &str| judged.iter().find(|view| view.id == id).unwrap().policy;
        assert!(of("web").ingress && !of("web").egress && !of("front").ingress);

        // In audit everything is let through, and only told.
        datapath.set_audit(Some("web"), true).unwrap();
        assert!(connects(&other, &web, web_spec.addresses[0], 80));
        datapath.set_audit(Some("web"), false).unwrap();
        assert!(!connects(&other, &web, web_spec.addresses[0], 80));

        // Who has other labels is somebody else.
        let relabelled = EndpointSpec {
            labels: front_spec.labels.clone(),
            ..other_spec.clone()
        };
        let view = datapath.set_endpoint_labels("other", &relabelled).unwrap();
        assert_eq!(view.identity, views[1].identity);
        assert!(connects(&other, &web, web_spec.addresses[0], 80));

        datapath.set_policies(Vec::new(), Vec::new()).unwrap();
        assert!(connects(&front, &web, web_spec.addresses[0], 81));
        datapath.close().unwrap();
    });
}

fn address_of(spec: &EndpointSpec, like: IpAddr) -> IpAddr {
    let mut addresses = spec.addresses.iter();
    *addresses
        .find(|address| address.is_ipv4() == like.is_ipv4())
        .unwrap()
}

#[test]
fn prefixes_are_told_apart_outside() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let (web, spec) = labelled("web", 5);
        datapath.add_endpoint(&spec).unwrap();
        let [v4, v6] = OUTSIDE.map(ip);
        let egress = |blocks: &str| {
            documents(&format!(
                "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: out, namespace: shop}}
spec:
  podSelector: {{}}
  policyTypes: [Egress]
  egress: [{{to: [{blocks}]}}]
"
            ))
        };
        let block = "{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: '2001:db8:2::/64'}}";
        datapath.set_policies(egress(block), Vec::new()).unwrap();
        let mut held = Held::open(&web, &lab.outside, v4, 80);
        assert!(connects(&web, &lab.outside, v6, 80));
        let prefixes = |datapath: &Datapath| {
            let all = datapath.identities().into_iter();
            all.filter_map(|view| view.prefix)
                .map(|prefix| prefix.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(prefixes(&datapath), ["192.0.2.0/24", "2001:db8:2::/64"]);
        // The same allowed by another prefix: what is allowed before and after is not cut.
        let wider = "{ipBlock: {cidr: 192.0.0.0/16}}, {ipBlock: {cidr: '2001:db8:2::/64', except: ['2001:db8:2::100/128']}}";
        datapath.set_policies(egress(wider), Vec::new()).unwrap();
        assert!(held.goes());
        assert!(!connects(&web, &lab.outside, v6, 80), "it is an exception");
        assert!(connects(&web, &lab.outside, v4, 81));
        let none = "{ipBlock: {cidr: 203.0.113.0/24}}";
        datapath.set_policies(egress(none), Vec::new()).unwrap();
        assert!(!held.goes());
        assert!(!connects(&web, &lab.outside, v4, 80));
        datapath.set_policies(Vec::new(), Vec::new()).unwrap();
        assert!(prefixes(&datapath).is_empty());
        assert!(connects(&web, &lab.outside, v4, 82));
        datapath.close().unwrap();
    });
}

#[test]
fn endpoints_of_equal_rules_share_them_and_old_ones_go() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let pods: Vec<_> = (0..4).map(|n| labelled("web", 5 + n)).collect();
        let pods: Vec<_> = (0..4)
            .zip(pods)
            .map(|(n, (namespace, spec))| {
                let id = format!("web-{n}");
                let name = Some(id.clone());
                (namespace, EndpointSpec { id, name, ..spec })
            })
            .collect();
        let identities: Vec<u32> = pods
            .iter()
            .map(|(_, spec)| datapath.add_endpoint(spec).unwrap().identity)
            .collect();
        assert!(identities.iter().all(|identity| *identity == identities[0]));
        let entries = || datapath.status().unwrap().policy;
        for round in 0..5 {
            let text = WEB.replace("port: 80", &format!("port: {}", 80 + round));
            datapath.set_policies(documents(&text), Vec::new()).unwrap();
            assert_eq!(entries().rule_sets, 1, "{:?}", entries());
        }
        std::thread::sleep(Duration::from_millis(1100));
        datapath.sweep().unwrap();
        let now = entries();
        assert_eq!(
            (now.classes, now.port_entries, now.updates),
            (1, 1, 5),
            "{now:?}"
        );
        let (one, two) = (&pods[0], &pods[1]);
        assert!(!connects(&one.0, &two.0, two.1.addresses[0], 84));
        for (_, spec) in &pods {
            datapath.remove_endpoint(&spec.id).unwrap();
        }
        std::thread::sleep(Duration::from_millis(1100));
        datapath.sweep().unwrap();
        let none = entries();
        assert_eq!(
            (none.rule_sets, none.peer_entries, none.port_entries),
            (0, 0, 0)
        );
        assert!(datapath.identities().is_empty());
        datapath.close().unwrap();
    });
}

#[test]
fn a_restart_changes_nothing_until_the_documents_are_known() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let [(web, web_spec), (front, front_spec), (other, other_spec)] =
            [("web", 5), ("front", 6), ("other", 7)].map(|(id, number)| labelled(id, number));
        let before = [&web_spec, &front_spec, &other_spec]
            .map(|spec| datapath.add_endpoint(spec).unwrap().identity);
        datapath.set_policies(documents(WEB), Vec::new()).unwrap();
        let mut held = Held::open(&front, &web, web_spec.addresses[0], 80);
        let judge = |held: &mut Held| {
            assert!(held.goes(), "allowed, and goes on");
            assert!(
                !connects(&other, &web, web_spec.addresses[0], 80),
                "denied, and stays so"
            );
            assert!(connects(&front, &web, web_spec.addresses[1], 80));
        };
        datapath.leave();
        judge(&mut held);
        let datapath = Datapath::open(lab.config()).unwrap();
        judge(&mut held);
        let views = datapath.endpoints();
        let found = |spec: &EndpointSpec| views.iter().find(|view| view.id == spec.id).unwrap();
        for (spec, identity) in [&web_spec, &front_spec, &other_spec]
            .into_iter()
            .zip(before)
        {
            let view = found(spec);
            assert_eq!((view.spec(), view.identity), (spec.clone(), identity));
        }
        assert!(found(&web_spec).policy.ingress);
        assert!(!datapath.status().unwrap().policy.known);
        let early = datapath.upsert_policies(documents(WEB)).unwrap_err();
        assert!(early.to_string().contains("set_policies"), "{early}");
        // Whose rules cannot be known yet is closed.
        let (late, late_spec) = labelled("late", 8);
        datapath.add_endpoint(&late_spec).unwrap();
        assert!(!connects(&front, &late, late_spec.addresses[0], 80));
        datapath.set_policies(documents(WEB), Vec::new()).unwrap();
        judge(&mut held);
        assert!(connects(&front, &late, late_spec.addresses[0], 80));
        std::thread::sleep(Duration::from_millis(1100));
        datapath.sweep().unwrap();
        let status = datapath.status().unwrap().policy;
        assert!(status.known && status.rule_sets == 1, "{status:?}");
        judge(&mut held);
        datapath.close().unwrap();
    });
}

#[test]
fn a_refused_document_opens_nobody() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let [(web, web_spec), (front, front_spec)] =
            [("web", 5), ("front", 6)].map(|(id, number)| labelled(id, number));
        for spec in [&web_spec, &front_spec] {
            datapath.add_endpoint(spec).unwrap();
        }
        let bad = WEB.replace("ports:", "port:");
        let reading = document::read(&bad, None);
        assert_eq!((reading.documents.len(), reading.refused.len()), (0, 1));
        let report = datapath
            .set_policies(Vec::new(), reading.refused.clone())
            .unwrap();
        assert_eq!((report.refused, report.closed), (1, 1));
        assert!(
            !connects(&front, &web, web_spec.addresses[0], 80),
            "closed until it is mended"
        );
        assert!(datapath.policies()[0].closed);
        datapath.set_policies(documents(WEB), Vec::new()).unwrap();
        assert!(connects(&front, &web, web_spec.addresses[0], 80));
        // From here on there is a last good one.
        let report = datapath.set_policies(Vec::new(), reading.refused).unwrap();
        assert_eq!((report.documents, report.refused, report.closed), (1, 1, 0));
        assert!(connects(&front, &web, web_spec.addresses[0], 80));
        assert!(!connects(&front, &web, web_spec.addresses[0], 81));
        datapath.set_policies(Vec::new(), Vec::new()).unwrap();
        assert!(connects(&front, &web, web_spec.addresses[0], 81));
        datapath.close().unwrap();
    });
}

#[test]
fn the_first_packet_of_a_pod_is_judged_unless_the_start_is_standard() {
    Lab::run(|lab| {
        let start = |start| Config {
            policy: PolicyConfig {
                start,
                ..PolicyConfig::default()
            },
            ..lab.config()
        };
        let datapath = Datapath::open(start(PodStart::Strict)).unwrap();
        let deny = WEB.replace(
            "- from: [{podSelector: {matchLabels: {app: front}}}]\n      ports: [{port: 80}]",
            "[]",
        );
        let deny = deny.replace("ingress:\n    []", "ingress: []");
        datapath.set_policies(documents(&deny), Vec::new()).unwrap();
        let (web, spec) = labelled("web", 5);
        let view = datapath.add_endpoint(&spec).unwrap();
        assert!(view.policy.ingress, "{view:?}");
        assert_eq!(view.policy.window_us, None);
        assert!(!connects(&lab.outside, &web, spec.addresses[0], 80));
        datapath.close().unwrap();

        let datapath = Datapath::open(start(PodStart::Standard)).unwrap();
        datapath.set_policies(documents(&deny), Vec::new()).unwrap();
        let view = datapath
            .add_endpoint(&EndpointSpec {
                id: "web-1".into(),
                ..spec
            })
            .unwrap();
        assert!(
            view.policy.ingress && view.policy.window_us.is_some(),
            "{view:?}"
        );
        datapath.close().unwrap();
        drop(web);
    });
}

#[test]
fn the_node_is_judged_by_what_selects_nodes_where_that_is_wanted() {
    Lab::run(|lab| {
        let config = |host_firewall| Config {
            policy: PolicyConfig {
                host_firewall,
                ..PolicyConfig::default()
            },
            ..lab.config()
        };
        let text = "
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: node}
spec:
  nodeSelector: {}
  ingress: [{fromEntities: [cluster]}]
";
        for firewall in [false, true] {
            let datapath = Datapath::open(config(firewall)).unwrap();
            datapath.set_policies(documents(text), Vec::new()).unwrap();
            let outside = ping(of(&lab.outside), ip(common::NODE[0]));
            assert_eq!(outside.is_err(), firewall, "{outside:?}");
            datapath.close().unwrap();
        }
    });
}
