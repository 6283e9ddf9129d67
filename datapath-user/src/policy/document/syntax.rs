//! Names and labels, as Kubernetes lets them be written.
//!
//! Source: `k8s.io/apimachinery/pkg/util/validation`.

/// What is wrong with a name of an object: a subdomain (RFC 1123).
pub(super) fn subdomain(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > 253 {
        Some("it has more than 253 characters")
    } else if !name.split('.').all(is_dns_word) {
        Some(
            "only a-z, 0-9, `-` and `.` may be in it, and every part between dots begins and \
             ends with a-z or 0-9",
        )
    } else {
        None
    }
}

/// What is wrong with a name of a namespace: a label of a domain name (RFC 1123).
pub(super) fn namespace(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > 63 {
        Some("it has more than 63 characters")
    } else if !is_dns_word(name) {
        Some("only a-z, 0-9 and `-` may be in it, and it begins and ends with a-z or 0-9")
    } else {
        None
    }
}

/// What is wrong with a key of a label or of an annotation.
pub(super) fn label_key(key: &str) -> Option<&'static str> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|prefix| subdomain(prefix).is_some()) {
        Some("what is before its `/` must be a domain name in small letters")
    } else if name.is_empty() {
        Some("it has no name")
    } else if name.len() > 63 {
        Some("its name has more than 63 characters")
    } else if !is_label_word(name) {
        Some(
            "only letters, digits, `-`, `_` and `.` may be in its name, which begins and ends \
             with a letter or a digit",
        )
    } else {
        None
    }
}

/// What is wrong with a value of a label.
pub(super) fn label_value(value: &str) -> Option<&'static str> {
    if value.len() > 63 {
        Some("it has more than 63 characters")
    } else if !value.is_empty() && !is_label_word(value) {
        Some(
            "only letters, digits, `-`, `_` and `.` may be in it, and it begins and ends with a \
             letter or a digit",
        )
    } else {
        None
    }
}

/// What is wrong with a name of a port: that of a service (RFC 6335 section 5.1), in capitals too
/// where `capitals` says so.
pub(super) fn port_name(name: &str, capitals: bool) -> Option<&'static str> {
    let fits = |byte: u8| {
        byte.is_ascii_lowercase()
            || byte.is_ascii_digit()
            || byte == b'-'
            || (capitals && byte.is_ascii_uppercase())
    };
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > 15 {
        Some("it has more than 15 characters")
    } else if !name.bytes().all(fits) {
        Some("only a-z, 0-9 and `-` may be in it")
    } else if !name.bytes().any(|byte| byte.is_ascii_alphabetic()) {
        Some("it has no letter")
    } else if name.contains("--") || name.starts_with('-') || name.ends_with('-') {
        Some("`-` may only be between two other characters")
    } else {
        None
    }
}

fn is_dns_word(word: &str) -> bool {
    is_word(word, |byte| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit()
    }) && !word.contains(['_', '.'])
}

fn is_label_word(word: &str) -> bool {
    is_word(word, |byte| byte.is_ascii_alphanumeric())
}

/// Whether `outer` holds of the first and the last byte, and of those between them that are not
/// punctuation.
fn is_word(word: &str, outer: impl Fn(u8) -> bool) -> bool {
    let ends = [word.bytes().next(), word.bytes().next_back()];
    ends.into_iter().all(|end| end.is_some_and(&outer))
        && word
            .bytes()
            .all(|byte| outer(byte) || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_kubernetes_has_them() {
        let long = |length| "a".repeat(length);
        for (name, fits) in [
            ("a", true),
            ("a-b.c-9", true),
            (&*long(253), true),
            (&*long(254), false),
            ("", false),
            ("A", false),
            ("a_b", false),
            ("a.", false),
            ("-a", false),
            ("a..b", false),
        ] {
            assert_eq!(subdomain(name).is_none(), fits, "{name}");
        }
        assert!(namespace(&long(63)).is_none() && namespace(&long(64)).is_some());
        assert!(namespace("a.b").is_some() && namespace("kube-system").is_none());
        for (key, fits) in [
            ("app", true),
            ("app.kubernetes.io/name", true),
            ("A_b.c", true),
            ("", false),
            ("/a", false),
            ("a/", false),
            ("a/b/c", false),
            ("A.io/b", false),
            ("-a", false),
            ("ä", false),
        ] {
            assert_eq!(label_key(key).is_none(), fits, "{key}");
        }
        for (value, fits) in [("", true), ("A.b_c-9", true), ("a b", false), ("a-", false)] {
            assert_eq!(label_value(value).is_none(), fits, "{value}");
        }
        for (name, small, any) in [
            ("http", true, true),
            ("HTTP", false, true),
            ("80", false, false),
            ("a--b", false, false),
            ("-a", false, false),
            ("abcdefghijklmnop", false, false),
            ("a.b", false, false),
        ] {
            assert_eq!(port_name(name, false).is_none(), small, "{name}");
            assert_eq!(port_name(name, true).is_none(), any, "{name}");
        }
    }
}
