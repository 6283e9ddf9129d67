//! What somebody may have meant.

/// The one of some words that a word was meant to be: the same in other case, one that another
/// format has for the same thing, or one that is a slip of the pen away.
pub(super) fn meant<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let find = |other: &str| {
        let mut known = known.iter().copied();
        known.find(|one| one.eq_ignore_ascii_case(other))
    };
    let namesakes = NAMESAKES.iter().filter(|(said, _)| *said == word);
    find(word)
        .or_else(|| namesakes.into_iter().find_map(|(_, other)| find(other)))
        .or_else(|| near(word, known))
}

/// What Kubernetes and Cilium call by different names.
const NAMESAKES: [(&str, &str); 20] = [
    ("cidr", "toCIDR"),
    ("cidrs", "cidr"),
    ("endpointSelector", "podSelector"),
    ("endpoints", "fromEndpoints"),
    ("excepts", "except"),
    ("expressions", "matchExpressions"),
    ("from", "fromEndpoints"),
    ("fromEndpoints", "from"),
    ("fromPorts", "toPorts"),
    ("icmp", "icmps"),
    ("labels", "matchLabels"),
    ("namespaceSelector", "matchLabels"),
    ("podSelector", "endpointSelector"),
    ("ports", "toPorts"),
    ("proto", "protocol"),
    ("selector", "endpointSelector"),
    ("selector", "podSelector"),
    ("to", "toEndpoints"),
    ("toEndpoints", "to"),
    ("toPorts", "ports"),
];

fn near<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    // A third of it may be wrong: less than that, and every short word is like every other.
    let most = word.chars().count() / 3;
    let mut near: Vec<(usize, &str)> = known
        .iter()
        .map(|one| (strsim::osa_distance(&word, &one.to_lowercase()), *one))
        .filter(|(distance, _)| *distance <= most.min(3))
        .collect();
    near.sort_unstable();
    match near.as_slice() {
        // Of two that are as near, either would be a guess.
        [first, second, ..] if first.0 == second.0 => None,
        [first, ..] => Some(first.1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let known = ["podSelector", "policyTypes", "ingress", "egress"];
        for (word, expected) in [
            ("PodSelector", Some("podSelector")),
            ("podselector", Some("podSelector")),
            ("podSelectors", Some("podSelector")),
            ("policyType", Some("policyTypes")),
            ("ingres", Some("ingress")),
            ("engress", None),
            ("egres", Some("egress")),
            ("endpointSelector", Some("podSelector")),
            ("replicas", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(meant(word, &known), expected, "{word}");
        }
        assert_eq!(meant("udp", &["TCP", "UDP"]), Some("UDP"));
    }
}
