//! The agent's configuration file.

mod policy;

use std::{
    collections::BTreeSet,
    fs, mem,
    path::{Path, PathBuf},
};

use datapath_ipam::DEFAULT_COOLDOWN;
use datapath_user::{Error as DatapathError, IdentitySource, PolicyConfig};
use serde::{Deserialize, Serialize};

pub use self::policy::PolicySection;
use super::{cluster::Cluster, policies::Policies};
use crate::{
    api::{DEFAULT_SOCKET, EndpointSpec, PeerSpec},
    error::{Error, Result},
};

/// What an agent is started with: a TOML file with these keys.
///
/// ```toml
/// socket = "/run/datapath/agent.sock"
/// state = "/var/lib/datapath/ipam.redb"
/// address_cooldown_s = 60
/// on_stop = "leave"                       # or "remove"
///
/// [datapath]                              # datapath_user::Config
/// bpffs = "/run/datapath/bpffs"
/// uplinks = ["eth0"]                      # or { name = "eth0", masquerade = ["203.0.113.7"] }
/// non_masquerade_file = "/etc/datapath/masq.yaml" # in ip-masq-agent's format, followed
/// pod_cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"]
/// gateways = ["10.244.1.1", "fd00:10:244:1::1"]
///
/// [policy]                                # datapath_user::PolicyConfig, and:
/// directory = "/etc/datapath/policy.d"    # documents, followed
/// cluster = "/etc/datapath/cluster.toml"  # the other nodes, followed
/// mode = "default"
///
/// [[peers]]                               # datapath_user::PeerSpec
/// name = "n2"
/// address = "192.0.2.12"
/// pod_cidrs = ["10.244.2.0/24", "fd00:10:244:2::/64"]
///
/// [[endpoints]]                           # datapath_user::EndpointSpec
/// id = "web-0"
/// netns = "/run/netns/web-0"
/// identity = 1001                         # without addresses it gets one of each family
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// The file of the address leases. Its directory is made if it is not there.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// How long an address rests after its pod is gone, before another pod may get it; seconds.
    #[serde(default = "default_cooldown_s")]
    pub address_cooldown_s: u32,
    /// What becomes of the datapath when the agent ends.
    #[serde(default)]
    pub on_stop: OnStop,
    /// The datapath. Its `pod_cidrs` are the address pool, its `gateways` are set aside.
    pub datapath: datapath_user::Config,
    /// Policy: how it is enforced, and where documents and nodes come from.
    #[serde(default)]
    pub policy: PolicySection,
    /// The other nodes. Those of a datapath that is taken over stay, also where they are not named
    /// here: `dpctl peers remove` removes them.
    #[serde(default)]
    pub peers: Vec<PeerSpec>,
    /// Pods to connect from the start. Those of a datapath that is taken over stay, also where they
    /// are not named here: `dpctl endpoint remove` removes them.
    #[serde(default)]
    pub endpoints: Vec<EndpointSpec>,
}

/// What becomes of a datapath when its agent is asked to end. One that is killed leaves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStop {
    /// It runs on, and pods with it; the agent that starts next takes it over.
    #[default]
    Leave,
    /// Nothing of it is left.
    Remove,
}

fn default_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}

fn default_state() -> PathBuf {
    "/var/lib/datapath/ipam.redb".into()
}

fn default_cooldown_s() -> u32 {
    u32::try_from(DEFAULT_COOLDOWN.as_secs()).unwrap_or(u32::MAX)
}

impl Config {
    /// Takes the settings of a datapath; the rest is left at its defaults.
    #[must_use]
    pub fn new(mut datapath: datapath_user::Config) -> Self {
        let policy = PolicySection {
            settings: mem::take(&mut datapath.policy),
            ..PolicySection::default()
        };
        Self {
            policy,
            socket: default_socket(),
            state: default_state(),
            address_cooldown_s: default_cooldown_s(),
            on_stop: OnStop::default(),
            datapath,
            peers: Vec::new(),
            endpoints: Vec::new(),
        }
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when it cannot be read, [`Error::Config`] with line and key for what it does
    /// not say well, [`Error::Setting`] for values that cannot be used.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .map_err(Error::os("read the configuration", path.display()))?;
        let config: Self = toml::from_str(&text).map_err(|source| Error::Config {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.check(path)?;
        Ok(config)
    }

    /// The datapath with its policy.
    #[must_use]
    pub fn datapath(&self) -> datapath_user::Config {
        let mut policy = self.policy.settings.clone();
        if self.policy.cluster.is_some() {
            policy.identities = IdentitySource::Cluster;
        }
        datapath_user::Config {
            policy,
            ..self.datapath.clone()
        }
    }

    /// A file that the agent keeps for itself, beside its leases.
    pub(in crate::agent) fn kept(&self, name: &str) -> PathBuf {
        self.state.with_file_name(name)
    }

    /// Names of the peers that it has.
    pub(in crate::agent) fn peer_names(&self) -> BTreeSet<String> {
        self.peers.iter().map(|peer| peer.name.clone()).collect()
    }

    /// Checks the files that it names, as far as they are there to be read.
    ///
    /// # Errors
    ///
    /// [`Error::Cluster`], [`Error::Os`], [`Error::Refused`] with what is wrong in the documents.
    pub fn check_files(&self) -> Result<()> {
        if let Some(cluster) = &self.policy.cluster {
            Cluster::check(cluster, &self.peer_names())?;
        }
        if let Some(directory) = &self.policy.directory {
            Policies::check(directory)?;
        }
        Ok(())
    }

    /// Checks what the types do not, as far as it can be told without looking at the machine.
    fn check(&self, path: &Path) -> Result<()> {
        let refuse = |key: String, source| Error::Setting {
            path: path.to_owned(),
            key,
            source,
        };
        for (key, given) in [("socket", &self.socket), ("state", &self.state)] {
            if !given.is_absolute() || given.file_name().is_none() {
                let why = format!(
                    "write the absolute path of a file instead of {}",
                    given.display()
                );
                return Err(refuse(key.to_owned(), why.into()));
            }
        }
        if self.datapath.policy != PolicyConfig::default() {
            let why = "write it as [policy]: that is where the agent's policy is";
            return Err(refuse("[datapath.policy]".to_owned(), why.into()));
        }
        for (key, given) in [
            ("policy.directory", &self.policy.directory),
            ("policy.cluster", &self.policy.cluster),
        ] {
            if let Some(given) = given.as_ref().filter(|given| !given.is_absolute()) {
                let why = format!("write an absolute path instead of {}", given.display());
                return Err(refuse(key.to_owned(), why.into()));
            }
        }
        self.datapath()
            .validate()
            .map_err(|error| refuse("[datapath]".to_owned(), error.into()))?;
        if self.datapath.pod_cidrs.is_empty() {
            let why = "name at least one prefix that pods get their addresses from";
            return Err(refuse("datapath.pod_cidrs".to_owned(), why.into()));
        }
        let mut names = BTreeSet::new();
        for (index, peer) in self.peers.iter().enumerate() {
            let key = || format!("peers[{index}]");
            peer.validate()
                .map_err(|error| refuse(key(), error.into()))?;
            if !names.insert(&peer.name) {
                let why = format!("there are two peers {:?}: name each node once", peer.name);
                return Err(refuse(key(), why.into()));
            }
        }
        let mut ids = BTreeSet::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            check_endpoint(endpoint, &self.datapath)
                .map_err(|error| refuse(format!("endpoints[{index}]"), error.into()))?;
            if !ids.insert(&endpoint.id) {
                let why = format!("there are two endpoints {:?}: name each once", endpoint.id);
                return Err(refuse(format!("endpoints[{index}]"), why.into()));
            }
        }
        Ok(())
    }
}

/// Checks an endpoint as far as it can be told without looking at the machine. It may lack
/// addresses, then it will get some.
pub(in crate::agent) fn check_endpoint(
    endpoint: &EndpointSpec,
    datapath: &datapath_user::Config,
) -> Result<(), DatapathError> {
    match endpoint.validate(datapath) {
        // The last thing that is looked at.
        Err(DatapathError::Invalid { what, .. })
            if what == "address" && endpoint.addresses.is_empty() =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use datapath_user::policy::PolicyMode;

    use super::*;

    const GOOD: &str = r#"
        [datapath]
        bpffs = "/run/datapath/bpffs"
        uplinks = ["eth0"]
        pod_cidrs = ["10.244.1.0/24"]
        gateways = ["10.244.1.1"]

        [[peers]]
        name = "n2"
        address = "192.0.2.12"

        [[endpoints]]
        id = "web-0"
        netns = "/run/netns/web-0"
        identity = 1001
    "#;

    /// What is said about a file.
    fn complaint(text: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        let error = anyhow::Error::from(Config::load(&path).unwrap_err());
        let said = format!("{error:#}");
        assert!(said.contains("agent.toml"), "names the file: {said}");
        said
    }

    fn load(text: &str) -> Config {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        Config::load(&path).unwrap()
    }

    #[test]
    fn a_short_file_gets_the_defaults() {
        let config = load(GOOD);
        assert_eq!(config.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(config.endpoints[0].interface, "eth0");
        assert!(config.endpoints[0].addresses.is_empty());
        assert!(config.datapath.masquerade);
        assert_eq!(config.on_stop, OnStop::Leave);
        assert_eq!(config.address_cooldown_s, 60);
        let config = load(&format!("on_stop = \"remove\"\n{GOOD}"));
        assert_eq!(config.on_stop, OnStop::Remove);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let config = load(GOOD);
        assert_eq!(load(&toml::to_string(&config).unwrap()), config);
        let uplinks = r#"["eth0", { name = "eth1", masquerade = ["203.0.113.7"] }]
            non_masquerade_file = "/etc/masq.yaml""#;
        let config = load(&GOOD.replace("[\"eth0\"]", uplinks));
        assert_eq!(config.datapath.uplinks.len(), 2);
        assert_eq!(load(&toml::to_string(&config).unwrap()), config);
    }

    #[test]
    fn policy_has_a_section_of_its_own() {
        let section =
            "\n[policy]\ndirectory = \"/etc/p\"\ncluster = \"/etc/c\"\nmode = \"always\"\n";
        let config = load(&format!("{GOOD}{section}"));
        assert_eq!(
            config.policy.directory.as_deref(),
            Some(Path::new("/etc/p"))
        );
        let policy = config.datapath().policy;
        assert_eq!(policy.mode, PolicyMode::Always);
        assert_eq!(policy.identities, IdentitySource::Cluster);
        assert_eq!(load(&toml::to_string(&config).unwrap()), config);
        for (wrong, why) in [
            ("[policy]\nmod = \"always\"", "`mod`"),
            ("[policy]\nmode = \"sometimes\"", "sometimes"),
            (
                "[policy]\ndirectory = \"p\"",
                "policy.directory: write an absolute path",
            ),
            ("[datapath.policy]\naudit = true", "write it as [policy]"),
            ("[policy]\ncidr_match = \"pods\"", "policy.cidr-match"),
        ] {
            let said = complaint(&format!("{GOOD}\n{wrong}\n"));
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn mistakes_are_named_with_line_and_key() {
        let said = complaint(&format!("sokcet = \"/x\"\n{GOOD}"));
        assert!(
            said.contains("line 1") && said.contains("`sokcet`"),
            "{said}"
        );
        let said = complaint(&GOOD.replace("gateways", "gatways"));
        assert!(
            said.contains("line 6") && said.contains("`gatways`"),
            "{said}"
        );
        let said = complaint(&GOOD.replace("[\"eth0\"]", "[{ name = \"eth0\", masq = true }]"));
        assert!(said.contains("line 4") && said.contains("`masq`"), "{said}");
        let said = complaint(&GOOD.replace("1001", "\"web\""));
        assert!(
            said.contains("identity = \"web\"") && said.contains("u32"),
            "{said}"
        );
        let said = complaint("socket = \"/run/x\"\n");
        assert!(said.contains("missing field `datapath`"), "{said}");
    }

    #[test]
    fn values_that_cannot_be_used_are_named_with_their_key() {
        let said = complaint(&format!("socket = \"agent.sock\"\n{GOOD}"));
        assert!(said.contains("socket: write the absolute path"), "{said}");
        let said = complaint(&GOOD.replace("[\"10.244.1.1\"]", "[\"10.244.2.1\"]"));
        assert!(
            said.contains("[datapath]") && said.contains("gateways"),
            "{said}"
        );
        let twice = format!("{GOOD}\n[[peers]]\nname = \"n2\"\naddress = \"192.0.2.13\"\n");
        assert!(complaint(&twice).contains("peers[1]: there are two peers \"n2\""));
        let twice = format!("{GOOD}\n[[endpoints]]\nid = \"web-0\"\nnetns = \"/x\"\n");
        assert!(complaint(&twice).contains("endpoints[1]: there are two endpoints"));
        let said = complaint(&GOOD.replace("web-0\"", "web/0\""));
        assert!(
            said.contains("endpoints[0]: endpoint id \"web/0\""),
            "{said}"
        );
        let said = complaint(&GOOD.replace("1001", "7"));
        assert!(said.contains("endpoints[0]: identity \"7\""), "{said}");
    }
}
