//! Selectors of labels, as people write them.

use std::{fmt, str::FromStr};

use datapath_user::policy::{Label, Labels, Operator, Selector, source};

/// What labels must fulfil: a [`Selector`], and the text that it was read from.
///
/// As `kubectl` and Hubble take it: `app=web`, `app==web`, `app!=web`, `app in (a, b)`,
/// `app notin (a, b)`, `app`, `!app`, several of those with commas between. A key may have a source
/// in front (`k8s:app=web`, `reserved:world`); without one, any source will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelector {
    text: String,
    selector: Selector,
}

impl LabelSelector {
    /// Whether labels fulfil it.
    ///
    /// What is asked for as `reserved:world` is also the world of one family.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let worlds = ["world-ipv4", "world-ipv6"];
        let of_family = |key: &str| labels.get(source::RESERVED, key).is_some();
        if worlds.iter().any(|key| of_family(key)) {
            let labels = labels.clone().with(source::RESERVED, "world", "");
            return self.selector.matches(&labels);
        }
        self.selector.matches(labels)
    }
}

impl FromStr for LabelSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = split(text)?;
        let mut selector = Selector::default();
        for part in &parts {
            let (source, key, operator) = requirement(part.trim())?;
            selector = selector.with(&source, &key, operator);
        }
        Ok(Self {
            text: text.to_owned(),
            selector,
        })
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The requirements of a selector: at commas that are not in parentheses.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let (mut begin, mut depth) = (0, 0_u32);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1).ok_or_else(|| wrong(text))?,
            ',' if depth == 0 => {
                parts.push(text.get(begin..at).unwrap_or_default());
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text.get(begin..).unwrap_or_default());
    if depth == 0 {
        Ok(parts)
    } else {
        Err(wrong(text))
    }
}

fn requirement(part: &str) -> Result<(String, String, Operator), String> {
    let one = |value: &str| vec![value.trim().to_owned()];
    let (name, operator) = if let Some((name, value)) = part.split_once("!=") {
        (name, Operator::NotIn(one(value)))
    } else if let Some((name, value)) = part.split_once("==") {
        (name, Operator::In(one(value)))
    } else if let Some((name, value)) = part.split_once('=') {
        (name, Operator::In(one(value)))
    } else if let Some((name, values)) = part.split_once(" notin ") {
        (name, Operator::NotIn(among(values, part)?))
    } else if let Some((name, values)) = part.split_once(" in ") {
        (name, Operator::In(among(values, part)?))
    } else if let Some(name) = part.strip_prefix('!') {
        (name, Operator::DoesNotExist)
    } else {
        (part, Operator::Exists)
    };
    let name = name.trim();
    if name.is_empty() || name.contains([' ', '(', ')', '=', '!']) {
        return Err(wrong(part));
    }
    let sourced = name.contains(':');
    let label: Label = name.parse().map_err(|_| wrong(part))?;
    let from = if sourced {
        label.source
    } else {
        source::ANY.to_owned()
    };
    Ok((from, label.key, operator))
}

fn among(values: &str, part: &str) -> Result<Vec<String>, String> {
    let inside = values
        .trim()
        .strip_prefix('(')
        .and_then(|values| values.strip_suffix(')'))
        .ok_or_else(|| wrong(part))?;
    let values = inside.split(',').map(|value| value.trim().to_owned());
    Ok(values.collect())
}

fn wrong(text: &str) -> String {
    format!(
        "{text:?} is no selector of labels: write app=web, app!=web, app in (a, b), app notin (a, \
         b), app or !app, with commas between several"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(text: &str, labels: &Labels) -> bool {
        text.parse::<LabelSelector>().unwrap().matches(labels)
    }

    #[test]
    fn selectors_are_kubernetes_own() {
        let web =
            Labels::default()
                .with(source::K8S, "app", "web")
                .with(source::K8S, "tier", "front");
        for text in [
            "app=web",
            "k8s:app==web",
            "any:app=web",
            "app!=db",
            "app in (db, web)",
            "app notin (db,api)",
            "app",
            "!other",
            "app=web,tier in (front,back)",
            "other!=x",
        ] {
            assert!(fits(text, &web), "{text}");
        }
        for text in [
            "app=db",
            "reserved:app=web",
            "app!=web",
            "app in (db)",
            "app notin (web)",
            "other",
            "!app",
            "app=web,tier=back",
        ] {
            assert!(!fits(text, &web), "{text}");
        }
    }

    #[test]
    fn the_world_of_a_family_is_the_world() {
        let cidr = Labels::cidr("198.51.100.0/24".parse().unwrap());
        assert!(fits("reserved:world", &cidr) && fits("reserved:world-ipv4", &cidr));
        assert!(fits("cidr:198.51.100.0/24", &cidr) && !fits("reserved:world-ipv6", &cidr));
        assert!(!fits("reserved:world", &Labels::reserved("host")));
    }

    #[test]
    fn what_is_none_is_said_with_what_is() {
        for text in ["", "=web", "app in web", "app in (a", "a b", "app)", "!"] {
            let said = text.parse::<LabelSelector>().unwrap_err();
            assert!(said.contains("app in (a, b)"), "{text}: {said}");
        }
    }
}
