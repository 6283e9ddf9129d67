//! Policy documents: which are refused, where and with which help; what the others mean; and that
//! no text, however spoilt, is more than refused.
//!
//! `documents/refused.yaml` holds documents that each have something wrong with them, and
//! `documents/accepted.yaml` such that have nothing; what is made of them is kept as snapshots.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use datapath_user::policy::document::{LARGEST_DOCUMENT_BYTES, Reading, read, read_one};
use datapath_user::policy::{
    Document, Labels, Peer, Peers, PortRule, PortValue, Ports, Rule, RuleVerdict, Section,
    Selector, Subject, source,
};

const REFUSED: &str = include_str!("documents/refused.yaml");
const ACCEPTED: &str = include_str!("documents/accepted.yaml");

#[test]
fn mistakes_are_told_with_their_place_and_what_to_do() {
    let Reading { documents, refused } = read(REFUSED, Some(Path::new("refused.yaml")));
    let accepted: Vec<String> = documents.iter().map(|d| d.id.to_string()).collect();
    assert_eq!(accepted, Vec::<String>::new(), "of refused.yaml");
    let told: BTreeSet<usize> = refused
        .iter()
        .map(|refusal| number_of_document(REFUSED, refusal.line))
        .collect();
    let all: BTreeSet<usize> = (0..REFUSED.split("\n---\n").count()).collect();
    assert_eq!(told, all, "documents with a refusal");
    assert!(all.len() >= 80, "{}", all.len());
    let mut text = String::new();
    for refusal in &refused {
        writeln!(text, "{refusal}\n").unwrap();
    }
    insta::assert_snapshot!("refused", text);
}

#[test]
fn documents_mean_what_they_say() {
    let Reading { documents, refused } = read(ACCEPTED, Some(Path::new("accepted.yaml")));
    let told: Vec<String> = refused.iter().map(ToString::to_string).collect();
    assert_eq!(told, Vec::<String>::new(), "of accepted.yaml");
    assert_eq!(documents.len(), ACCEPTED.split("\n---\n").count());
    let mut text = String::new();
    for document in &documents {
        writeln!(text, "{}", Told(document)).unwrap();
    }
    insta::assert_snapshot!("accepted", text);
}

/// Keys that formats know, other than those of labels.
const KEYS: [&str; 52] = [
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    "specs",
    "podSelector",
    "policyTypes",
    "ingress",
    "egress",
    "from",
    "to",
    "ports",
    "port",
    "endPort",
    "protocol",
    "namespaceSelector",
    "ipBlock",
    "cidr",
    "except",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "endpointSelector",
    "nodeSelector",
    "ingressDeny",
    "egressDeny",
    "enableDefaultDeny",
    "description",
    "labels",
    "log",
    "fromEndpoints",
    "toEndpoints",
    "fromCIDR",
    "toCIDR",
    "fromCIDRSet",
    "toCIDRSet",
    "fromEntities",
    "toEntities",
    "fromNodes",
    "toNodes",
    "toPorts",
    "rules",
    "icmps",
    "fields",
    "type",
    "family",
    "authentication",
    "mode",
    "managedFields",
    "finalizers",
];

/// Nothing is left out that somebody wrote: a document with any key misspelt, or any value of
/// another kind, is refused.
#[test]
fn nothing_that_is_written_is_passed_over() {
    let mut tried = 0;
    for text in ACCEPTED.split("\n---\n") {
        let (_title, text) = text.split_once('\n').unwrap();
        assert_eq!(read(text, None).documents.len(), 1, "{text}");
        for key in KEYS {
            for (at, _) in text.match_indices(key) {
                let (before, rest) = text.split_at(at);
                let after = &rest[key.len()..];
                let begins = before.ends_with([' ', '\n', '{', '"']) || before.is_empty();
                let value = after.strip_prefix(':').or(after.strip_prefix("\":"));
                let Some(value) = value.filter(|_| begins) else {
                    continue;
                };
                let colon = &after[..after.len() - value.len()];
                let misspelt = format!("{before}{key}x{colon}{value}");
                assert_eq!(read(&misspelt, None).documents, [], "{misspelt}");
                tried += 1;
                // A value that ends with its line, or before the next of a flow mapping.
                let end = value.find(['\n', ',', '}']).unwrap_or(value.len());
                let (scalar, rest) = value.split_at(end);
                if scalar.trim().is_empty() || scalar.contains(['{', '[', '&', '*', '"', '\'']) {
                    continue;
                }
                let listed = format!("{before}{key}{colon} [[{}]]{rest}", scalar.trim());
                assert_eq!(read(&listed, None).documents, [], "{listed}");
                tried += 1;
            }
        }
    }
    assert!(tried > 500, "{tried}");
}

#[test]
fn a_refused_document_spoils_no_other() {
    let good = |name: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\r\nkind: NetworkPolicy\r\nmetadata: {{name: {name}}}\r\n\
             spec: {{podSelector: {{}}}}\r\n"
        )
    };
    let text = format!(
        "{}---\r\na: [\r\n---\r\n{}...\r\n# no document\r\n---\r\n{}--- 7\r\n",
        good("a"),
        good("b"),
        good("a")
    );
    let Reading { documents, refused } = read(&text, None);
    let names: Vec<&str> = documents.iter().map(|d| d.id.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let told: Vec<String> = refused.iter().map(ToString::to_string).collect();
    assert_eq!(refused.len(), 3, "{told:#?}");
    assert!(told[0].starts_with("line 6, column 4: "), "{}", told[0]);
    let twice = "line 15, column 1: NetworkPolicy/default/a is there already, in line 1";
    assert!(told[1].starts_with(twice), "{}", told[1]);
    let number = "line 19, column 5: a document must be a mapping, and it is an integer";
    assert!(told[2].starts_with(number), "{}", told[2]);
    assert_eq!(read("# nothing\n---\n---\n", None), Reading::default());
}

#[test]
fn one_document_of_a_text_keeps_its_lines() {
    let text = "kind: NetworkPolicy\nspec: {}\n";
    let refused = read_one(text, Some(Path::new("a/b.yaml")), 41).refused;
    let lines: BTreeSet<u64> = refused.iter().map(|refusal| refusal.line).collect();
    assert_eq!(lines, BTreeSet::from([42]));
    let said = refused[0].to_string();
    assert!(
        said.starts_with("a/b.yaml:42:1: `apiVersion` is missing\n"),
        "{said}"
    );
}

#[test]
fn whom_a_refused_document_was_for_is_told_where_it_can_be_read() {
    let of = |head: &str, spec: &str| {
        let text = format!("{head}\nspec:\n{spec}");
        let refused = read(&text, None).refused;
        assert!(!refused.is_empty(), "{text}");
        let whom: Vec<_> = refused
            .iter()
            .map(datapath_user::policy::Refusal::concerns)
            .collect();
        assert!(whom.iter().all(|one| *one == whom[0]), "{text}");
        whom[0].clone()
    };
    let shop = || Selector::default().equal(source::K8S, Labels::NAMESPACE, "shop");
    let db = Selector::default().equal(source::K8S, "app", "db");
    let db = db.equal(source::K8S, Labels::NAMESPACE, "shop");
    let any_db = Selector::default().equal(source::ANY, "app", "db");
    let knp = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, namespace: shop}";
    let broken = "kind: NetworkPolicy\nmetadata:\n  labels: {name: x}\n  name: \"a\" # it\n  namespace: shop\nx: [";
    let cnp =
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a, namespace: shop}";
    let clusterwide =
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: a}";
    for (head, spec, whom) in [
        (
            knp,
            "  podSelector: {matchLabels: {app: db}}\n  ingres: []",
            Some(Subject::Endpoints(db)),
        ),
        (
            knp,
            "  podSelector: {matchLabels: {app: 1}}",
            Some(Subject::Endpoints(shop())),
        ),
        (
            knp,
            "  podSelector: {matchLabel: {app: db}}",
            Some(Subject::Endpoints(shop())),
        ),
        (knp, "  PodSelector: {}", Some(Subject::Endpoints(shop()))),
        (knp, "  podSelector: [", Some(Subject::Endpoints(shop()))),
        (broken, "", Some(Subject::Endpoints(shop()))),
        (
            cnp,
            "  endpointSelector: {matchLabels: {app: db}}",
            Some(Subject::Endpoints(any_db.clone().equal(
                source::K8S,
                Labels::NAMESPACE,
                "shop",
            ))),
        ),
        (
            cnp,
            "  nodeSelector: {}\n  ingress: [{}]",
            Some(Subject::Endpoints(shop())),
        ),
        (
            clusterwide,
            "  endpointSelector: {matchLabels: {app: db}}",
            Some(Subject::Endpoints(any_db.clone())),
        ),
        (
            clusterwide,
            "  nodeSelector: {matchLabels: {app: db}}",
            Some(Subject::Nodes(any_db)),
        ),
        (
            clusterwide,
            "  endpointSelector: 7",
            Some(Subject::Endpoints(Selector::default())),
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}",
            "  {}",
            None,
        ),
    ] {
        assert_eq!(of(head, spec), whom, "{head}\n{spec}");
    }
}

#[test]
fn a_document_takes_a_bounded_amount_of_work() {
    let refused = |text: &str| {
        let Reading { documents, refused } = read(text, None);
        assert_eq!(documents, []);
        assert!(
            !refused.is_empty() && refused.len() <= 51,
            "{}",
            refused.len()
        );
        refused[0].problem.clone()
    };
    // Aliases that stand for 10^12 nodes.
    let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
    for (name, of) in ('b'..='l').zip('a'..) {
        let aliases = format!("*{of}, ").repeat(10);
        writeln!(bomb, "{name}: &{name} [{aliases}]").unwrap();
    }
    refused(&bomb);
    refused(&"[".repeat(100_000));
    refused(&format!("a: {}", "{a: ".repeat(100_000)));
    refused(&"- ".repeat(100_000));
    let large = format!("# {}\na: b", "x".repeat(LARGEST_DOCUMENT_BYTES));
    assert!(refused(&large).contains("bytes"));
    let mut many = String::from(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, spec: {",
    );
    for number in 0..20_000 {
        write!(many, "k{number}: 1, ").unwrap();
    }
    many.push_str("podSelector: {}}}");
    refused(&many);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Documents with bytes, lines or words out of their place are read or refused.
    #[test]
    fn spoilt_documents_are_read_or_refused(
        document in any::<Index>(),
        edits in vec((any::<Index>(), any::<Index>(), 0_u8..6, "[-:{}\\[\\],&*!|>'\"%@`#? \ta-zé0-9\n]{0,6}"), 1..6),
        good in any::<bool>(),
    ) {
        let documents: Vec<&str> = if good { ACCEPTED } else { REFUSED }.split("\n---\n").collect();
        let mut text = document.get(&documents).to_string();
        for (at, other, how, insert) in edits {
            spoil(&mut text, at, other, how, &insert);
        }
        let reading = read(&text, Some(Path::new("x.yaml")));
        let lines = text.lines().count() as u64;
        for refusal in &reading.refused {
            prop_assert!((1..=lines + 1).contains(&refusal.line), "{refusal}");
            prop_assert!(refusal.column >= 1);
            prop_assert!(!refusal.problem.is_empty());
        }
        for document in &reading.documents {
            prop_assert!(!document.specs.is_empty(), "{}", document.id);
        }
        // What is read once is read the same way again, and alone as among others.
        let again = read(&format!("# before\n---\n{text}"), Some(Path::new("x.yaml")));
        prop_assert_eq!(again.documents.len(), reading.documents.len());
        prop_assert_eq!(again.refused.len(), reading.refused.len());
    }

    /// Any text is read or refused.
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
        let reading = read(&text, None);
        prop_assert_eq!(reading.documents, vec![]);
    }
}

/// Changes a text at a place.
fn spoil(text: &mut String, at: Index, other: Index, how: u8, insert: &str) {
    let boundaries: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    if boundaries.is_empty() {
        return;
    }
    let from = *at.get(&boundaries);
    let to = *other.get(&boundaries);
    match how {
        0 => text.insert_str(from, insert),
        1 => text.truncate(from),
        2 => {
            let (first, last) = (from.min(to), from.max(to));
            text.replace_range(first..last, "");
        }
        // Lines, or words, change places.
        3 | 4 => {
            let between = if how == 3 { "\n" } else { " " };
            let mut parts: Vec<&str> = text.split(between).collect();
            let (one, two) = (at.index(parts.len()), other.index(parts.len()));
            parts.swap(one, two);
            *text = parts.join(between);
        }
        _ => {
            let line = other.index(text.lines().count().max(1));
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if let Some(line) = lines.get_mut(line) {
                line.insert_str(0, "  ");
            }
            *text = lines.join("\n");
        }
    }
}

/// How many documents are before the one with a line.
fn number_of_document(text: &str, line: u64) -> usize {
    let before = usize::try_from(line).map_or(0, |line| line - 1);
    text.lines()
        .take(before)
        .filter(|line| *line == "---")
        .count()
}

/// A document in few lines.
struct Told<'a>(&'a Document);

impl std::fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.0.id)?;
        for spec in &self.0.specs {
            match &spec.subject {
                Subject::Endpoints(selector) => writeln!(f, "  for endpoints of {selector}")?,
                Subject::Nodes(selector) => writeln!(f, "  for nodes of {selector}")?,
            }
            for (name, section) in [("ingress", &spec.ingress), ("egress", &spec.egress)] {
                let Section { isolates, rules } = section;
                if *isolates {
                    writeln!(f, "  {name} needs a rule")?;
                }
                for Rule {
                    path,
                    line,
                    verdict,
                    peers,
                    ports,
                } in rules
                {
                    let verdict = match verdict {
                        RuleVerdict::Allow => "allow",
                        RuleVerdict::Deny => "deny",
                    };
                    let peers = match peers {
                        Peers::Any => "anyone".to_owned(),
                        Peers::Of(peers) if peers.is_empty() => "nobody".to_owned(),
                        Peers::Of(peers) => joined(peers.iter().map(peer)),
                    };
                    let ports = match ports {
                        Ports::Any => "anything".to_owned(),
                        Ports::Of(ports) if ports.is_empty() => "nothing".to_owned(),
                        Ports::Of(ports) => joined(ports.iter().map(port)),
                    };
                    writeln!(f, "    {path}, line {line}: {verdict} {peers} on {ports}")?;
                }
            }
        }
        Ok(())
    }
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(" | ")
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Labelled(selector) => format!("[{selector}]"),
        Peer::Cidr { cidr, except } if except.is_empty() => cidr.to_string(),
        Peer::Cidr { cidr, except } => {
            format!(
                "{cidr} but {}",
                joined(except.iter().map(ToString::to_string))
            )
        }
        Peer::Entity(entity) => format!("{entity:?}"),
    }
}

fn port(rule: &PortRule) -> String {
    match rule {
        PortRule::Port { protocol, port } => {
            let protocol = protocol.map_or("any".to_owned(), |protocol| protocol.to_string());
            match port {
                PortValue::All => format!("{protocol}/*"),
                PortValue::Range(range) if range.start() == range.end() => {
                    format!("{protocol}/{}", range.start())
                }
                PortValue::Range(range) => {
                    format!("{protocol}/{}-{}", range.start(), range.end())
                }
                PortValue::Named(name) => format!("{protocol}/{name}"),
            }
        }
        PortRule::Icmp { family, kind } => format!("ICMP {family:?} {kind}"),
    }
}
