//! Destinations that pods reach under their own addresses: a list in the format of ip-masq-agent,
//! with its defaults.
//!
//! The format is that of <https://github.com/kubernetes-sigs/ip-masq-agent>, which Cilium reads
//! too; the defaults are Cilium's.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use jiff::SignedDuration;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::Error;

/// What a file without `nonMasqueradeCIDRs` stands for: destinations that no router of the
/// Internet leads to (RFC 6890).
const DEFAULTS: [&str; 11] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
];
/// Left out by `masqLinkLocal`.
const LINK_LOCAL_V4: &str = "169.254.0.0/16";
/// Left out by `masqLinkLocalIPv6`.
const LINK_LOCAL_V6: &str = "fe80::/10";
/// How often the file is looked at, if it does not say.
const RESYNC: Duration = Duration::from_mins(1);
/// Prefixes that a file may have, as ip-masq-agent has it.
const LIMIT: usize = 64;
/// The largest file that is read, bytes. One of 64 prefixes has 2 KiB.
const LARGEST_BYTES: u64 = 1 << 20;

/// Prefixes that pods reach under their own addresses, and where that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NonMasqueradeView {
    /// The prefixes, in order.
    pub prefixes: Vec<Listed>,
    /// The file that is followed; none: there is no such setting.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// What is wrong with the file: it says nothing new until it is mended.
    #[serde(default)]
    pub problem: Option<String>,
}

/// A prefix that pods reach under their own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listed {
    /// The prefix.
    pub prefix: IpNet,
    /// Who says so.
    pub by: ListedBy,
}

/// Who lists a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListedBy {
    /// The configuration, or the process that runs the datapath.
    Config,
    /// The file in ip-masq-agent's format.
    File,
    /// That file's defaults, for what it does not say.
    Default,
    /// That file as it was once: found in the tables, the file itself is not to be understood.
    Earlier,
}

impl fmt::Display for ListedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "config",
            Self::File => "file",
            Self::Default => "default",
            Self::Earlier => "earlier",
        })
    }
}

/// What a file in ip-masq-agent's format says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonMasquerade {
    /// The prefixes, with those that stand for what it does not say.
    pub prefixes: Vec<Listed>,
    /// How often the file is to be looked at, besides when it changes.
    pub resync: Duration,
}

impl Default for NonMasquerade {
    /// What holds where there is no file.
    fn default() -> Self {
        Document::default().into()
    }
}

impl NonMasquerade {
    /// Reads the text of a file: YAML, and so JSON too. An empty one says what none does.
    ///
    /// | key | meaning | without it |
    /// |---|---|---|
    /// | `nonMasqueradeCIDRs` | prefixes that pods reach under their own addresses | those that no router of the Internet leads to; also if the list is empty |
    /// | `cidrLimit` | prefixes that it may have | 64 |
    /// | `masqLinkLocal` | whether `169.254.0.0/16` is not one of them | it is |
    /// | `masqLinkLocalIPv6` | whether `fe80::/10` is not one of them | it is |
    /// | `resyncInterval` | how often the file is looked at if nobody tells that it changed: `60s`, `1m30s` | 60 seconds |
    ///
    /// # Errors
    ///
    /// [`Error::Document`] with `path`, and with line and column, for anything that is not in the
    /// table: an unknown key, a prefix with bits behind it, a value of another type.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let options = serde_saphyr::options! {
            with_snippet: false,
            strict_booleans: true,
        };
        let read = serde_saphyr::from_str_with_options::<Option<Document>>(text, options);
        let document = read.map_err(|error| Error::document(path, &error))?;
        let document = document.unwrap_or_default();
        let count = document.prefixes.as_ref().map_or(0, Vec::len);
        let limit = document.limit.unwrap_or(LIMIT);
        if count > limit {
            return Err(Error::Document {
                path: path.to_owned(),
                place: None,
                why: format!(
                    "nonMasqueradeCIDRs has {count} prefixes, and {limit} are allowed: say larger \
                     ones, or set `cidrLimit`"
                ),
            });
        }
        Ok(document.into())
    }
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default, rename = "nonMasqueradeCIDRs")]
    prefixes: Option<Vec<Prefix>>,
    #[serde(default, rename = "cidrLimit")]
    limit: Option<usize>,
    #[serde(default, rename = "masqLinkLocal")]
    link_local_v4: Option<bool>,
    #[serde(default, rename = "masqLinkLocalIPv6")]
    link_local_v6: Option<bool>,
    #[serde(default, rename = "resyncInterval")]
    resync: Option<Interval>,
}

impl From<Document> for NonMasquerade {
    fn from(document: Document) -> Self {
        let said = document.prefixes.unwrap_or_default();
        let mut defaults: Vec<&str> = Vec::new();
        if said.is_empty() {
            defaults.extend(DEFAULTS);
        }
        if !document.link_local_v4.unwrap_or(false) {
            defaults.push(LINK_LOCAL_V4);
        }
        if !document.link_local_v6.unwrap_or(false) {
            defaults.push(LINK_LOCAL_V6);
        }
        let listed = |prefix, by| Listed { prefix, by };
        let said = said
            .into_iter()
            .map(|Prefix(prefix)| listed(prefix, ListedBy::File));
        let defaults = defaults.into_iter().filter_map(|text| text.parse().ok());
        let defaults = defaults.map(|prefix| listed(prefix, ListedBy::Default));
        Self {
            prefixes: said.chain(defaults).collect(),
            resync: document.resync.map_or(RESYNC, |Interval(every)| every),
        }
    }
}

/// A prefix, in the only way of writing it.
#[derive(Clone, Copy, Debug)]
struct Prefix(IpNet);

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parse = |text: &str| {
            let prefix = text.parse().map_err(|_| {
                format!("{text:?} is no prefix: write one such as 10.0.0.0/8 or fd00::/8")
            })?;
            check_prefix(prefix).map(Self)
        };
        deserializer.deserialize_str(Scalar(parse))
    }
}

/// Whether a prefix of IPv6 is one of addresses that stand for those of IPv4, as they do in the
/// tables of the datapath (RFC 4291 section 2.5.5.2).
pub(crate) fn is_mapped(prefix: IpNet) -> bool {
    match prefix {
        IpNet::V6(prefix) => prefix.prefix_len() >= 96 && prefix.addr().to_ipv4_mapped().is_some(),
        IpNet::V4(_) => false,
    }
}

/// Refuses prefixes that could be meant in two ways.
fn check_prefix(prefix: IpNet) -> Result<IpNet, String> {
    if prefix.trunc() != prefix {
        let meant = prefix.trunc();
        return Err(format!(
            "prefix {prefix} has bits behind its length: write {meant}"
        ));
    }
    if is_mapped(prefix) {
        return Err(format!(
            "prefix {prefix} is of IPv4 addresses: write it as one of those"
        ));
    }
    Ok(prefix)
}

/// A time as Go writes it.
#[derive(Clone, Copy, Debug)]
struct Interval(Duration);

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parse = |text: &str| {
            let parsed = text.parse::<SignedDuration>().ok();
            let every = parsed.and_then(|every| Duration::try_from(every).ok());
            let every = every.filter(|every| *every >= Duration::from_secs(1));
            every.map(Self).ok_or_else(|| {
                format!("{text:?} is no time of a second or more: write one such as 60s or 1m30s")
            })
        };
        deserializer.deserialize_str(Scalar(parse))
    }
}

/// Parses a scalar while the reader of the document still knows where it is.
struct Scalar<F>(F);

impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Scalar<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

/// A file that is followed, with what it said when it was understood last.
#[derive(Debug)]
pub(crate) struct Followed {
    path: PathBuf,
    /// Its last text, or why there is none.
    text: Option<Result<String, String>>,
    /// What counts.
    pub(crate) good: NonMasquerade,
    /// What is wrong with it now.
    pub(crate) problem: Option<String>,
}

impl Followed {
    /// A file that was not looked at yet.
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            text: None,
            good: NonMasquerade::default(),
            problem: None,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at the file; returns whether it says something else than before. What cannot be
    /// understood leaves what it said before, and is a [`Followed::problem`]. A file that is not
    /// there says what an empty one does.
    pub(crate) fn look(&mut self) -> bool {
        let text = read(&self.path).map_err(|error| error.to_string());
        if self.text.as_ref() == Some(&text) {
            return false;
        }
        let parsed = match &text {
            Ok(text) => NonMasquerade::parse(&self.path, text).map_err(|error| error.to_string()),
            Err(why) => Err(format!("{}: {why}", self.path.display())),
        };
        self.text = Some(text);
        match parsed {
            Ok(said) => {
                self.problem = None;
                let changed = said != self.good;
                self.good = said;
                changed
            }
            Err(problem) => {
                let file = self.path.display();
                tracing::warn!(%file, problem, "non-masquerade file: what it said before holds");
                self.problem = Some(problem);
                false
            }
        }
    }
}

/// The text of a file; nothing where there is none.
fn read(path: &Path) -> io::Result<String> {
    // Not opened: a pipe would wait for somebody to write.
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => return Err(io::Error::other("it is not a file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        other => other?,
    };
    let mut text = String::new();
    let mut file = fs::File::open(path)?.take(LARGEST_BYTES + 1);
    file.read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_BYTES {
        let why = format!("it is larger than {LARGEST_BYTES} bytes");
        return Err(io::Error::other(why));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NonMasquerade, String> {
        NonMasquerade::parse(Path::new("/etc/masq"), text).map_err(|error| error.to_string())
    }

    fn by(said: &NonMasquerade, by: ListedBy) -> Vec<String> {
        let listed = said.prefixes.iter().filter(|listed| listed.by == by);
        listed.map(|listed| listed.prefix.to_string()).collect()
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml = "nonMasqueradeCIDRs:\n  - 10.0.0.0/8\n  - fd00::/8\nmasqLinkLocal: true\n\
                    masqLinkLocalIPv6: false\nresyncInterval: 1m30s\n";
        let json = "{\n\t\"nonMasqueradeCIDRs\": [\"10.0.0.0/8\", \"fd00::/8\"],\n\
                    \t\"masqLinkLocal\": true,\n\t\"masqLinkLocalIPv6\": false,\n\
                    \t\"resyncInterval\": \"1m30s\"\n}\n";
        let said = parse(yaml).unwrap();
        assert_eq!(parse(json).unwrap(), said);
        assert_eq!(by(&said, ListedBy::File), ["10.0.0.0/8", "fd00::/8"]);
        assert_eq!(by(&said, ListedBy::Default), ["fe80::/10"]);
        assert_eq!(said.resync, Duration::from_secs(90));
    }

    #[test]
    fn what_is_not_said_has_its_defaults() {
        for text in [
            "",
            "# nothing\n",
            "---\n",
            "{}",
            "nonMasqueradeCIDRs: []\n",
            "nonMasqueradeCIDRs:\n",
        ] {
            let said = parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
            assert_eq!(said, NonMasquerade::default(), "{text:?}");
        }
        let said = NonMasquerade::default();
        assert_eq!(said.prefixes.len(), DEFAULTS.len() + 2);
        let defaults = by(&said, ListedBy::Default);
        for text in DEFAULTS.iter().chain([&LINK_LOCAL_V4, &LINK_LOCAL_V6]) {
            assert!(defaults.contains(&(*text).to_owned()), "{text}");
        }
        assert_eq!(said.resync, Duration::from_mins(1));
        let said = parse("masqLinkLocal: true\nmasqLinkLocalIPv6: true").unwrap();
        assert_eq!(by(&said, ListedBy::Default), DEFAULTS);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, place, why) in [
            (
                "masqLinkLocal: true\nnonMasqueradeCidrs: []\n",
                "/etc/masq:2:1: ",
                "expected one of nonMasqueradeCIDRs",
            ),
            (
                "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 10.1.0.0/8\n",
                "/etc/masq:3:3: ",
                "write 10.0.0.0/8",
            ),
            (
                "nonMasqueradeCIDRs: [10.0.0.0]\n",
                "/etc/masq:1:22: ",
                "is no prefix",
            ),
            (
                "nonMasqueradeCIDRs: ['::ffff:10.0.0.0/104']\n",
                "/etc/masq:1:",
                "of IPv4 addresses",
            ),
            ("masqLinkLocal: yes\n", "/etc/masq:1:16: ", "bool"),
            ("resyncInterval: 60\n", "/etc/masq:1:17: ", "such as 60s"),
            (
                "resyncInterval: 10ms\n",
                "/etc/masq:1:17: ",
                "a second or more",
            ),
            (
                "resyncInterval: 1m\nresyncInterval: 2m\n",
                "/etc/masq:2:1: ",
                "duplicate",
            ),
            ("nonMasqueradeCIDRs: [\n", "/etc/masq:", ""),
            ("- 10.0.0.0/8\n", "/etc/masq:1:1: ", ""),
            (
                "cidrLimit: 1\nnonMasqueradeCIDRs: [10.0.0.0/8, 11.0.0.0/8]\n",
                "/etc/masq: ",
                "has 2 prefixes",
            ),
        ] {
            let said = parse(text).unwrap_err();
            assert!(
                said.starts_with(place) && said.contains(why),
                "{text:?}: {said}"
            );
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }

    #[test]
    fn a_bad_file_leaves_what_it_said_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("masq");
        let mut file = Followed::new(&path);
        assert!(!file.look(), "no file is an empty file");
        assert_eq!(
            (&file.good, &file.problem),
            (&NonMasquerade::default(), &None)
        );
        fs::write(&path, "nonMasqueradeCIDRs: [10.0.0.0/8]").unwrap();
        assert!(file.look());
        assert!(!file.look(), "it did not change again");
        let good = file.good.clone();
        fs::write(&path, "nonMasqueradeCIDRs: [10.0.0.0/99]").unwrap();
        assert!(!file.look());
        assert_eq!(file.good, good);
        assert!(
            file.problem.as_ref().unwrap().contains(":1:22: "),
            "{:?}",
            file.problem
        );
        fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
        assert!(!file.look());
        assert!(
            file.problem.as_ref().unwrap().contains("UTF-8"),
            "{:?}",
            file.problem
        );
        fs::write(&path, "nonMasqueradeCIDRs: [10.0.0.0/8]").unwrap();
        assert!(!file.look(), "it says what it said");
        assert_eq!(file.problem, None);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(!file.look());
        assert!(
            file.problem.as_ref().unwrap().contains("not a file"),
            "{:?}",
            file.problem
        );
        fs::remove_dir(&path).unwrap();
        assert!(file.look(), "gone: the defaults");
        assert_eq!(
            (&file.good, &file.problem),
            (&NonMasquerade::default(), &None)
        );
    }
}
