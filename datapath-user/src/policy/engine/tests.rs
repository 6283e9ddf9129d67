//! What the engine decides where Kubernetes and Cilium leave a choice, and what it says of it.

use std::sync::Arc;

use datapath_kern::abi::endpoint::identity::{HOST, REMOTE_NODE, WORLD_IPV4};
use datapath_kern::abi::flow::verdict::{ALLOW, DENY};
use datapath_kern::abi::policy::{PortVerdict, matched};

use super::*;
use crate::policy::{
    DocumentKind, ExplainEnd, ExplainQuery, HostToLocal, OwnNode, Peer, Peers, Place, PolicyMode,
    PortProtocol, PortRule, PortValue, Ports, Reason, Rule, RuleVerdict, Section, Selector, Spec,
    Subject, source,
};

const WEB: u32 = 300;
const DB: u32 = 301;
const TCP: u8 = 6;

fn labels(app: &str) -> Labels {
    Labels::default()
        .with(source::K8S, Labels::NAMESPACE, "x")
        .with(source::K8S, "app", app)
}

fn app(app: &str) -> Selector {
    Selector::default().equal(source::K8S, "app", app)
}

fn engine(settings: PolicySettings) -> PolicyEngine {
    let mut engine = PolicyEngine::new(settings);
    let _ = engine.set_identity(WEB, labels("web"));
    let db = labels("db").with(source::PORT, "sql", "5432/TCP,5433/UDP");
    let _ = engine.set_identity(DB, db);
    engine
}

fn rule(verdict: RuleVerdict, peers: Peers, ports: Ports) -> Rule {
    Rule {
        path: format!("spec.rule.{verdict:?}"),
        line: 7,
        verdict,
        peers,
        ports,
    }
}

fn port(port: PortValue) -> Ports {
    Ports::Of(vec![PortRule::Port {
        protocol: Some(PortProtocol::Tcp),
        port,
    }])
}

fn document(kind: DocumentKind, name: &str, subject: Subject) -> Document {
    Document {
        id: DocumentId {
            kind,
            namespace: Some("x".into()),
            name: name.into(),
        },
        file: Some("x.yaml".into()),
        specs: vec![Spec {
            subject,
            ingress: Section::default(),
            egress: Section::default(),
        }],
    }
}

fn ingress(name: &str, subject: &str, rules: Vec<Rule>) -> Document {
    let kind = DocumentKind::NetworkPolicy;
    let mut document = document(kind, name, Subject::Endpoints(app(subject)));
    document.specs[0].ingress = Section {
        isolates: true,
        rules,
    };
    document
}

fn egress(kind: DocumentKind, subject: &str, rules: Vec<Rule>) -> Document {
    let mut document = document(kind, "egress", Subject::Endpoints(app(subject)));
    document.specs[0].egress = Section {
        isolates: true,
        rules,
    };
    document
}

/// What is found for a peer and a port; none: nothing.
fn found(
    engine: &mut PolicyEngine,
    subject: SubjectKey,
    ingress: bool,
    peer: u32,
    port: u16,
) -> Option<PortVerdict> {
    let rules = engine.rules_for(&subject);
    let rules = if ingress {
        &rules.ingress
    } else {
        &rules.egress
    };
    let rules = rules.as_ref().expect("the direction needs a rule");
    rules.class_of(peer)?.verdict(TCP, port)
}

#[test]
fn the_node_is_let_in_and_reached_as_the_settings_say() {
    let subject = SubjectKey::Identity(WEB);
    for (own_node, host_to_local) in [
        (OwnNode::Allow, HostToLocal::Allow),
        (OwnNode::Policy, HostToLocal::Policy),
    ] {
        let mut engine = engine(PolicySettings {
            own_node,
            host_to_local,
            ..PolicySettings::default()
        });
        let allowed = own_node == OwnNode::Allow;
        let _ = engine.upsert(ingress("closed", "web", Vec::new()));
        let _ = engine.upsert(egress(DocumentKind::NetworkPolicy, "web", Vec::new()));
        for way in [true, false] {
            let verdict = found(&mut engine, subject, way, HOST, 80);
            assert_eq!(verdict.is_some(), allowed);
            assert!(verdict.is_none_or(|v| v.rule_id == 0 && v.verdict == ALLOW));
            assert_eq!(found(&mut engine, subject, way, REMOTE_NODE, 80), None);
        }
        // Cilium's kinds alone do not open the way to the node.
        let _ = engine.remove(&egress(DocumentKind::NetworkPolicy, "web", Vec::new()).id);
        let _ = engine.upsert(egress(DocumentKind::CiliumNetworkPolicy, "web", Vec::new()));
        assert_eq!(found(&mut engine, subject, false, HOST, 80), None);
    }
}

#[test]
fn modes_are_about_pods_and_not_about_the_node() {
    let always = PolicySettings {
        mode: PolicyMode::Always,
        ..PolicySettings::default()
    };
    let rules = engine(always).rules_for(&SubjectKey::Identity(WEB));
    assert!(rules.ingress.is_some() && rules.egress.is_some());
    let none = RuleSet::default();
    assert_eq!(*engine(always).rules_for(&SubjectKey::Node), none);
    assert_eq!(
        *engine(always).rules_for(&SubjectKey::Identity(WORLD_IPV4)),
        none
    );
    let mut never = engine(PolicySettings {
        mode: PolicyMode::Never,
        ..PolicySettings::default()
    });
    let _ = never.upsert(ingress("closed", "web", Vec::new()));
    assert_eq!(*never.rules_for(&SubjectKey::Identity(WEB)), none);
    let kind = DocumentKind::CiliumClusterwideNetworkPolicy;
    let mut nodes = document(kind, "nodes", Subject::Nodes(Selector::default()));
    nodes.specs[0].ingress.isolates = true;
    assert!(never.upsert(nodes).contains(SubjectKey::Node));
    assert!(never.rules_for(&SubjectKey::Node).ingress.is_some());
}

#[test]
fn deny_goes_before_allow_and_opens_the_rest_where_nothing_isolates() {
    let mut engine = engine(PolicySettings::default());
    let kind = DocumentKind::CiliumNetworkPolicy;
    let mut denies = document(kind, "denies", Subject::Endpoints(app("web")));
    denies.specs[0].ingress.rules = vec![rule(
        RuleVerdict::Deny,
        Peers::Of(vec![Peer::Labelled(app("db"))]),
        port(PortValue::Range(80..=89)),
    )];
    let _ = engine.upsert(denies);
    let subject = SubjectKey::Identity(WEB);
    let verdict = found(&mut engine, subject, true, DB, 85).unwrap();
    assert_eq!((verdict.verdict, verdict.matched), (DENY, matched::L3_L4));
    let rule = engine.rule(verdict.rule_id).unwrap().to_string();
    assert_eq!(
        rule,
        "CiliumNetworkPolicy/x/denies spec.rule.Deny (x.yaml:7)"
    );
    let open = found(&mut engine, subject, true, DB, 90).unwrap();
    assert_eq!((open.verdict, open.rule_id), (ALLOW, 0));
    assert!(engine.rules_for(&subject).egress.is_none());
}

#[test]
fn what_a_rule_names_is_told() {
    let peers = [
        Peers::Any,
        Peers::Of(vec![Peer::Entity(Entity::All)]),
        Peers::Of(vec![Peer::Labelled(app("db"))]),
    ];
    let ports = [
        Ports::Any,
        port(PortValue::All),
        port(PortValue::Range(80..=80)),
    ];
    let wanted = [
        [matched::ALL, matched::PROTO_ONLY, matched::L4_ONLY],
        [matched::ALL, matched::PROTO_ONLY, matched::L4_ONLY],
        [matched::L3_ONLY, matched::L3_PROTO, matched::L3_L4],
    ];
    for (peers, wanted) in peers.iter().zip(wanted) {
        for (ports, wanted) in ports.iter().zip(wanted) {
            let mut engine = engine(PolicySettings::default());
            let rules = vec![rule(RuleVerdict::Allow, peers.clone(), ports.clone())];
            let _ = engine.upsert(ingress("one", "web", rules));
            let verdict = found(&mut engine, SubjectKey::Identity(WEB), true, DB, 80);
            assert_eq!(verdict.unwrap().matched, wanted);
        }
    }
}

#[test]
fn named_ports_are_those_of_the_receiver_and_follow_it() {
    let mut engine = engine(PolicySettings::default());
    let kind = DocumentKind::CiliumNetworkPolicy;
    let sql = |protocol| {
        let port = PortValue::Named("sql".into());
        Ports::Of(vec![PortRule::Port { protocol, port }])
    };
    let _ = engine.upsert(egress(
        kind,
        "web",
        vec![rule(RuleVerdict::Allow, Peers::Any, sql(None))],
    ));
    let _ = engine.upsert(ingress(
        "db",
        "db",
        vec![rule(
            RuleVerdict::Allow,
            Peers::Any,
            sql(Some(PortProtocol::Tcp)),
        )],
    ));
    let (web, db) = (SubjectKey::Identity(WEB), SubjectKey::Identity(DB));
    assert!(found(&mut engine, web, false, DB, 5432).is_some());
    assert!(
        found(&mut engine, web, false, DB, 5433).is_none(),
        "that one is UDP"
    );
    assert!(found(&mut engine, web, false, REMOTE_NODE, 5432).is_none());
    assert!(found(&mut engine, db, true, WEB, 5432).is_some());
    let class = Arc::clone(
        engine
            .rules_for(&db)
            .ingress
            .as_ref()
            .unwrap()
            .class_of(WEB)
            .unwrap(),
    );
    assert!(class.verdict(17, 5433).is_none(), "the rule is about TCP");
    let moved = labels("db").with(source::PORT, "sql", "6000/TCP");
    let changed = engine.set_identity(DB, moved);
    assert!(changed.contains(web) && changed.contains(db));
    assert!(found(&mut engine, web, false, DB, 5432).is_none());
    assert!(found(&mut engine, db, true, WEB, 6000).is_some());
}

#[test]
fn a_refused_document_closes_its_subjects_until_it_is_mended() {
    let mut engine = engine(PolicySettings::default());
    let wanted = ingress(
        "late",
        "web",
        vec![rule(RuleVerdict::Allow, Peers::Any, Ports::Any)],
    );
    let place = Place {
        file: Some("late.yaml".into()),
        line: 3,
    };
    let subject = Subject::Endpoints(app("web"));
    let changed = engine.quarantine(wanted.id.clone(), place, &subject);
    let (web, db) = (SubjectKey::Identity(WEB), SubjectKey::Identity(DB));
    assert!(changed.contains(web) && !changed.contains(db));
    for peer in [DB, HOST] {
        let verdict = found(&mut engine, web, true, peer, 80).unwrap();
        assert_eq!(verdict.verdict, DENY);
        let rule = engine.rule(verdict.rule_id).unwrap().to_string();
        assert_eq!(rule, "NetworkPolicy/x/late refused (late.yaml:3)");
    }
    assert!(engine.upsert(wanted.clone()).contains(web));
    assert_eq!(
        found(&mut engine, web, true, DB, 80).unwrap().verdict,
        ALLOW
    );
    let nameless = QuarantineKey::Unnamed("bad.yaml#2".into());
    let _ = engine.quarantine(nameless.clone(), Place::default(), &subject);
    assert_eq!(found(&mut engine, web, true, DB, 80).unwrap().verdict, DENY);
    assert!(engine.lift(&nameless).contains(web));
    assert_eq!(
        found(&mut engine, web, true, DB, 80).unwrap().verdict,
        ALLOW
    );
    assert_eq!(engine.stats().quarantined, 0);
}

#[test]
fn equal_classes_are_one_and_their_memory_comes_back() {
    let mut engine = engine(PolicySettings::default());
    let open = |app| {
        let peers = Peers::Of(vec![Peer::Entity(Entity::World)]);
        ingress(
            "open",
            app,
            vec![rule(RuleVerdict::Allow, peers, Ports::Any)],
        )
    };
    let selects_both = Document {
        specs: vec![open("web").specs[0].clone(), open("db").specs[0].clone()],
        ..open("web")
    };
    let _ = engine.upsert(selects_both);
    let of = |engine: &mut PolicyEngine, subject| {
        let rules = engine.rules_for(&SubjectKey::Identity(subject));
        Arc::clone(
            rules
                .ingress
                .as_ref()
                .unwrap()
                .class_of(WORLD_IPV4)
                .unwrap(),
        )
    };
    assert!(Arc::ptr_eq(&of(&mut engine, WEB), &of(&mut engine, DB)));
    let kept = of(&mut engine, WEB);
    let _ = engine.remove(&open("web").id);
    let _ = engine.rules_for(&SubjectKey::Identity(WEB));
    let _ = engine.rules_for(&SubjectKey::Identity(DB));
    assert_eq!(Arc::strong_count(&kept), 1);
    let stats = engine.stats();
    assert_eq!((stats.documents, stats.rules, stats.classes), (0, 0, 1));
    drop(kept);
    assert_eq!(engine.stats().classes, 0);
}

#[test]
fn an_explanation_names_the_rule_or_what_is_nearest() {
    let mut engine = engine(PolicySettings::default());
    let peer = |name| Peers::Of(vec![Peer::Labelled(app(name))]);
    let _ = engine.upsert(ingress(
        "near",
        "web",
        vec![
            rule(
                RuleVerdict::Allow,
                peer("db"),
                port(PortValue::Range(443..=443)),
            ),
            rule(RuleVerdict::Allow, peer("other"), Ports::Any),
        ],
    ));
    let query = |port| ExplainQuery {
        from: ExplainEnd::Identity(DB),
        to: ExplainEnd::Labels(labels("web")),
        protocol: TCP,
        port,
    };
    let allowed = engine.explain(&query(443));
    assert!(allowed.allowed && allowed.egress.reason == Reason::NotIsolated);
    assert_eq!(
        allowed.ingress.to_string(),
        "allowed by NetworkPolicy/x/near spec.rule.Allow (x.yaml:7)"
    );
    let denied = engine.explain(&query(80));
    assert_eq!(denied.ingress.reason, Reason::NoRule);
    let lines: Vec<String> = denied.to_string().lines().map(String::from).collect();
    assert!(
        lines[0].starts_with("denied: ") && lines[0].ends_with(" 80/TCP"),
        "{lines:?}"
    );
    assert_eq!(
        lines[1..],
        [
            "  egress: allowed: no document isolates it in this direction",
            "  ingress: denied: no rule allows it, and NetworkPolicy/x/near isolates it",
            "    near: NetworkPolicy/x/near spec.rule.Allow (x.yaml:7) allows this peer, but only \
             443/TCP",
            "    near: NetworkPolicy/x/near spec.rule.Allow (x.yaml:7) allows this port, but only \
             with [k8s:app=other]",
        ]
    );
    let json = serde_json::to_value(&denied).unwrap();
    assert_eq!(json["ingress"]["reason"], "no-rule");
    assert_eq!(json["ingress"]["near"][0]["otherwise"], "port");
    assert_eq!(json["ingress"]["isolated_by"][0]["name"], "near");
}
