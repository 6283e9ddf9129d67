//! Selectors: which labels a policy means.

use std::fmt;

use super::labels::{Labels, source};

/// What labels must fulfil: all of its requirements. Without one it fits all.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// In the order in which they were added.
    pub requirements: Vec<Requirement>,
}

/// One thing that labels must fulfil.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// Source of the label; [`source::ANY`] for any.
    pub source: String,
    /// Key of the label.
    pub key: String,
    /// What must be so of it.
    pub operator: Operator,
}

/// What a requirement asks of the value under its key, as
/// `k8s.io/apimachinery/pkg/labels` defines it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// There is one, among these.
    In(Vec<String>),
    /// There is none among these; nor need there be any.
    NotIn(Vec<String>),
    /// There is one.
    Exists,
    /// There is none.
    DoesNotExist,
}

impl Selector {
    /// Adds a requirement.
    #[must_use]
    pub fn with(mut self, source: &str, key: &str, operator: Operator) -> Self {
        self.requirements.push(Requirement {
            source: source.into(),
            key: key.into(),
            operator,
        });
        self
    }

    /// Adds the requirement that a label has this value.
    #[must_use]
    pub fn equal(self, source: &str, key: &str, value: &str) -> Self {
        self.with(source, key, Operator::In(vec![value.into()]))
    }

    /// Whether labels fulfil all of it.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements
            .iter()
            .all(|requirement| requirement.matches(labels))
    }
}

impl Requirement {
    /// Whether labels fulfil it.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.source, &self.key);
        let among =
            |values: &[String]| value.is_some_and(|value| values.iter().any(|v| v == value));
        match &self.operator {
            Operator::In(values) => among(values),
            Operator::NotIn(values) => !among(values),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("any labels");
        }
        for (at, requirement) in self.requirements.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.source == source::ANY {
            self.key.clone()
        } else {
            format!("{}:{}", self.source, self.key)
        };
        match &self.operator {
            Operator::In(values) if values.len() == 1 => write!(f, "{name}={}", values.concat()),
            Operator::In(values) => write!(f, "{name} in ({})", values.join(", ")),
            Operator::NotIn(values) => write!(f, "{name} notin ({})", values.join(", ")),
            Operator::Exists => write!(f, "{name} exists"),
            Operator::DoesNotExist => write!(f, "{name} does not exist"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_as_kubernetes_defines_them() {
        let labels = Labels::default().with(source::K8S, "app", "web");
        let one = |key: &str, operator| {
            let selector = Selector::default().with(source::ANY, key, operator);
            selector.matches(&labels)
        };
        let values = |values: &[&str]| values.iter().map(|&v| v.into()).collect::<Vec<String>>();
        assert!(one("app", Operator::In(values(&["db", "web"]))));
        assert!(!one("app", Operator::NotIn(values(&["web"]))));
        assert!(one("tier", Operator::NotIn(values(&["web"]))));
        assert!(!one("tier", Operator::In(values(&["web"]))));
        assert!(one("app", Operator::Exists) && !one("tier", Operator::Exists));
        assert!(one("tier", Operator::DoesNotExist) && !one("app", Operator::DoesNotExist));
        assert!(Selector::default().matches(&labels));
        let both = Selector::default().equal(source::K8S, "app", "web").equal(
            source::RESERVED,
            "app",
            "web",
        );
        assert!(!both.matches(&labels));
    }
}
